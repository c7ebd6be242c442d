"""The one pass over a table: a small one in this process, others by Ray Data, spread over the cluster.

Shapes: K rows that are kept, M rows of the table, D dims.
"""

from collections.abc import Iterator
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.runtime.cluster import connect, unwrap
from pipelines.runtime.file_tasks import RowProgress
from smec_core.data.columns import ColumnNames
from smec_core.data.parquet import Batch, Block, EmbeddingTable, ParquetPart
from smec_core.data.scan import Cut, Keep, Scanned, TableScan, cut_rows, scan_cut, scan_table

ARRAYS = ("sum_D", "moment_DD", "x_KD")
SMALL_BYTES = 128 << 20
"""Vectors of so many bytes are read before Ray Data would have started."""


def scan(table: EmbeddingTable, keep: Keep, hash_M: np.ndarray | None = None) -> Scanned:
    """Reads every row of a table once.

    Args:
        table: the table.
        keep: which rows are kept.
        hash_M: hashes of all ids, in the order of the table; needed where all rows are kept.

    Raises:
        RowError: a row that is no sound vector.
        SmecError: rows that cannot be read.
    """
    if 4 * table.rows * table.dim <= SMALL_BYTES:
        return scan_table(table, keep, hash_M)
    connect(1)
    found, progress = TableScan(keep, table.dim), RowProgress("read", table.rows)
    try:
        for cut in _cuts(table, keep):
            found.add(cut)
            progress.add(cut.rows)
    except Exception as error:
        # one after another: what is wrong is then told by file and row
        for _ in table.blocks():
            pass
        raise unwrap(error) from error
    return found.finish(hash_M)


def _cuts(table: EmbeddingTable, keep: Keep) -> Iterator[Cut]:
    """One execution of Ray Data over all files."""
    import ray.data

    columns, rows = [table.names.id, table.names.embedding], cut_rows(table.dim)
    reduce = partial(reduce_batch, dim=table.dim, names=table.names, keep=keep)
    reads = [
        ray.data.read_parquet(paths, filesystem=table.filesystem, partitioning=None, file_extensions=None)
        .select_columns(columns)
        .map_batches(reduce, batch_size=rows, batch_format="pyarrow", zero_copy_batch=True)
        for paths in _of_one_type(table)
    ]
    dataset = reads[0].union(*reads[1:]) if reads[1:] else reads[0]
    for records in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(records, pa.Table)
        for row in range(len(records)):
            yield _cut(records.slice(row, 1), table.dim)


def _of_one_type(table: EmbeddingTable) -> list[list[str]]:
    """Files whose columns have the same types: Ray Data casts all files of a read to those of one."""

    def types(part: ParquetPart) -> tuple[str, ...]:
        schema = pq.read_schema(part.path, filesystem=table.filesystem)
        return tuple(str(schema.field(name).type) for name in (table.names.id, table.names.embedding))

    found = sorted((types(part), part.path) for part in table.files if part.rows)
    return [[path for _, path in some] for _, some in groupby(found, key=lambda one: one[0])]


def reduce_batch(batch: pa.Table, dim: int, names: ColumnNames, keep: Keep) -> pa.Table:
    """A cut as a record of one row."""
    rows = batch.select([names.id, names.embedding]).rename_columns(["id", "embedding"]).combine_chunks()
    # of which file these are is not known here
    block = Block.of(Batch(ParquetPart("", len(rows), 0), 0, rows.to_batches()[0], names), dim)
    cut = scan_cut(block.ids, block.vectors_ND, keep)
    record = {"rows": pa.array([cut.rows]), "check": pa.array([cut.check], pa.uint64())}
    arrays = {name: pa.array(np.ascontiguousarray(getattr(cut, name)).reshape(-1)) for name in ARRAYS}
    for name, values in (arrays | {"id_K": cut.id_K}).items():
        record[name] = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
    return pa.table(record)


def _cut(record: pa.Table, dim: int) -> Cut:
    sum_D, moment, x = (record[name].combine_chunks().flatten().to_numpy() for name in ARRAYS)
    rows, check = record["rows"][0].as_py(), record["check"][0].as_py()
    ids = record["id_K"].combine_chunks().flatten()
    return Cut(rows, check, sum_D, moment.reshape(dim, dim), ids, x.reshape(-1, dim))
