"""PostgreSQL with pgvector (0.7 or newer): a table for each version, and the view `documents` shows the one in force.

    python examples/pgvector_search.py compressed DATA/queries.parquet

The server is the one that PGHOST, PGUSER and so on name; its database needs CREATE EXTENSION vector.
"""

import json
import sys
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from pgvector import Bit, HalfVector, Vector
from pgvector.psycopg import register_vector

import smec_core

SHORTLIST, K = 100, 10
if len(sys.argv) != 3:
    sys.exit("usage: python examples/pgvector_search.py compressed DATA/queries.parquet")
out, queries = sys.argv[1:]

try:
    version, asked = smec_core.published(out), pq.read_table(queries)
    asked_ids, q_Qd = asked["id"].to_pylist(), version.model.encode(asked["embedding"].to_numpy(), version.dim)
except (smec_core.SmecError, OSError, ValueError, KeyError) as error:
    sys.exit(str(error))
first_dims = version.dims[-1]  # the fewest that the model was trained for
binary, d = version.dtype == "binary", version.dim
# pgvector has no int8, whose numbers halfvec holds as they are
kind, value = ("vector", Vector) if version.dtype == "float32" else ("halfvec", HalfVector)
first = "signs" if binary else f"subvector(embedding, 1, {first_dims})::{kind}({first_dims})"
operators, operator = ("bit_hamming_ops", "<~>") if binary else (f"{kind}_cosine_ops", "<=>")
table, ids = f"documents_{version.key}_{first_dims}", "bigint" if pa.types.is_integer(version.id_type) else "text"
try:
    connection = psycopg.connect(autocommit=True)
except psycopg.OperationalError as error:
    named = "the server that PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE name"
    sys.exit(f"no connection to {named} ({' '.join(str(error).split())})")
register_vector(connection)


def run(statement: str, *values: Any) -> Any:
    return connection.execute(statement.encode(), values)


with connection.transaction():
    if run("SELECT to_regclass(%s)", table).fetchone() == (None,):
        run(f"CREATE TABLE {table} (id {ids} PRIMARY KEY, embedding {kind}({d}) NOT NULL, signs bit({d}))")
        with connection.cursor().copy(f"COPY {table} FROM STDIN WITH (FORMAT BINARY)".encode()) as copy:
            copy.set_types([ids, kind, "bit"])
            for names, found, whole in version.batches("embedding", "rescore" if binary else "embedding"):
                for name, bits, vector in zip(names.tolist(), found, whole, strict=True):
                    signs = Bit(np.unpackbits(bits, count=d).astype(bool)) if binary else None
                    copy.write_row((name, value(vector), signs))
        run(f"CREATE INDEX ON {table} USING hnsw (({first}) {operators})")
        run(f"ANALYZE {table}")
    # another number of dims is another type, which a view does not change to: so it is dropped first
    run("DROP VIEW IF EXISTS documents")
    run(f"CREATE VIEW documents AS SELECT * FROM {table}")

run(f"SET hnsw.ef_search = {2 * SHORTLIST}")
search = f"""WITH shortlist AS MATERIALIZED (
        SELECT id, embedding FROM documents ORDER BY {first} {operator} %s LIMIT {SHORTLIST})
    SELECT id FROM shortlist ORDER BY embedding::vector <=> %s LIMIT {K}"""
for query, q_d in zip(asked_ids, q_Qd, strict=True):
    found = run(search, Bit(q_d > 0) if binary else value(q_d[:first_dims]), Vector(q_d))
    print(json.dumps({"query": query, "documents": [name for (name,) in found]}))
connection.close()
