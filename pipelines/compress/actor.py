"""One task of `smec compress`: from a piece of an input file to its files of nested vectors.

    part.parquet                     vectors of one dim
    384/part.parquet, 96/...         of several: a folder each
    _quarantine/part.parquet         rows that are no sound vectors, with the reason

Shapes: N rows, D input dims (with upgrade: dims stored), d dims kept.
"""

import posixpath
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.runtime.file_tasks import record, report_errors
from pipelines.storage.files import new_file
from pipelines.storage.manifest import finish_task, finished_task
from smec_core.config import VectorType
from smec_core.data.parquet import ROW_GROUP_ROWS, Batch, Block, EmbeddingTable, ParquetPart
from smec_core.data.stored_files import describe
from smec_core.data.tables import find_manifest
from smec_core.data.uri import shown_path
from smec_core.errors import InputError, RowError, SmecError
from smec_core.model.model import Model
from smec_core.model.vector_types import check_columns, nested_columns, vector_fields

ROW_GROUP_BYTES = 32 << 20
QUARANTINE = "_quarantine"


class TooManyBadRows(InputError):
    """More rows would be set apart than the user allows."""


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


class Piece(NamedTuple):
    """Rows `start` to `stop` of a table, all of the file `part`, and the name of the output files."""

    part: int
    start: int
    stop: int
    name: str


class Job(NamedTuple):
    """What all tasks share.

    Attributes:
        model: the model.
        table: the input.
        filesystem, folder: where the output goes.
        dims: dims to keep, the largest first; several have a folder each.
        dtype: number type to store.
        upgrade: the input is what the model's base encoded.
        max_bad_rows: how many bad rows may be set apart; None: the first one ends the job.
        batch_rows: rows to multiply at a time.
    """

    model: Model
    table: EmbeddingTable
    filesystem: pafs.FileSystem
    folder: str
    dims: tuple[int, ...]
    dtype: VectorType
    upgrade: bool
    max_bad_rows: int | None
    batch_rows: int

    def targets(self, piece: Piece) -> dict[int, str]:
        """Name of a piece's file for each dim, within the folder."""
        return {dim: piece.name if len(self.dims) == 1 else f"{dim}/{piece.name}" for dim in self.dims}


def cut(table: EmbeddingTable, rows_per_file: int) -> list[Piece]:
    """Files as pieces; one of more rows is cut between its row groups, so that no worker gets much more than others."""
    pieces: list[Piece] = []
    names = [posixpath.basename(part.path) for part in table.files]
    if len({*names}) < len(names):
        # of a table whose files lie in folders: by these, too
        folder = posixpath.commonpath([posixpath.dirname(part.path) for part in table.files])
        names = [part.path.removeprefix(f"{folder}/").replace("/", "-") for part in table.files]
    for number, part in enumerate(table.files):
        bounds = [0]
        row = 0
        for rows in part.groups:
            if row - bounds[-1] and row + rows - bounds[-1] > rows_per_file:
                bounds.append(row)
            row += rows
        stem = names[number].removesuffix(".parquet")
        for count, (start, stop) in enumerate(zip(bounds, [*bounds[1:], part.rows], strict=True)):
            name = f"{stem}.parquet" if len(bounds) == 1 else f"{stem}.{count:05d}.parquet"
            pieces.append(Piece(number, part.start + start, part.start + stop, name))
    name, times = Counter(piece.name for piece in pieces).most_common(1)[0]
    if times > 1:
        raise InputError(f"two input files would become {name}; rename one")
    return pieces


