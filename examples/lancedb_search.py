"""Funnel search with LanceDB over the vectors that `smec compress` published.

A table has both columns: `first`, the first numbers of every vector, which is searched, and `vector`, the whole one,
by which what was found is ordered again. The table is named after the published version, so that a new version is
loaded beside the old one.

    smec compress --model MODEL --input DATA/corpus --output OUT --dim 96
    python examples/lancedb_search.py --compressed OUT --data DATA --model MODEL --first 24 --database lance

Shapes: N documents, Q queries, d published dims, f first dims, S shortlist.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

import smec_core
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.versions import current


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressed", required=True, help="published folder of smec compress, float32 or float16")
    parser.add_argument("--data", required=True, help="dataset whose queries are asked")
    parser.add_argument("--model", required=True, help="the model that compressed the documents")
    parser.add_argument("--database", required=True, help="folder or URI of the LanceDB database")
    parser.add_argument("--first", type=int, default=24, help="dims of the first search")
    parser.add_argument("--shortlist", type=int, default=100, help="documents that are ordered again")
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
    name = f"documents_{key}_{args.first}"
    database = lancedb.connect(args.database)
    if name not in database.list_tables().tables:
        # a table appears when all its rows are there
        database.create_table(name, load(documents, args.first))
    table = database.open_table(name)

    queries = EmbeddingTable.open(f"{args.data}/queries")
    query_ids = queries.ids().to_pylist()
    x_QD = np.concatenate([block.vectors_ND for block in queries.blocks()])
    q_Qd = model.encode(x_QD, documents.dim)
    for query_id, q_d in zip(query_ids, q_Qd, strict=True):
        # the cosine does not mind that a cut vector is shorter than 1
        search: Any = table.search(q_d[: args.first], vector_column_name="first")
        found = search.distance_type("cosine").select(["id", "vector", "_distance"]).limit(args.shortlist).to_arrow()
        whole_Sd = found["vector"].combine_chunks().flatten().to_numpy().reshape(len(found), -1)
        cosine_S = whole_Sd @ q_d / np.linalg.norm(whole_Sd, axis=1)
        best = np.argsort(-cosine_S, kind="stable")[: args.k]
        print(json.dumps({"query": query_id, "documents": found["id"].take(pa.array(best)).to_pylist()}))


def load(documents: EmbeddingTable, first: int) -> pa.RecordBatchReader:
    """The rows of the table, read as LanceDB takes them."""
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("first", pa.list_(pa.float32(), first)),
            ("vector", pa.list_(pa.float32(), documents.dim)),
        ]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        for block in documents.blocks():
            vector_Nd = block.vectors_ND
            columns = [block.ids, embedding_column(vector_Nd[:, :first]), embedding_column(vector_Nd)]
            yield pa.record_batch(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


if __name__ == "__main__":
    main()
