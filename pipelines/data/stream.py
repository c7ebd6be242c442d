"""Embedding tables on Ray Data, read from within the workers of a run.

Shapes: N rows of a piece, D dims.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import Dataset
from torch import Tensor

from pipelines.data.reader import read_piece
from pipelines.runtime.cluster import unwrap
from smec_core.data.parquet import EmbeddingTable, ParquetPart
from smec_core.distributed.resident import BLOCK_ROWS, Stream
from smec_core.errors import SmecError
from smec_core.training.local import local_stream

PIECE_ROWS = 65_536
READS_AT_ONCE = 2
# what this process reads by itself in about the time that readers of Ray Data take to start
HEAD_BYTES = 1 << 30


def stream_of(table: EmbeddingTable) -> Stream:
    """A table as a source of unit vectors: the first rows are read here, the others by one execution of Ray Data."""

    def stream(start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        head = min(start + HEAD_BYTES // (4 * table.dim), stop)
        try:
            if head == stop:
                yield from local_stream(table)(start, stop)
                return
            with closing(_pieces(table, head, stop)) as pieces, ThreadPoolExecutor(1) as starter:
                first = starter.submit(next, pieces)
                yield from local_stream(table)(start, head)
                yield from _blocks(first.result())
                for piece in pieces:
                    yield from _blocks(piece)
        except SmecError:
            raise
        except Exception as error:
            raise unwrap(error) from error

    return stream


def _pieces(table: EmbeddingTable, start: int, stop: int) -> Generator[pa.Table, None, None]:
    yield from _rows_dataset(table, start, stop).iter_batches(batch_size=None, batch_format="pyarrow")


def _blocks(piece: pa.Table) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in piece.to_batches(max_chunksize=BLOCK_ROWS):
        x_ND = rows["embedding"].flatten().to_numpy().reshape(-1, rows["embedding"].type.list_size)
        # copies: Arrow's memory is read-only
        yield torch.from_numpy(rows["row"].to_numpy().copy()), torch.from_numpy(x_ND.copy())


def _rows_dataset(table: EmbeddingTable, start: int, stop: int) -> Dataset:
    """Rows `start` to `stop` of a table as validated unit vectors with their global row numbers, in order."""
    pieces = [
        {"path": part.path, "rows": part.rows, "first": part.start, "start": low, "stop": min(low + PIECE_ROWS, high)}
        for part, begin, high in _overlaps(table, start, stop)
        for low in range(begin, high, PIECE_ROWS)
    ]
    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces))
    dataset.context.execution_options.preserve_order = True
    read = partial(read_piece, filesystem=table.filesystem, dim=table.dim, names=table.names)
    reads = min(READS_AT_ONCE, len(pieces))
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    # without a CPU of their own: all CPUs may belong to the workers, which wait for these reads
    return dataset.map_batches(
        read,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,
        concurrency=reads,
        label_selector=here,
        fallback_strategy=[{"label_selector": {}}],
    )


def _overlaps(table: EmbeddingTable, start: int, stop: int) -> Iterator[tuple[ParquetPart, int, int]]:
    for part in table.files:
        low, high = max(part.start, start), min(part.start + part.rows, stop)
        if low < high:
            yield part, low, high
