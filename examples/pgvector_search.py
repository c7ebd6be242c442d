"""Funnel search with PostgreSQL and pgvector over the vectors that `smec compress` published.

A table has the whole vectors; the HNSW index is on an expression, their first numbers. One statement searches by the
index and orders what it found by the whole vectors. The table is named after the published version, and the view
`documents` shows the version in force: it is replaced when the new table is complete.

The server is the one that libpq's environment names: PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE. The database needs
CREATE EXTENSION vector (0.7 or newer).

    smec compress --model MODEL --input DATA/corpus --output OUT --dim 96
    python examples/pgvector_search.py --compressed OUT --data DATA --model MODEL --first 24

Shapes: N documents, Q queries, d published dims.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import sql

import smec_core
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.versions import current


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressed", required=True, help="published folder of smec compress, float32 or float16")
    parser.add_argument("--data", required=True, help="dataset whose queries are asked")
    parser.add_argument("--model", required=True, help="the model that compressed the documents")
    parser.add_argument("--first", type=int, default=24, help="dims of the first search")
    parser.add_argument("--shortlist", type=int, default=100, help="documents that are ordered again, at most 1000")
    parser.add_argument("--k", type=int, default=10, help="results of a query")
    args = parser.parse_args()

    # queries go through the model that made the documents' vectors, or the numbers mean nothing to each other
    model = smec_core.load(args.model)
    version = Path(current(args.compressed))
    content = next(version.glob("*manifest.json")).read_bytes()
    manifest = json.loads(content)
    # another folder may have a version of this name, too
    key = f"{version.name}_{hashlib.sha256(content).hexdigest()[:8]}"
    if manifest["model_fingerprint"] != model.fingerprint:
        raise SystemExit(f"{version}: was made by the model {manifest['model']}; give that one as --model")

    documents = EmbeddingTable.open(str(version))
    if args.first > documents.dim:
        raise SystemExit(f"--first is {args.first}, but {version} has {documents.dim} dims")
    prefix = sql.SQL("subvector(embedding, 1, {first})::vector({first})").format(first=args.first)
    with psycopg.connect(autocommit=True) as connection:
        register_vector(connection)
        load(connection, documents, f"documents_{key}_{args.first}", prefix)

        connection.execute(sql.SQL("SET hnsw.ef_search = {}").format(min(2 * args.shortlist, 1000)))
        statement = sql.SQL(
            "WITH shortlist AS MATERIALIZED (SELECT id, embedding FROM documents ORDER BY {} <=> %s LIMIT {}) "
            "SELECT id FROM shortlist ORDER BY embedding <=> %s LIMIT {}"
        ).format(prefix, args.shortlist, args.k)
        queries = EmbeddingTable.open(f"{args.data}/queries")
        query_ids = queries.ids().to_pylist()
        x_QD = np.concatenate([block.vectors_ND for block in queries.blocks()])
        for query_id, q_d in zip(query_ids, model.encode(x_QD, documents.dim), strict=True):
            # the cosine does not mind that a cut vector is shorter than 1
            found = connection.execute(statement, (Vector(q_d[: args.first]), Vector(q_d)))
            print(json.dumps({"query": query_id, "documents": [name for (name,) in found]}))


def load(connection: psycopg.Connection[Any], documents: EmbeddingTable, name: str, prefix: sql.Composable) -> None:
    """Loads a version that is not there yet, and puts it in force, in one transaction."""
    table = sql.Identifier(name)
    with connection.transaction():
        if connection.execute("SELECT to_regclass(%s)", (table.as_string(),)).fetchone() == (None,):
            connection.execute(
                sql.SQL("CREATE TABLE {} (id text PRIMARY KEY, embedding vector({}) NOT NULL)").format(
                    table, documents.dim
                )
            )
            with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN WITH (FORMAT BINARY)").format(table)) as copy:
                copy.set_types(["text", "vector"])
                for block in documents.blocks():
                    for row_id, vector_d in zip(block.ids.to_pylist(), block.vectors_ND, strict=True):
                        copy.write_row((row_id, Vector(vector_d)))
            connection.execute(sql.SQL("CREATE INDEX ON {} USING hnsw (({}) vector_cosine_ops)").format(table, prefix))
            connection.execute(sql.SQL("ANALYZE {}").format(table))
        # another number of dims is another type, which a view does not change to: so it is dropped first
        connection.execute("DROP VIEW IF EXISTS documents")
        connection.execute(sql.SQL("CREATE VIEW documents AS SELECT id, embedding FROM {}").format(table))


if __name__ == "__main__":
    main()
