"""Datasets on disk for the tests of jobs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from smec_core.judgements import Judgements
from smec_core.parquet import write_embeddings
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
