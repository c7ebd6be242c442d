"""Datasets on disk, and text to make them of, for the tests of jobs."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch

from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable, embedding_column, write_embeddings
from smec_core.data.uri import open_filesystem
from tests.smec_core.generated import generate


def write_dataset(folder: Path, docs: int = 400, queries: int = 200, dim: int = 32, files: int = 3) -> Path:
    """A dataset whose relevance depends on some directions of the vectors, the corpus in several files."""
    made = generate(torch.arange(dim // 4), dim, docs, queries, noise_scale=1.0, mixed=True)
    (folder / "corpus").mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(docs), files)):
        path = folder / "corpus" / f"part-{number}.parquet"
        write_embeddings(str(path), [f"d{row}" for row in rows], made.docs_ND[rows].numpy())
    write_embeddings(str(folder / "queries.parquet"), [f"q{row}" for row in range(queries)], made.queries_QD.numpy())
    write_qrels(folder, "train", made.train.merge(made.dev))
    write_qrels(folder, "test", made.test)
    return folder


def write_qrels(folder: Path, split: str, judgements: Judgements) -> None:
    """Writes the judgements of a split, ids made from rows."""
    (folder / "qrels").mkdir(exist_ok=True)
    rows = {
        "query_id": [f"q{row}" for row in judgements.query_row_Q[judgements.query_J]],
        "doc_id": [f"d{row}" for row in judgements.doc_row_J],
        "score": pa.array(judgements.score_J.astype(np.int32)),
    }
    pq.write_table(pa.table(rows), folder / "qrels" / f"{split}.parquet")


def write_vectors(uri: str, ids: Sequence[str], x_ND: np.ndarray) -> None:
    """A Parquet file on disk or S3 whose size does not depend on the numbers in it."""
    filesystem, path = open_filesystem(uri)
    filesystem.create_dir(path.rpartition("/")[0])
    table = pa.table({"id": ids, "embedding": embedding_column(x_ND)})
    pq.write_table(table, path, filesystem=filesystem, compression="none", use_dictionary=False)


def all_vectors(table: EmbeddingTable) -> np.ndarray:
    """All vectors of a table."""
    return np.concatenate([block.vectors_ND for block in table.blocks()])


def replace_vectors(uri: str) -> None:
    """Replaces a file of `write_vectors` by the opposite vectors: of the same size and, on disk, time."""
    filesystem, path = open_filesystem(uri)
    before, table = filesystem.get_file_info(path), pq.read_table(path, filesystem=filesystem)
    write_vectors(uri, table["id"].to_pylist(), -np.stack(table["embedding"].to_numpy()))
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    if is_local:
        os.utime(path, ns=(before.mtime_ns, before.mtime_ns))
    after = filesystem.get_file_info(path)
    assert after.size == before.size
    assert not is_local or after.mtime_ns == before.mtime_ns


DOCUMENTS = [
    {"_id": "cat", "title": "Cats", "text": "Small carnivores that purr."},
    {"_id": "sea", "title": "", "text": "The sea is salt water."},
    {"_id": "sun", "text": "A star."},
]
QUERIES = [{"_id": "q1", "text": "animals that purr"}, {"_id": "q2", "text": "salt"}, {"_id": "q3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\tcat\t2\nq2\tsea\t1\nq2\tsun\t0\n"


def write_beir(folder: Path, documents: str = "", queries: str = "", **qrels: str) -> Path:
    """Text in BEIR's own format; three documents, three queries and the judgements of two by default."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(documents or json_lines(DOCUMENTS))
    (folder / "queries.jsonl").write_text(queries or json_lines(QUERIES))
    for split, text in (qrels or {"test": QRELS}).items():
        (folder / f"qrels/{split}.tsv").write_text(text)
    return folder


def json_lines(records: list[dict[str, str]]) -> str:
    """One record a line."""
    return "".join(json.dumps(record) + "\n" for record in records)
