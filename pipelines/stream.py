"""Embedding tables on Ray Data: every worker of a run streams exactly the rows it owns, once.

Shapes: L rows of one worker, D dims.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray.data
import ray.train
import torch
from ray.data import DataIterator, Dataset

from pipelines.cluster import unwrap
from smec_core.errors import SmecError
from smec_core.group import Group, rows_of_rank
from smec_core.parquet import EmbeddingTable, ParquetPart, embedding_column, unit_rows
from smec_core.resident import ResidentRows

PIECE_ROWS = 65_536
READ_ROWS = 8192


def rows_dataset(table: EmbeddingTable, start: int, stop: int) -> Dataset:
    """Rows `start` to `stop` of a table as unit vectors with their global row numbers, validated, in any order."""
    pieces = [
        {
            "path": part.path,
            "rows": part.rows,
            "part_start": part.start,
            "start": low,
            "stop": min(low + PIECE_ROWS, high),
        }
        for part, low_0, high in _overlaps(table, start, stop)
        for low in range(low_0, high, PIECE_ROWS)
    ]
    dataset = ray.data.from_items(pieces, override_num_blocks=max(len(pieces), 1))
    read = partial(_read_piece, filesystem=table.filesystem, dim=table.dim)
    return dataset.map_batches(read, batch_size=1, batch_format="pyarrow")


def _overlaps(table: EmbeddingTable, start: int, stop: int) -> Iterator[tuple[ParquetPart, int, int]]:
    for part in table.files:
        low, high = max(part.start, start), min(part.start + part.rows, stop)
        if low < high:
            yield part, low, high


def _read_piece(piece: pa.Table, filesystem: pafs.FileSystem, dim: int) -> Iterator[pa.Table]:
    if not len(piece):
        return
    [one] = piece.to_pylist()
    table = EmbeddingTable(filesystem, [ParquetPart(one["path"], one["rows"], one["part_start"])], dim)
    for block in table.blocks(one["start"], one["stop"]):
        row_N = pa.array(np.arange(block.row, block.row + len(block.ids)))
        yield pa.table({"row": row_N, "embedding": embedding_column(unit_rows(block.vectors_ND))})


class RowShards(ray.train.DataConfig):
    """Gives each worker the contiguous rows that it owns: none is lost or met twice, whatever the number of workers."""

    def __init__(self, tables: dict[str, EmbeddingTable]) -> None:
        # Ray's own split drops the tail rows that do not divide evenly
        super().__init__(datasets_to_split=[])
        self._tables = tables

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *unused: Any, **also_unused: Any
    ) -> list[dict[str, DataIterator]]:
        """Builds the iterator of every worker."""
        shards: list[dict[str, DataIterator]] = []
        for rank in range(world_size):
            own = {
                name: (self._tables[name], *rows_of_rank(self._tables[name].rows, rank, world_size))
                for name in datasets
            }
            shards.append({name: rows_dataset(*rows).iterator() for name, rows in own.items()})
        return shards


def fill(shard: DataIterator, rows: int, dim: int, group: Group) -> ResidentRows:
    """Streams this worker's rows into memory, each to its place.

    Raises:
        SmecError: a bad row, or rows that did not arrive.
    """
    start, stop = rows_of_rank(rows, group.rank, group.size)
    local_LD = np.empty((stop - start, dim), np.float32)
    arrived_L = np.zeros(stop - start, bool)
    try:
        for batch in shard.iter_batches(batch_size=READ_ROWS, batch_format="pyarrow"):
            assert isinstance(batch, pa.Table)
            place = batch["row"].to_numpy() - start
            local_LD[place] = batch["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
            arrived_L[place] = True
    except Exception as error:
        raise unwrap(error) from error
    if not arrived_L.all():
        raise SmecError(f"row {start + int(arrived_L.argmin())} did not arrive; the data changed while it was read")
    return ResidentRows(torch.from_numpy(local_LD), rows, group)