class CompressPiece:
    """Ray actor that compresses a piece a call, and skips one that an earlier, killed run has finished."""

    def __init__(self, job: Job, gpu: bool) -> None:
        self.job = job
        self.device = "cuda" if gpu else "cpu"

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Takes a piece as a dict, gives records as `run_file_tasks` reads them."""
        piece = Piece(**task)
        part = self.job.table.files[piece.part]
        return report_errors(self._compress(piece, part), self.job.table.shown(part))

    def _compress(self, piece: Piece, part: ParquetPart) -> Iterator[dict[str, Any]]:
        job = self.job
        files = finished_task(job.filesystem, job.folder, piece.name)
        if files is None:
            self._check_open()
            rows = yield from self._write(piece, part)
            files = [describe(job.filesystem, f"{job.folder}/{name}", name, count) for name, count in rows.items()]
            finish_task(job.filesystem, job.folder, piece.name, files)
        for file in files:
            yield record(done=file)

    def _check_open(self) -> None:
        """Ends a run that another one of the same plan has overtaken: no file of a published version is replaced.

        Raises:
            SmecError: it was.
        """
        if find_manifest(self.job.filesystem, self.job.folder) is not None:
            place = shown_path(self.job.filesystem, self.job.folder)
            raise SmecError(f"{place}: another run has published this version meanwhile; run again")

    def _write(self, piece: Piece, part: ParquetPart) -> Generator[dict[str, Any], None, dict[str, int]]:
        """Writes the piece's files; returns the rows of each."""
        job, place = self.job, self.job.table.shown(part)
        schema = job.table.schema_of(part)
        check_columns(schema.names, job.dtype, place)
        if job.max_bad_rows is not None and (taken := {"file", "row", "reason"} & set(schema.names)):
            raise InputError(f"{place}: column {min(taken)}: bad rows that are set apart need this name; rename it")
        at = schema.get_field_index("embedding")
        before, after = list(schema)[:at], list(schema)[at + 1 :]
        # without the schema's metadata: what other libraries note about the columns (pandas, datasets) no longer holds
        schemas = {dim: pa.schema([*before, *vector_fields(dim, job.dtype), *after]) for dim in job.dims}
        with ExitStack() as files:
            outputs = {
                dim: files.enter_context(_writer(job, target, schemas[dim]))
                for dim, target in job.targets(piece).items()
            }
            bad: RowGroups | None = None
            rows = sound_rows = bad_rows = 0
            for found in self._read(piece, schema.names):
                if isinstance(found, BadRow):
                    bad_rows += 1
                    if bad_rows > (job.max_bad_rows or 0):
                        raise too_many_bad_rows(job, bad_rows, place, found.row, found.reason)
                    table = quarantined(found, place)
                    bad = bad or files.enter_context(_writer(job, f"{QUARANTINE}/{piece.name}", table.schema))
                    bad.add(table)
                    rows += 1
                    continue
                self._encode(found, schemas, outputs, place)
                rows += len(found.ids)
                sound_rows += len(found.ids)
                if rows >= ROW_GROUP_ROWS:
                    yield record(rows=rows)
                    rows = 0
            # before the files appear
            self._check_open()
        yield record(rows=rows)
        if sound_rows + bad_rows != piece.stop - piece.start:
            raise SmecError(f"{place}: not all of its rows reached {shown_path(job.filesystem, job.folder)}; run again")
        kept = dict.fromkeys(job.targets(piece).values(), sound_rows)
        return kept | ({f"{QUARANTINE}/{piece.name}": bad_rows} if bad_rows else {})

    def _read(self, piece: Piece, columns: Sequence[str]) -> Iterator[Block | BadRow]:
        table = self.job.table
        if self.job.max_bad_rows is None:
            yield from table.blocks(piece.start, piece.stop, self.job.batch_rows, columns)
            return
        for batch in table.batches(piece.start, piece.stop, self.job.batch_rows, columns, any_row=True):
            yield from separate(batch, table.dim)

    def _encode(self, block: Block, schemas: dict[int, pa.Schema], outputs: dict[int, "RowGroups"], place: str) -> None:
        job = self.job
        by_dim = nested_columns(
            block.vectors_ND,
            block.ids,
            job.dims,
            job.dtype,
            job.model,
            place,
            upgrade=job.upgrade,
            device=self.device,
        )
        for dim, columns in by_dim.items():
            stored = [columns[name] if name in columns else block.table[name] for name in schemas[dim].names]
            outputs[dim].add(pa.table(stored, schema=schemas[dim]))


class RowGroups:
    """Collects tables into row groups of a size that reads well."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._pending: list[pa.Table] = []
        self._rows = self._bytes = 0

    def add(self, table: pa.Table) -> None:
        """Takes some rows, and writes a row group when there are enough."""
        self._pending.append(table)
        self._rows += len(table)
        self._bytes += table.nbytes
        if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is left."""
        if self._pending:
            table = pa.concat_tables(self._pending)
            self._writer.write_table(table, row_group_size=len(table))
            self._pending.clear()
            self._rows = self._bytes = 0


def too_many_bad_rows(job: Job, bad: int, file: str, row: int, reason: str) -> TooManyBadRows:
    """The error of a run that would set more rows apart than the user allows."""
    return TooManyBadRows(
        f"at least {bad:,} of {job.table.rows:,} rows are no sound vectors, and max_bad_rows allows "
        f"{job.max_bad_rows:,}; one of them: {file}: row {row}, {reason}; fix them, or allow more "
        "(--set max_bad_rows=SHARE)"
    )


def quarantined(bad: BadRow, file: str) -> pa.Table:
    """One bad row as it was stored, with the input file, its row there and the reason."""
    # a copy: a slice would keep its whole batch in memory
    table = pa.Table.from_batches([bad.stored]).take([0])
    for name, value in {"file": file, "row": bad.row, "reason": bad.reason}.items():
        table = table.append_column(name, pa.array([value]))
    return table


@contextmanager
def _writer(job: Job, target: str, schema: pa.Schema) -> Iterator[RowGroups]:
    vectors = {field.name: field.type for field in vector_fields(job.dims[0], job.dtype)}
    # Parquet has no integers below 32 bits, but an index into a dictionary of 256 takes a byte; floats hardly repeat
    small = [f"{name}.list.element" for name, kind in vectors.items() if pa.types.is_integer(kind.value_type)]
    others = [name for name in schema.names if name not in vectors]
    with (
        new_file(job.filesystem, f"{job.folder}/{target}") as sink,
        pq.ParquetWriter(sink, schema, use_dictionary=[*others, *small], write_page_checksum=True) as writer,
    ):
        rows = RowGroups(writer)
        yield rows
        rows.flush()
