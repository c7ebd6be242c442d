"""Funnel search with FAISS over the vectors that `smec compress` published.

The first numbers of every vector go into an HNSW graph; what it finds is ordered again by the whole vectors. The index
file is named after the published version, so that a new version is built beside the old one.

    smec compress --model MODEL --input DATA/corpus --output OUT --dim 96
    python examples/faiss_search.py --compressed OUT --data DATA --model MODEL --first 24 --folder indexes

Shapes: N documents, Q queries, d published dims, f first dims, S shortlist.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import smec_core
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.versions import current


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressed", required=True, help="published folder of smec compress, float32 or float16")
    parser.add_argument("--data", required=True, help="dataset whose queries are asked")
    parser.add_argument("--model", required=True, help="the model that compressed the documents")
    parser.add_argument("--folder", required=True, type=Path, help="where index files are kept")
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
    ids = documents.ids().to_pylist()
    docs_Nd = np.concatenate([block.vectors_ND for block in documents.blocks()])
    index = open_index(args.folder / f"{key}-{args.first}.faiss", unit(docs_Nd[:, : args.first]))

    queries = EmbeddingTable.open(f"{args.data}/queries")
    query_ids = queries.ids().to_pylist()
    x_QD = np.concatenate([block.vectors_ND for block in queries.blocks()])
    q_Qd = model.encode(x_QD, documents.dim)

    index.hnsw.efSearch = 2 * args.shortlist
    _, shortlist_QS = index.search(unit(q_Qd[:, : args.first]), args.shortlist)
    docs_Nd = unit(docs_Nd)
    for query_id, q_d, row_S in zip(query_ids, q_Qd, shortlist_QS, strict=True):
        row_S = row_S[row_S >= 0]
        best = row_S[np.argsort(-(docs_Nd[row_S] @ q_d), kind="stable")[: args.k]]
        print(json.dumps({"query": query_id, "documents": [ids[row] for row in best]}))


def open_index(path: Path, first_Nf: np.ndarray) -> Any:
    """Reads the index of this version, or builds it and keeps it for the next start."""
    if path.exists():
        return faiss.read_index(str(path))
    index = faiss.IndexHNSWFlat(first_Nf.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(first_Nf)
    path.parent.mkdir(parents=True, exist_ok=True)
    # written beside and renamed: another process never reads half an index
    partial = path.with_suffix(f".{os.getpid()}.partial")
    faiss.write_index(index, str(partial))
    partial.replace(path)
    return index


def unit(v_Nd: np.ndarray) -> np.ndarray:
    """Vectors of unit length: a cut one has to be normalised again."""
    return np.ascontiguousarray(v_Nd / np.linalg.norm(v_Nd, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
