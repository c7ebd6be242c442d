"""Small corpora, and compression of them by one worker."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.compress.job import run
from pipelines.compress.settings import CompressSettings
from pipelines.storage.manifest import finish_task
from pipelines.storage.publish import plan_of
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.stored_files import files_of
from smec_core.data.uri import open_filesystem
from smec_core.data.versions import manifest_of

DIM = 16


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def write_corpus(folder: Path, rows: list[int], **columns: Callable[[int], pa.Array]) -> Path:
    """One file per entry of `rows`; ids run on over the files."""
    folder.mkdir()
    first = 0
    for file, count in enumerate(rows):
        ids = pa.array([f"d{first + row}" for row in range(count)], pa.string())
        table = {"id": ids, "embedding": embedding_column(vectors(count, seed=file))}
        table |= {name: make(count) for name, make in columns.items()}
        pq.write_table(pa.table(table), folder / f"part-{file:02d}.parquet", row_group_size=100)
        first += count
    return folder


def read(folder: str | Path) -> tuple[list[str], np.ndarray]:
    blocks = list(EmbeddingTable.open(str(folder)).blocks())
    return [name for block in blocks for name in block.ids.to_pylist()], np.concatenate([b.vectors_ND for b in blocks])


def plan_at(version: Path) -> dict[str, Any]:
    """The plan by which a version on disk was made."""
    return plan_of(manifest_of(*open_filesystem(str(version))) or {})


def unfinish(version: Path) -> None:
    """Leaves a version on disk as a run does that is killed when all of its tasks are done."""
    filesystem, folder = open_filesystem(str(version))
    plan, manifest = plan_at(version), manifest_of(filesystem, folder) or {}
    for piece in manifest["inputs"]:
        finish_task(filesystem, folder, piece, [file for file in files_of(manifest) if file.name.endswith(piece)])
    (version / "plan.json").write_text(json.dumps(plan))
    (version / "_manifest.json").unlink()


def compress(model: Path, source: str | Path, out: str | Path, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"model": str(model), "input": str(source), "output": str(out), "dim": 8, "workers": 1}
    return run(CompressSettings(**(settings | more)))


def upgrade(model: Path, source: str | Path, out: Path, **more: Any) -> dict[str, Any]:
    return run(CompressSettings(model=str(model), input=str(source), output=str(out), upgrade=True, workers=1, **more))
