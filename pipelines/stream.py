"""Embedding tables on Ray Data, read from within the workers of a run.

Shapes: N rows of a piece, D dims.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray
import ray.data
import torch
from ray.data import Dataset
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from pipelines.cluster import unwrap
from smec_core.parquet import EmbeddingTable, ParquetPart, embedding_column, unit_rows
from smec_core.resident import BLOCK_ROWS, Stream

PIECE_ROWS = 65_536
READS_AT_ONCE = 2


def stream_of(table: EmbeddingTable) -> Stream:
    """A table as a source of unit vectors: each call is one execution of Ray Data, in order of the rows."""

    def stream(start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        if start == stop:
            return
        try:
            for piece in _rows_dataset(table, start, stop).iter_batches(batch_size=None, batch_format="pyarrow"):
                assert isinstance(piece, pa.Table)
                row_N = piece["row"].to_numpy()
                x_ND = piece["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, table.dim)
                for low in range(0, len(row_N), BLOCK_ROWS):
                    part = slice(low, low + BLOCK_ROWS)
                    # copies: Arrow's memory is read-only
                    yield torch.from_numpy(row_N[part].copy()), torch.from_numpy(x_ND[part].copy())
        except Exception as error:
            raise unwrap(error) from error

    return stream


def _rows_dataset(table: EmbeddingTable, start: int, stop: int) -> Dataset:
    """Rows `start` to `stop` of a table as validated unit vectors with their global row numbers."""
    pieces = [
        {"path": part.path, "rows": part.rows, "first": part.start, "start": low, "stop": min(low + PIECE_ROWS, high)}
        for part, begin, high in _overlaps(table, start, stop)
        for low in range(begin, high, PIECE_ROWS)
    ]
    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces))
    dataset.context.execution_options.preserve_order = True
    read = partial(_read_piece, filesystem=table.filesystem, dim=table.dim)
    reads = min(READS_AT_ONCE, len(pieces))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # without a CPU of their own: all CPUs may belong to the workers, which wait for these reads
    return dataset.map_batches(
        read, batch_size=1, batch_format="pyarrow", num_cpus=0, concurrency=reads, scheduling_strategy=here
    )


def _overlaps(table: EmbeddingTable, start: int, stop: int) -> Iterator[tuple[ParquetPart, int, int]]:
    for part in table.files:
        low, high = max(part.start, start), min(part.start + part.rows, stop)
        if low < high:
            yield part, low, high


def _read_piece(piece: pa.Table, filesystem: pafs.FileSystem, dim: int) -> Iterator[pa.Table]:
    if not len(piece):
        return
    [one] = piece.to_pylist()
    table = EmbeddingTable(filesystem, [ParquetPart(one["path"], one["rows"], one["first"])], dim)
    for block in table.blocks(one["start"], one["stop"]):
        row_N = pa.array(np.arange(block.row, block.row + len(block.ids)))
        yield pa.table({"row": row_N, "embedding": embedding_column(unit_rows(block.vectors_ND))})
