"""What the readers of an embedding table on Ray Data do; without torch, which every reader would wait for.

Shapes: N rows.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.data.columns import ColumnNames
from smec_core.data.parquet import EmbeddingTable, ParquetPart, embedding_column, unit_rows


def read_piece(piece: pa.Table, filesystem: pafs.FileSystem, dim: int, names: ColumnNames) -> Iterator[pa.Table]:
    """Reads a piece of a file, given as one row: `path`, `rows`, `first` of the file, and `start` and `stop`.

    Yields:
        `row`, the global row, and `embedding`, a unit vector; some thousand rows at a time.

    Raises:
        SmecError: a row that is no sound vector, or cannot be read.
    """
    if not len(piece):
        return
    [one] = piece.to_pylist()
    table = EmbeddingTable(filesystem, [ParquetPart(one["path"], one["rows"], one["first"])], dim, names)
    for block in table.blocks(one["start"], one["stop"]):
        row_N = pa.array(np.arange(block.row, block.row + len(block.ids)))
        yield pa.table({"row": row_N, "embedding": embedding_column(unit_rows(block.vectors_ND))})
