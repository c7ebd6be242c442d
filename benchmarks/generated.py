"""Data and models to measure with, where none are given.

    python -m benchmarks.generated FOLDER

writes a dataset with dense judgements: each query has a dozen relevant documents, each document several queries, so
that nearly all test queries are seen.

Shapes: N rows of a piece, R rank, D dims.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from smec_core.data.parquet import embedding_column
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model

SMEC = [sys.executable, "-m", "pipelines.cli"]
# what is in memory at a time
PIECE_ROWS = 16_384


def sample_dataset(folder: Path, size: int | None) -> str:
    """Builds the sample dataset of so many pairs, or of all."""
    part = [] if size is None else ["--size", str(size)]
    subprocess.run([*SMEC, "sample", str(folder), *part], check=True, stderr=subprocess.DEVNULL)
    return str(folder)


def write_corpus(
    folder: Path, rows: int, dim: int, files: int, row_group_rows: int, dtype: type[np.floating] = np.float32
) -> None:
    """Writes `rows` random vectors in so many files of equal size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.from_numpy_dtype(dtype), dim))])
    for file in range(files):
        with pq.ParquetWriter(folder / f"{file}.parquet", schema, use_dictionary=["id"]) as writer:
            for start in range(0, rows // files, row_group_rows):
                stop = min(start + row_group_rows, rows // files)
                ids = pa.array([f"document-{file}-{row}" for row in range(start, stop)])
                vectors_ND = rng.standard_normal((stop - start, dim), dtype=np.float32).astype(dtype)
                writer.write_table(pa.table([ids, embedding_column(vectors_ND)], schema=schema))


def write_model(folder: Path, input_dim: int, dim: int) -> None:
    """Writes a model of one random rotation, with scales that fit vectors without structure."""
    rotation = torch.linalg.qr(torch.randn(input_dim, input_dim, generator=torch.Generator().manual_seed(0)))[0]
    stage = FrozenStage(dim, "rotation", {"weight": rotation, "logits": torch.arange(input_dim, 0, -1).float()})
    scales = {str(kept): 5 / kept**0.5 / 127 for kept in (input_dim, dim)}
    Model([stage], input_dim, {"dims": [input_dim, dim], "int8_scales": scales}, {}).save(folder)


def write_dataset(
    folder: Path,
    rows: int,
    queries: int,
    tested: int,
    dim: int,
    files: int = 4,
    rank: int = 48,
    noise: float = 0.0,
    seed: int = 0,
    dtype: type[np.floating] = np.float32,
) -> None:
    """Writes a dataset of a low-rank part and noise, a piece at a time: memory does not grow with it.

    A query shares the first half of the low-rank part with its document, and the other half and the noise are its own:
    there is something to learn. The documents asked for are spread evenly over the corpus. The qrels come last: where
    they are, the dataset is whole.

    Args:
        folder: where to; holds no corpus yet.
        rows: documents.
        queries: queries, at most as many as documents.
        tested: queries of the test split; the others are to learn from.
        dim: D.
        files: files of the corpus.
        rank: dims of the low-rank part.
        noise: how much a query differs from its document in what they share, as a standard deviation over that of the
            documents; with 0, every query can be answered.
        seed: of all numbers; the same one gives the same files.
        dtype: of the numbers in the files.
    """
    (folder / "corpus").mkdir(parents=True)
    (folder / "qrels").mkdir()
    basis_RD = np.random.default_rng((seed, 0)).standard_normal((rank, dim), dtype=np.float32)
    asked = np.arange(queries) * rows // queries
    meanings = []
    for number in range(files):
        first, last = rows * number // files, rows * (number + 1) // files
        with _writer(folder / f"corpus/{number}.parquet", dim, dtype) as writer:
            for start in range(first, last, PIECE_ROWS):
                stop = min(start + PIECE_ROWS, last)
                rng = np.random.default_rng((seed, 1, start))
                meaning_NR = rng.standard_normal((stop - start, rank), dtype=np.float32)
                _write_piece(writer, "d", start, meaning_NR, basis_RD, rng)
                low, high = np.searchsorted(asked, [start, stop])
                meanings.append(meaning_NR[asked[low:high] - start])
    with _writer(folder / "queries.parquet", dim, dtype) as writer:
        meaning_QR = np.concatenate(meanings)
        for start in range(0, queries, PIECE_ROWS):
            rng = np.random.default_rng((seed, 2, start))
            piece_NR = meaning_QR[start : start + PIECE_ROWS]
            own_NR = rng.standard_normal(piece_NR.shape, dtype=np.float32)
            own_NR[:, : rank // 2] = piece_NR[:, : rank // 2] + noise * own_NR[:, : rank // 2]
            _write_piece(writer, "q", start, own_NR, basis_RD, rng)
    ids = [f"q{row}" for row in range(queries)]
    judged = pa.table({"query_id": ids, "doc_id": [f"d{row}" for row in asked], "score": np.ones(queries, np.int32)})
    pq.write_table(judged[tested:], folder / "qrels/train.parquet")
    pq.write_table(judged[:tested], folder / "qrels/test.parquet")


def _writer(path: Path, dim: int, dtype: type[np.floating]) -> pq.ParquetWriter:
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.from_numpy_dtype(dtype), dim))])
    return pq.ParquetWriter(path, schema, use_dictionary=False)


