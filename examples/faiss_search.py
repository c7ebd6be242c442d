"""FAISS: a graph over the first numbers, or over signs, finds a shortlist; the whole vectors put it in order.

    python examples/faiss_search.py compressed DATA/queries.parquet

Shapes: N documents, Q queries, d dims, S shortlist.
"""

import json
import sys
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq

import smec_core

SHORTLIST, K = 100, 10
FORMS = {"float32": "HNSW32,Flat", "float16": "HNSW32,SQfp16", "int8": "HNSW32,SQ8"}
if len(sys.argv) != 3:
    sys.exit("usage: python examples/faiss_search.py compressed DATA/queries.parquet")
out, queries = sys.argv[1:]

try:
    version, asked = smec_core.published(out), pq.read_table(queries)
    asked_ids, q_Qd = asked["id"].to_pylist(), version.model.encode(asked["embedding"].to_numpy(), version.dim)
except (smec_core.SmecError, OSError, ValueError, KeyError) as error:
    sys.exit(str(error))
first_dims = version.dims[-1]  # the fewest that the model was trained for
if binary := version.dtype == "binary":
    ids_N, first_N, docs_Nd = version.read("embedding", "rescore")
    index: Any = faiss.index_binary_factory(8 * first_N.shape[1], "BHNSW32")
else:
    ids_N, docs_Nd = version.read()
    first_N = docs_Nd[:, :first_dims].astype(np.float32)
    faiss.normalize_L2(first_N)
    index = faiss.index_factory(first_dims, FORMS[version.dtype], faiss.METRIC_INNER_PRODUCT)
    index.train(first_N)
# faiss.write_index would keep it for the next start; name the file after version.key
index.add(first_N)
index.hnsw.efSearch = 2 * SHORTLIST

for query, q_d in zip(asked_ids, q_Qd, strict=True):
    first = np.packbits(q_d > 0) if binary else q_d[:first_dims] / np.linalg.norm(q_d[:first_dims])
    _, [row_S] = index.search(first[np.newaxis], SHORTLIST)
    row_S = row_S[row_S >= 0]
    whole_Sd = docs_Nd[row_S].astype(np.float32)
    cosine_S = whole_Sd @ q_d / np.linalg.norm(whole_Sd, axis=1)
    best = row_S[np.argsort(-cosine_S)[:K]]
    print(json.dumps({"query": query, "documents": ids_N[best].tolist()}))
