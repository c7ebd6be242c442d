"""Data and models to measure with, where none are given."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from smec_core.adapter import FrozenStage
from smec_core.model import Model
from smec_core.parquet import embedding_column

SMEC = [sys.executable, "-m", "pipelines.cli"]


def sample_dataset(folder: Path, size: int | None) -> str:
    """Builds the sample dataset of so many pairs, or of all."""
    part = [] if size is None else ["--size", str(size)]
    subprocess.run([*SMEC, "sample", str(folder), *part], check=True, stderr=subprocess.DEVNULL)
    return str(folder)


def write_corpus(folder: Path, rows: int, dim: int, files: int, row_group_rows: int) -> None:
    """Writes `rows` random vectors in so many files of equal size."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), dim))])
    for file in range(files):
        with pq.ParquetWriter(folder / f"{file}.parquet", schema, use_dictionary=["id"]) as writer:
            for start in range(0, rows // files, row_group_rows):
                stop = min(start + row_group_rows, rows // files)
                ids = pa.array([f"document-{file}-{row}" for row in range(start, stop)])
                vectors_ND = rng.standard_normal((stop - start, dim), dtype=np.float32)
                writer.write_table(pa.table([ids, embedding_column(vectors_ND)], schema=schema))


def write_model(folder: Path, input_dim: int, dim: int) -> None:
    """Writes a model of one random rotation, with scales that fit vectors without structure."""
    rotation = torch.linalg.qr(torch.randn(input_dim, input_dim, generator=torch.Generator().manual_seed(0)))[0]
    stage = FrozenStage(dim, "rotation", {"weight": rotation, "logits": torch.arange(input_dim, 0, -1).float()})
    scales = {str(kept): 5 / kept**0.5 / 127 for kept in (input_dim, dim)}
    Model([stage], input_dim, {"dims": [input_dim, dim], "int8_scales": scales}, {}).save(folder)