def _write_piece(
    writer: pq.ParquetWriter,
    prefix: str,
    start: int,
    meaning_NR: np.ndarray,
    basis_RD: np.ndarray,
    rng: np.random.Generator,
) -> None:
    x_ND = rng.standard_normal((len(meaning_NR), basis_RD.shape[1]), dtype=np.float32)
    x_ND += meaning_NR @ basis_RD
    ids = pa.array([f"{prefix}{row}" for row in range(start, start + len(x_ND))])
    column = embedding_column(x_ND.astype(writer.schema.field("embedding").type.value_type.to_pandas_dtype()))
    writer.write_table(pa.table([ids, column], schema=writer.schema))


def write_dense(
    folder: Path, rows: int = 4000, queries: int = 900, tested: int = 300, dim: int = 256, relevant: int = 12
) -> None:
    """Writes a dataset with dense judgements.

    Documents have a meaning in 48 dims and noise. Queries are made like them, and the documents that are nearest in the
    first half of the meaning are relevant, so that neither the noise nor the other half should count.

    Args:
        folder: where to; holds no corpus yet.
        rows: documents.
        queries: queries.
        tested: queries of the test split; the others are to learn from.
        dim: D.
        relevant: documents that are relevant to a query.
    """
    rng, rank = np.random.default_rng(0), 48
    basis_RD = rng.standard_normal((rank, dim), dtype=np.float32)
    meanings = [rng.standard_normal((count, rank), dtype=np.float32) for count in (rows, queries)]
    (folder / "qrels").mkdir(parents=True)
    for name, prefix, meaning_NR in zip(("corpus", "queries"), "dq", meanings, strict=True):
        with _writer(folder / f"{name}.parquet", dim, np.float32) as writer:
            _write_piece(writer, prefix, 0, meaning_NR, basis_RD, rng)
    shared = [
        part_NR[:, : rank // 2] / np.linalg.norm(part_NR[:, : rank // 2], axis=1)[:, None] for part_NR in meanings
    ]
    nearest_QK = np.argsort(-(shared[1] @ shared[0].T), axis=1)[:, :relevant]
    for split, chosen in (("train", range(tested, queries)), ("test", range(tested))):
        pairs = [(f"q{query}", f"d{doc}") for query in chosen for doc in nearest_QK[query]]
        query_id, doc_id = zip(*pairs, strict=True)
        judged = pa.table({"query_id": query_id, "doc_id": doc_id, "score": np.ones(len(pairs), np.int32)})
        pq.write_table(judged, folder / f"qrels/{split}.parquet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_dense(parser.parse_args().folder)
