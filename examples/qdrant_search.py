"""Qdrant: a collection for each version, whose vectors `first` and `whole` are searched in one call.

    python examples/qdrant_search.py compressed DATA/queries.parquet qdrant

`QdrantClient(url=...)` is a server; a folder is enough to try it, in this process.
"""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
from qdrant_client import QdrantClient, models

import smec_core

SHORTLIST, K = 100, 10
if len(sys.argv) != 4:
    sys.exit("usage: python examples/qdrant_search.py compressed DATA/queries.parquet qdrant")
out, queries, folder = sys.argv[1:]

try:
    version, asked = smec_core.published(out), pq.read_table(queries)
    asked_ids, q_Qd = asked["id"].to_pylist(), version.model.encode(asked["embedding"].to_numpy(), version.dim)
except (smec_core.SmecError, OSError, ValueError, KeyError) as error:
    sys.exit(str(error))
first_dims = version.dims[-1]  # the fewest that the model was trained for
name = f"documents_{version.key}_{first_dims}"
client = QdrantClient(path=folder)
if name not in [alias.alias_name for alias in client.get_aliases().aliases]:
    # Qdrant has no signed int8, and makes signs itself; for the cosine it keeps unit vectors, here as float16
    params = {
        vector: models.VectorParams(size=size, distance=models.Distance.COSINE, datatype=models.Datatype.FLOAT16)
        for vector, size in {"first": first_dims, "whole": version.dim}.items()
    }
    client.delete_collection(f"{name}_rows")
    client.create_collection(f"{name}_rows", params)
    row = 0
    for ids, vectors in version.batches("rescore" if version.dtype == "binary" else "embedding", batch_rows=1000):
        numbers = vectors.astype(np.float32)
        points = models.Batch(
            ids=list(range(row, row + len(ids))),
            vectors={"first": numbers[:, :first_dims].tolist(), "whole": numbers.tolist()},
            payloads=[{"id": name} for name in ids.tolist()],
        )
        client.upsert(f"{name}_rows", points)
        row += len(ids)
    # the name appears when all rows are there
    alias = models.CreateAlias(collection_name=f"{name}_rows", alias_name=name)
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])

for query, q_d in zip(asked_ids, q_Qd, strict=True):
    shortlist = models.Prefetch(query=q_d[:first_dims].tolist(), using="first", limit=SHORTLIST)
    found = client.query_points(name, query=q_d.tolist(), using="whole", prefetch=shortlist, limit=K)
    print(json.dumps({"query": query, "documents": [(point.payload or {})["id"] for point in found.points]}))
client.close()
