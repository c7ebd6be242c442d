"""Files of a click log: Parquet, CSV with a header, or lines of JSON, read a batch at a time.

What is read here is not checked yet but for the columns of the files; see `rows.py`.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pacsv
from pydantic import Field

from smec_core.clicks.files import find_log
from smec_core.config import Settings
from smec_core.data.columns import ColumnNames, Wanted, judge_schema
from smec_core.data.table_files import open_rows
from smec_core.data.uri import open_filesystem, shown_path, without_slash
from smec_core.errors import InputError, SmecError, one_line

BATCH_ROWS = 1 << 18
BLOCK_BYTES = 1 << 24
IDS = ("query_id", "doc_id")
OPTIONAL = ("count", "timestamp", "rank", "clicked")


class ClickColumns(Settings):
    """What the columns of a click log, and of the dataset beside it, are called."""

    id: str = Field("id", min_length=1)
    """Of DATA's corpus and queries: the id of a row."""
    embedding: str = Field("embedding", min_length=1)
    """Of DATA's corpus and queries: its vector."""
    query_id: str = Field("query_id", min_length=1)
    """Of CLICKS: the query."""
    doc_id: str = Field("doc_id", min_length=1)
    """Of CLICKS: the document."""
    count: str = Field("count", min_length=1)
    """Of CLICKS: how many events a row stands for; one where there is no such column."""
    timestamp: str = Field("timestamp", min_length=1)
    """Of CLICKS: when it was."""
    rank: str = Field("rank", min_length=1)
    """Of CLICKS: where the document was shown, from 1."""
    clicked: str = Field("clicked", min_length=1)
    """Of CLICKS: 1 where the document was clicked, 0 where it was only shown. All rows are clicks where there is no
    such column."""

    @property
    def of_data(self) -> ColumnNames:
        """Those of the dataset."""
        return ColumnNames(id=self.id, embedding=self.embedding)


class RawRows(NamedTuple):
    """Consecutive rows of a file as they are stored.

    Attributes:
        path: the file, as it is shown.
        unit: what its rows are called: row, from 0, or line, from 1.
        row: number of the first.
        is_text: whether the values are text, as in CSV and JSON, and not of the types that Parquet has.
        columns: those of IDS and OPTIONAL that are wanted, by these names.
    """

    path: str
    unit: str
    row: int
    is_text: bool
    columns: dict[str, pa.Array]


class ClickLog:
    """A click log that was found.

    Attributes:
        paths: its files, sorted.
        first: the first of them, as it is shown.
        present: the columns of OPTIONAL that it has.
    """

    def __init__(self, uri: str, names: ClickColumns) -> None:
        """Finds the files and judges the columns of each; no row is read.

        Raises:
            InputError: nothing there, files of several kinds, columns that are missing, or differ between the files,
                or two names for one column.
        """
        _check_apart(names)
        self.filesystem, root = open_filesystem(without_slash(uri))
        self.names = names
        self.form, self.paths = find_log(self.filesystem, root)
        self._schemas = {path: self._schema(path) for path in self.paths}
        found = {self._shown(path): self._present(path, schema) for path, schema in self._schemas.items()}
        self.first = first = self._shown(self.paths[0])
        self.present = found[first]
        for path, present in found.items():
            if odd := sorted(set(present) ^ set(self.present)):
                has, lacks = (path, first) if odd[0] in present else (first, path)
                raise InputError(
                    f"{lacks}: column {getattr(names, odd[0])} is missing, but {has} has it; give all files of a log "
                    "the same columns"
                )

    def batches(self, wanted: Sequence[str]) -> Iterator[RawRows]:
        """All rows, file by file.

        Args:
            wanted: the columns to read, of IDS and OPTIONAL.

        Raises:
            InputError: a file that cannot be read, or a malformed line.
        """
        stored = {name: str(getattr(self.names, name)) for name in wanted}
        read = {".parquet": self._read_parquet, ".csv": self._read_csv, ".jsonl": self._read_lines}[self.form]
        for path in self.paths:
            with _reading(self._shown(path)):
                yield from read(path, stored)

    def _shown(self, path: str) -> str:
        return shown_path(self.filesystem, path)

    def _schema(self, path: str) -> pa.Schema:
        shown = self._shown(path)
        with _reading(shown):
            if self.form == ".parquet":
                with open_rows(self.filesystem, path) as opened:
                    return opened.schema
            if self.form == ".csv":
                with self.filesystem.open_input_stream(path) as stream:
                    names = pacsv.open_csv(stream, pacsv.ReadOptions(use_threads=False)).schema.names
                return pa.schema([(name, pa.string()) for name in names])
            with self.filesystem.open_input_stream(path) as stream:
                first = next((_parsed(shown, *line) for line in _lines(stream)), {})
            return pa.schema([(name, pa.string()) for name in first])
        raise AssertionError

    def _present(self, path: str, schema: pa.Schema) -> list[str]:
        """Optional columns of a file; whoever gives a column's name expects it to be there."""
        shown, wanted = self._shown(path), {name: Wanted((getattr(self.names, name),), "id") for name in IDS}
        judge_schema(shown, schema, wanted)
        for name in sorted(self.names.model_fields_set & set(OPTIONAL)):
            if getattr(self.names, name) not in schema.names:
                holds = ", ".join(schema.names)
                raise InputError(
                    f"{shown}: column {getattr(self.names, name)} (columns.{name}) is missing; it holds {holds}"
                )
        present = [name for name in OPTIONAL if getattr(self.names, name) in schema.names]
        for name in OPTIONAL:
            stored = getattr(self.names, name)
            if f"/{stored}=" in f"/{path}":
                raise InputError(
                    f"{shown}: column {stored} is part of the path, where it is not read; write it into the files"
                )
            near = [other for other in schema.names if _plain(other) == _plain(stored)]
            if name not in present and near:
                raise InputError(
                    f"{shown}: column {near[0]} would be passed over; rename it to {stored}, say "
                    f"--set columns.{name}={near[0]}, or leave it out of the log"
                )
        return present

    def _read_parquet(self, path: str, stored: dict[str, str]) -> Iterator[RawRows]:
        shown = self._shown(path)
        with open_rows(self.filesystem, path) as opened:
            for row, batch in opened.batches(list(stored.values()), BATCH_ROWS):
                yield RawRows(shown, "row", row, False, {name: batch[column] for name, column in stored.items()})

    def _read_csv(self, path: str, stored: dict[str, str]) -> Iterator[RawRows]:
        shown, columns, row = self._shown(path), list(stored.values()), 0
        convert = pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=columns, strings_can_be_null=False
        )
        # one thread: with several, errors do not name the row
        options = pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
        with self.filesystem.open_input_stream(path) as stream:
            for batch in pacsv.open_csv(stream, options, convert_options=convert):
                yield RawRows(shown, "row", row, True, {name: batch[column] for name, column in stored.items()})
                row += len(batch)

    def _read_lines(self, path: str, stored: dict[str, str]) -> Iterator[RawRows]:
        shown, kinds = self._shown(path), dict[str, type]()
        absent = [str(getattr(self.names, name)) for name in OPTIONAL if name not in self.present]
        with self.filesystem.open_input_stream(path) as stream:
            held: list[dict[str, Any]] = []
            first = 1
            for number, raw in _lines(stream):
                if len(held) == BATCH_ROWS // 4:
                    yield _as_text(shown, first, held, stored, kinds)
                    held, first = [], number
                held.append(_parsed(shown, number, raw))
                if odd := next((column for column in absent if column in held[-1]), None):
                    raise InputError(
                        f"{shown}: line {number}: has {odd}, which line 1 has not; give all lines the same keys"
                    )
            yield _as_text(shown, first, held, stored, kinds)


