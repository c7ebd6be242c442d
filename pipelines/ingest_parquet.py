"""Text and judgements in Parquet, as datasets on the Hugging Face hub have them.

    corpus, queries     _id or id, text, and title where there is one
    judgements          query-id, corpus-id, score, or query_id, doc_id, score

Ids are strings; whole numbers, which CSV readers make of them, are taken as written. Shapes: P judgements.
"""

import posixpath
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.ingest_rows import MAX_SCORE, QRELS_SCHEMA, START, Position, Text
from smec_core.errors import InputError, one_line

READ_ROWS = 1024
ID, TITLE, TEXT = ("_id", "id"), ("title",), ("text",)
QUERY, DOCUMENT, SCORE = ("query-id", "query_id"), ("corpus-id", "doc_id"), ("score",)


class ParquetTexts:
    """The texts of Parquet files; an offset is a row.

    Attributes:
        path: the file, or the folder of several.
    """

    def __init__(self, filesystem: pafs.FileSystem, paths: list[str]) -> None:
        self.filesystem = filesystem
        self.paths = paths
        self.path = paths[0] if len(paths) == 1 else posixpath.dirname(paths[0])

    def read(self, start: Position = START) -> Iterator[Text]:
        """Validated texts from a position on; only the row groups that hold them are read.

        Raises:
            InputError: an unreadable file, a missing or wrongly typed column, a null or an empty id.
        """
        for file in range(start.file, len(self.paths)):
            first = start.offset if file == start.file else 0
            yield from self._read_file(file, first)

    def locate(self, position: Position) -> str:
        """Names the file and the row, from 0."""
        return f"{self.paths[position.file]}: row {position.before}"

    def _read_file(self, file: int, first: int) -> Iterator[Text]:
        path, row = self.paths[file], 0
        try:
            with pq.ParquetFile(path, filesystem=self.filesystem, pre_buffer=False) as parquet:
                schema = parquet.schema_arrow
                names = [_find(path, schema, ID), _find(path, schema, TEXT)]
                names += [name for name in TITLE if name in schema.names]
                for group in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    if row + rows > first:
                        for batch in parquet.iter_batches(READ_ROWS, row_groups=[group], columns=names):
                            yield from self._texts(batch, names, file, row, max(first - row, 0))
                            row += len(batch)
                    else:
                        row += rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: rows from {row} on cannot be read ({one_line(error)})") from error

    def _texts(self, batch: pa.RecordBatch, names: list[str], file: int, row: int, skipped: int) -> Iterator[Text]:
        path = self.paths[file]
        keys = _strings(batch[names[0]], path, names[0], row, numbers=True).to_pylist()
        texts = _strings(batch[names[1]], path, names[1], row).to_pylist()
        titles = [None] * len(batch)
        if len(names) > 2:
            titles = _strings(batch[names[2]], path, names[2], row, nulls=True).to_pylist()
        for index in range(skipped, len(batch)):
            position = Position(file, row + index, row + index)
            if not keys[index]:
                raise InputError(f"{self.locate(position)}, column {names[0]}: is empty; every row needs an id")
            yield Text.checked(position, self.locate(position), keys[index], titles[index], texts[index])


def read_parquet(filesystem: pafs.FileSystem, path: str) -> pa.Table:
    """Judgements of one file.

    Raises:
        InputError: an unreadable file, a missing or wrongly typed column, a null, or a score that is no whole number.
    """
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as parquet:
            schema = parquet.schema_arrow
            query, document, score = (_find(path, schema, names) for names in (QUERY, DOCUMENT, SCORE))
            table = parquet.read(columns=[query, document, score])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({one_line(error)})") from error
    columns = [_strings(table[name], path, name, numbers=True) for name in (query, document)]
    return pa.table([*columns, _scores(table[score], path, score)], schema=QRELS_SCHEMA)


def _find(path: str, schema: pa.Schema, names: Sequence[str]) -> str:
    """The first of some names that is a column."""
    for name in names:
        if name in schema.names:
            return name
    raise InputError(
        f"{path}: column {' or '.join(names)} is missing; it holds {', '.join(schema.names) or 'no columns'}"
    )


def _strings(
    column: pa.Array | pa.ChunkedArray, path: str, name: str, row: int = 0, numbers: bool = False, nulls: bool = False
) -> pa.Array | pa.ChunkedArray:
    """A column as strings; `row` is the file's row of its first."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    fits = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    # a column of nothing but nulls has no type
    if not (fits or (numbers and pa.types.is_integer(kind)) or (nulls and pa.types.is_null(kind))):
        raise InputError(f"{path}: column {name} is {column.type}; it must be string")
    if column.null_count and not nulls:
        raise InputError(f"{path}: row {row + _first(pc.is_null(column))}, column {name}: is null")
    return pc.cast(column, pa.string())


def _scores(column: pa.ChunkedArray, path: str, name: str) -> pa.ChunkedArray:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"{path}: column {name} is {column.type}; it must be a number")
    if column.null_count:
        raise InputError(f"{path}: row {_first(pc.is_null(column))}, column {name}: is null")
    scores_P = pc.cast(column, pa.float64(), safe=False).to_numpy()
    # the comparisons are false for NaN, too
    bad_P = ~((scores_P == np.floor(scores_P)) & (np.abs(scores_P) <= MAX_SCORE))
    if bad_P.any():
        row = int(bad_P.argmax())
        raise InputError(f"{path}: row {row}, column {name}: {column[row]} is no whole score")
    return pc.cast(column, pa.int32())


def _first(flags: pa.Array | pa.ChunkedArray) -> int:
    return int(pc.index(flags, True).as_py())
