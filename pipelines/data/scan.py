"""The one pass over a table: a small one in this process, others by Ray Data, spread over the cluster.

Shapes: K rows that are kept, M rows of the table, D dims.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds

from pipelines.console import RowProgress, telling
from pipelines.data.scan_state import ScanState
from pipelines.runtime.cluster import connect, unwrap
from smec_core.data.columns import ColumnNames
from smec_core.data.dataset import Dataset
from smec_core.data.lance_files import is_fragment
from smec_core.data.parquet import Batch, Block, EmbeddingTable, ParquetPart
from smec_core.data.parquet_files import READ_BUFFER_BYTES
from smec_core.data.scan import Cut, Keep, Scanned, TableScan, cut_rows, is_small, scan_cut, scan_table
from smec_core.data.table_files import open_rows
from smec_core.errors import StoreError, StoreUnreachable

if TYPE_CHECKING:
    import ray.data

ARRAYS = ("sum_D", "moment_DD", "x_KD")
TASK_ROWS = 1 << 17
"""Of a Lance dataset, whose fragments may have millions."""
SAVE_BYTES, MOST_PIECES = 16 << 30, 16
"""Vectors of so many bytes, or a share of a large table, are read again where a scan is killed."""


def scan(
    table: EmbeddingTable,
    keep: Keep,
    hash_M: np.ndarray | None = None,
    cpus: float = 1,
    storage: str | None = None,
) -> Scanned:
    """Reads every row of a table once.

    Args:
        table: the table.
        keep: which rows are kept.
        hash_M: hashes of all ids, in the order of the table; needed where all rows are kept.
        cpus: that the job needs at once, should a cluster have to be started.
        storage: folder or URI where a large table's finished pieces wait, should this process be killed.

    Raises:
        RowError: a row that is no sound vector.
        SmecError: rows that cannot be read.
    """
    if is_small(table):
        return scan_table(table, keep, hash_M)
    connect(cpus)
    found, progress = TableScan(keep, table.dim), RowProgress("read", table.rows)
    pieces = pieces_of(table)
    # where all rows are kept, they would be as much as the table itself
    state = ScanState(storage, table, keep, pieces) if storage and len(pieces) > 1 and not keep.is_whole else None
    for number, files in enumerate(pieces):
        piece = None if state is None else state.take(number)
        if piece is not None:
            progress.leave_out(sum(part.rows for part in files))
        else:
            piece = _read(table, files, keep, progress)
            if state is not None:
                state.put(number, piece)
        found.merge(piece)
    try:
        return found.finish(hash_M)
    finally:
        # also where the rows do not add up: then it is of no use to the next start
        if state is not None:
            state.remove()


def _read(table: EmbeddingTable, files: Sequence[ParquetPart], keep: Keep, progress: RowProgress) -> TableScan:
    """One piece, by Ray Data."""
    piece = TableScan(keep, table.dim)
    try:
        with telling("starting readers, or working on long files"):
            for cut in _cuts(table, files, keep):
                piece.add(cut)
                progress.add(cut.rows)
    except Exception as error:
        told = unwrap(error)
        if not _is_loss(error) and not isinstance(told, StoreError | StoreUnreachable):
            # one after another: what is wrong is then told by file and row
            for _ in table.blocks(files[0].start, files[-1].start + files[-1].rows):
                pass
        raise told from error
    return piece


def pieces_of(table: EmbeddingTable) -> list[list[ParquetPart]]:
    """Consecutive files that are read in one execution each: all together, unless reading them takes long.

    They are a matter of the table alone, so that a start on another cluster finds those of an earlier one.
    """
    files = [part for part in table.files if part.rows]
    row_bytes = 4 * table.dim
    least = max(SAVE_BYTES, -(-table.rows * row_bytes // MOST_PIECES))
    pieces: list[list[ParquetPart]] = [[]]
    for part in files:
        if sum(one.rows for one in pieces[-1]) * row_bytes >= least:
            pieces.append([])
        pieces[-1].append(part)
    return pieces


def read_all(dataset: Dataset) -> None:
    """Reads every row of a dataset, which then has its fingerprint.

    Raises:
        InputError: a row is bad.
        SmecError: rows that cannot be read.
    """
    checks = [scan(table, Keep(table.rows, 0)).check for table in dataset.tables]
    dataset.take_checks(checks)


def _is_loss(error: Exception) -> bool:
    """Whether it is a worker or a node that is gone, and not the data that are wrong."""
    from pipelines.runtime.file_tasks import WORKER_DIED

    return isinstance(error, WORKER_DIED)


def _cuts(table: EmbeddingTable, files: Sequence[ParquetPart], keep: Keep) -> Iterator[Cut]:
    """One execution of Ray Data over some files."""
    records = _reduced_fragments if is_fragment(files[0].path) else _reduced_files
    from pipelines.runtime.ray_private import reading

    with reading(records(table, files, keep).iter_batches(batch_size=None, batch_format="pyarrow")) as tables:
        for found in tables:
            assert isinstance(found, pa.Table)
            for row in range(len(found)):
                yield _cut(found.slice(row, 1), table.dim)


def _reduced_files(table: EmbeddingTable, files: Sequence[ParquetPart], keep: Keep) -> "ray.data.Dataset":
    """Records of the cuts of Parquet files."""
    import ray.data

    # Ray Data's newer reader does not verify checksums of pages
    context = ray.data.DataContext.get_current()
    before, context.use_datasource_v2 = context.use_datasource_v2, False
    checked = pds.ParquetFragmentScanOptions(
        use_buffered_stream=True, buffer_size=READ_BUFFER_BYTES, page_checksum_verification=True
    )
    columns, rows = [table.names.id, table.names.embedding], cut_rows(table.dim)
    reduce = partial(reduce_batch, dim=table.dim, names=table.names, keep=keep)
    try:
        reads = [
            ray.data.read_parquet(
                paths,
                filesystem=table.filesystem,
                partitioning=None,
                file_extensions=None,
                fragment_scan_options=checked,
            )
            .select_columns(columns)
            .map_batches(reduce, batch_size=rows, batch_format="pyarrow", zero_copy_batch=True)
            for paths in _of_one_type(table, files)
        ]
    finally:
        context.use_datasource_v2 = before
    return reads[0].union(*reads[1:]) if reads[1:] else reads[0]


def _reduced_fragments(table: EmbeddingTable, files: Sequence[ParquetPart], keep: Keep) -> "ray.data.Dataset":
    """Records of the cuts of fragments, several tasks of each: Ray Data's reader of Lance takes them whole."""
    import ray.data

    bounds = [range(part.start, part.start + part.rows + 1) for part in files]
    tasks = [
        {"start": start, "stop": min(start + TASK_ROWS, rows[-1])} for rows in bounds for start in rows[:-1:TASK_ROWS]
    ]
    reduce = partial(reduce_ranges, table=table, keep=keep)
    return ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        reduce, batch_size=1, batch_format="pyarrow"
    )


