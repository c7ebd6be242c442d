"""SQLite with sqlite-vec: a table for each version; a search looks at the first numbers, or signs, of all rows.

    python examples/sqlite_vec_search.py compressed DATA/queries.parquet vectors.db

By apsw, because the sqlite3 of many Pythons loads no extensions.
"""

import json
import sys

import apsw
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlite_vec

import smec_core

SHORTLIST, K = 100, 10
if len(sys.argv) != 4:
    sys.exit("usage: python examples/sqlite_vec_search.py compressed DATA/queries.parquet vectors.db")
out, queries, file = sys.argv[1:]

try:
    version, asked = smec_core.published(out), pq.read_table(queries)
    asked_ids, q_Qd = asked["id"].to_pylist(), version.model.encode(asked["embedding"].to_numpy(), version.dim)
except (smec_core.SmecError, OSError, ValueError, KeyError) as error:
    sys.exit(str(error))
first_dims = version.dims[-1]  # the fewest that the model was trained for
binary, d, table = version.dtype == "binary", version.dim, f"documents_{version.key}_{first_dims}"
ids = "integer" if pa.types.is_integer(version.id_type) else "text"
first, value = (
    (f"bit[{8 * -(-d // 8)}]", "vec_bit(?)") if binary else (f"float[{first_dims}] distance_metric=cosine", "?")
)
whole, whole_value, held = ("float", "?", np.float32) if version.scale is None else ("int8", "vec_int8(?)", np.int8)
database = apsw.Connection(file)
database.enable_load_extension(True)
database.load_extension(sqlite_vec.loadable_path())
with database:
    if not database.table_exists(None, table):
        columns = f"id {ids} PRIMARY KEY, first {first}, whole {whole}[{d}]"
        database.execute(f"CREATE VIRTUAL TABLE {table} USING vec0({columns})")
        for names, firsts, vectors in version.batches("embedding", "rescore" if binary else "embedding"):
            firsts = firsts if binary else firsts[:, :first_dims].astype(np.float32)
            rows = zip(names.tolist(), map(bytes, firsts), map(bytes, vectors.astype(held)), strict=True)
            database.executemany(f"INSERT INTO {table} VALUES (?, {value}, {whole_value})", rows)

search = f"SELECT id, whole FROM {table} WHERE first MATCH {value} AND k = {SHORTLIST}"
for query, q_d in zip(asked_ids, q_Qd, strict=True):
    shortlist = database.execute(search, (bytes(np.packbits(q_d > 0) if binary else q_d[:first_dims]),))
    found, blobs = zip(*shortlist, strict=True)
    whole_Sd = np.frombuffer(b"".join(blobs), held).reshape(-1, d).astype(np.float32)
    best = np.argsort(-(whole_Sd @ q_d) / np.linalg.norm(whole_Sd, axis=1))[:K]
    print(json.dumps({"query": query, "documents": [found[row] for row in best]}))
database.close()
