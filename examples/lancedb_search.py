"""LanceDB: a table for each version; its column `first`, or the signs, are searched, and the whole vectors order.

    python examples/lancedb_search.py compressed DATA/queries.parquet lance

Shapes: Q queries, d dims, S shortlist.
"""

import json
import sys
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import smec_core
from smec_core.data.parquet import embedding_column

SHORTLIST, K = 100, 10


def with_first(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the first dims of its vectors as a column of their own."""
    whole_Nd = batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)
    return batch.append_column(first, embedding_column(whole_Nd[:, :first_dims].astype(np.float32)))


if len(sys.argv) != 4:
    sys.exit("usage: python examples/lancedb_search.py compressed DATA/queries.parquet lance")
out, queries, folder = sys.argv[1:]

try:
    version, asked = smec_core.published(out), pq.read_table(queries)
    asked_ids, q_Qd = asked["id"].to_pylist(), version.model.encode(asked["embedding"].to_numpy(), version.dim)
except (smec_core.SmecError, OSError, ValueError, KeyError) as error:
    sys.exit(str(error))
first_dims = version.dims[-1]  # the fewest that the model was trained for
first = "first"
while first in version.schema.names:
    # the corpus has a column of this name, which is kept, too
    first += "_"
binary, name = version.dtype == "binary", f"documents_{version.key}_{first_dims}"
searched, whole, distance = ("embedding", "rescore", "hamming") if binary else (first, "embedding", "cosine")
database, schema, rows = lancedb.connect(folder), version.schema, version.arrow()
if not binary:
    # LanceDB does not search int8, but keeps it for the second pass
    schema = schema.append(pa.field(first, pa.list_(pa.float32(), first_dims)))
    rows = map(with_first, version.arrow())
if name not in database.list_tables().tables:
    # it appears when all its rows are there
    database.create_table(name, rows, schema=schema)
table = database.open_table(name)

for query, q_d in zip(asked_ids, q_Qd, strict=True):
    near = np.packbits(q_d > 0) if binary else q_d[:first_dims]
    search: Any = table.search(near, vector_column_name=searched)
    found = search.distance_type(distance).select(["id", whole, "_distance"]).limit(SHORTLIST).to_arrow()
    whole_Sd = np.stack(found[whole].to_numpy()).astype(np.float32)
    best = np.argsort(-(whole_Sd @ q_d) / np.linalg.norm(whole_Sd, axis=1))[:K]
    print(json.dumps({"query": query, "documents": found["id"].take(pa.array(best)).to_pylist()}))
