"""Rows that cannot be used, taken out of a stream instead of ending it."""

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from smec_core.data.parquet import Batch, Block
from smec_core.errors import RowError


class BadRow(NamedTuple):
    """One row as it was stored, its row in the file, and what is wrong with it."""

    row: int
    reason: str
    stored: pa.RecordBatch


def separate(batch: Batch, dim: int) -> Iterator[Block | BadRow]:
    """Cuts a batch into blocks of sound rows and single bad ones, in their order."""
    try:
        yield Block.of(batch, dim)
    except RowError as error:
        rows = len(batch.rows)
        if rows == 1:
            yield BadRow(batch.row, error.reason, batch.rows)
            return
        # by halves: a check sees whole batches, and bad rows are few
        for start, stop in ((0, rows // 2), (rows // 2, rows)):
            piece = batch.rows.slice(start, stop - start)
            yield from separate(batch._replace(row=batch.row + start, rows=piece), dim)