def _of_one_type(table: EmbeddingTable, files: Sequence[ParquetPart]) -> list[list[str]]:
    """Files whose columns have the same types: Ray Data casts all files of a read to those of one."""

    def types(part: ParquetPart) -> tuple[str, ...]:
        with open_rows(table.filesystem, part.path) as opened:
            return tuple(str(opened.schema.field(name).type) for name in (table.names.id, table.names.embedding))

    found = sorted((types(part), part.path) for part in files)
    return [[path for _, path in some] for _, some in groupby(found, key=lambda one: one[0])]


def reduce_batch(batch: pa.Table, dim: int, names: ColumnNames, keep: Keep) -> pa.Table:
    """A cut as a record of one row."""
    columns = [batch[name].combine_chunks() for name in (names.id, names.embedding)]
    rows = pa.RecordBatch.from_arrays(columns, ["id", "embedding"])
    # of which file these are is not known here
    return _record(Block.of(Batch(ParquetPart("", len(rows), 0), 0, rows, "", names), dim), keep)


def reduce_ranges(ranges: pa.Table, table: EmbeddingTable, keep: Keep) -> Iterator[pa.Table]:
    """Cuts of ranges of rows, each as a record of one row."""
    for rows in ranges.to_pylist():
        for block in table.blocks(rows["start"], rows["stop"], cut_rows(table.dim)):
            yield _record(block, keep)


def _record(block: Block, keep: Keep) -> pa.Table:
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