def _check_apart(names: ClickColumns) -> None:
    """Refuses one column of a log for two things.

    Raises:
        InputError: there is one.
    """
    of: dict[str, str] = {}
    for name in (*IDS, *OPTIONAL):
        stored = getattr(names, name)
        if stored in of:
            raise InputError(
                f"columns.{of[stored]} and columns.{name}: both name the column {stored}; give each a column of its own"
            )
        of[stored] = name


def _plain(name: str) -> str:
    """A column's name as one may have meant it."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns what readers raise into one line that names the file."""
    try:
        yield
    except SmecError:
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        # of CSV pyarrow counts rows from 1, and the header is one
        why = re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - 2}", one_line(error))
        raise InputError(f"{path}: cannot be read ({why}); fix the file, or write it anew") from error


def _lines(stream: pa.NativeFile) -> Iterator[tuple[int, bytes]]:
    """Lines from 1; a blank one, at the end too, is refused as no JSON."""
    yield from enumerate(io.BufferedReader(stream, BLOCK_BYTES), start=1)


def _parsed(path: str, number: int, raw: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: line {number}: is not JSON ({one_line(error)}); fix or remove it") from None
    if not isinstance(entry, dict):
        raise InputError(f'{path}: line {number}: is no JSON object; write {{"query_id": ..., "doc_id": ...}}')
    return entry


def _as_text(
    path: str, first: int, held: list[dict[str, Any]], stored: dict[str, str], kinds: dict[str, type]
) -> RawRows:
    """Values of lines as text; `kinds` has the type of the ids of the lines before.

    Raises:
        InputError: an id of another type than those before it, or a value that is no plain one.
    """
    columns = {}
    for name, column in stored.items():
        values: list[str | None] = []
        for place, entry in enumerate(held):
            value = entry.get(column)
            if isinstance(value, dict | list) or (name in IDS and isinstance(value, float | bool)):
                must_be = "a string or a whole number" if name in IDS else "a number or text"
                raise InputError(f"{path}: line {first + place}, column {column}: {value!r} is not {must_be}")
            if name in IDS and value is not None and kinds.setdefault(name, type(value)) is not type(value):
                raise InputError(
                    f"{path}: line {first + place}, column {column}: {value!r} is {_called(type(value))}, but ids "
                    f"before it are {_called(kinds[name])}s; write all ids of a column the same way"
                )
            values.append(str(value).lower() if isinstance(value, bool) else None if value is None else str(value))
        try:
            columns[name] = pa.array(values, pa.string())
        except UnicodeEncodeError:
            place = next(place for place, value in enumerate(values) if value is not None and not _is_text(value))
            raise InputError(
                f"{path}: line {first + place}, column {column}: half of a surrogate pair, which is no text; fix or "
                "remove it"
            ) from None
    return RawRows(path, "line", first, True, columns)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _called(kind: type) -> str:
    return "string" if kind is str else "whole number"
