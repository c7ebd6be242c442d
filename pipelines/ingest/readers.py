"""Readers of text: BEIR's own format, and Parquet as datasets on the Hugging Face hub have it.

KIND.jsonl       {"_id": "...", "title": "...", "text": "..."}, one a line; queries need no title
KIND/*.parquet   the columns _id or id, text, and title where there is one
"""

import io
import json
import posixpath
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.data.columns import Wanted, ids_of, judge_schema, strings_of
from smec_core.data.table_files import open_rows
from smec_core.data.uri import shown_path
from smec_core.errors import InputError, first_line

READ_BYTES = 1 << 20
READ_ROWS = 1024
COLUMNS = {"_id": Wanted(("_id", "id"), "id"), "text": Wanted(("text",), "text")}
TITLE = {"title": Wanted(("title",), "text")}


class Place(NamedTuple):
    """A folder on a file system."""

    filesystem: pafs.FileSystem
    path: str

    def join(self, name: str) -> str:
        """Path of something in the folder."""
        return f"{self.path}/{name}"

    def shown(self, name: str) -> str:
        """The same as messages name it."""
        return shown_path(self.filesystem, self.join(name))


class Position(NamedTuple):
    """Where a text lies: number of the file, where to begin reading in it (a byte or a row), rows before it."""

    file: int = 0
    offset: int = 0
    before: int = 0


START = Position()


class Text(NamedTuple):
    """One document or query: `text` is what is encoded, with the title first."""

    position: Position
    id: str
    text: str

    @classmethod
    def checked(cls, position: Position, where: str, key: str, title: str | None, text: str) -> "Text":
        """Joins title and text.

        Raises:
            InputError: id or text cannot be stored.
        """
        joined = f"{title or ''} {text}".strip()
        try:
            key.encode()
            joined.encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: holds half of a surrogate pair, which is no text; fix or remove it") from None
        return cls(position, key, joined)


class JsonLines:
    """The texts of one .jsonl file, of which messages say that it is at `place`; an offset is a byte."""

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self.filesystem = filesystem
        self.path = path
        self.place = shown_path(filesystem, path)

    def read(self, start: Position = START) -> Iterator[Text]:
        """Yields validated texts from a position on; skips blank lines.

        Raises:
            InputError: a line that is no such record.
        """
        position = start
        with self.filesystem.open_input_file(self.path) as file:
            file.seek(start.offset)
            for raw in io.BufferedReader(file, READ_BYTES):
                if raw.strip():
                    yield self._parse(raw, position)
                position = Position(0, position.offset + len(raw), position.before + 1)

    def locate(self, position: Position) -> str:
        """Names the file and the line, from 1."""
        return f"{self.place}: line {position.before + 1}"

    def _parse(self, raw: bytes, position: Position) -> Text:
        where = self.locate(position)
        try:
            entry = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({first_line(error)})") from None
        values = entry if isinstance(entry, dict) else {}
        key, title, text = (values.get(name) for name in ("_id", "title", "text"))
        if not isinstance(key, str) or not key:
            raise InputError(f"{where}: needs an _id that is a string")
        if not isinstance(text, str) or not isinstance(title, str | None):
            raise InputError(f"{where}: text must be a string, and title, where there is one, too")
        return Text.checked(position, where, key, title, text)


class ParquetTexts:
    """The texts of Parquet files, of which messages say that they are at `place`, one file or their folder.

    An offset is a row.
    """

    def __init__(self, filesystem: pafs.FileSystem, paths: list[str]) -> None:
        self.filesystem = filesystem
        self.paths = paths
        self.place = shown_path(filesystem, paths[0] if len(paths) == 1 else posixpath.dirname(paths[0]))

    def read(self, start: Position = START) -> Iterator[Text]:
        """Yields validated texts from a position on; reads only the row groups that hold them.

        Raises:
            InputError: an unreadable file, a missing or wrongly typed column, a null or an empty id.
        """
        for file in range(start.file, len(self.paths)):
            yield from self._read_file(file, start.offset if file == start.file else 0)

    def locate(self, position: Position) -> str:
        """Names the file and the row, from 0."""
        return f"{self._shown(position.file)}: row {position.before}"

    def _shown(self, file: int) -> str:
        return shown_path(self.filesystem, self.paths[file])

    def _read_file(self, file: int, first: int) -> Iterator[Text]:
        with open_rows(self.filesystem, self.paths[file]) as opened:
            wanted = COLUMNS | (TITLE if "title" in opened.schema.names else {})
            names = list(judge_schema(self._shown(file), opened.schema, wanted).values())
            for row, batch in opened.batches(names, READ_ROWS, start=first):
                yield from self._texts(batch, names, file, row, max(first - row, 0))

    def _texts(self, batch: pa.RecordBatch, names: list[str], file: int, row: int, skipped: int) -> Iterator[Text]:
        shown = self._shown(file)
        keys = ids_of(batch[names[0]], shown, names[0], row).to_pylist()
        texts = strings_of(batch[names[1]], shown, names[1], row, what="a text").to_pylist()
        titles = [None] * len(batch)
        if len(names) > 2:
            titles = strings_of(batch[names[2]], shown, names[2], row, nulls=True).to_pylist()
        for index in range(skipped, len(batch)):
            position = Position(file, row + index, row + index)
            where = self.locate(position)
            yield Text.checked(position, where, keys[index], titles[index], texts[index])


Texts = JsonLines | ParquetTexts
"""The texts of a corpus or of queries, in the order of their files and rows."""
