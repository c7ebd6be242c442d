"""Text in BEIR's own format.

KIND.jsonl              {"_id": "...", "title": "...", "text": "..."}, one a line; queries need no title
"""

import io
import json
from collections.abc import Iterator

import pyarrow.fs as pafs

from pipelines.ingest.rows import START, Position, Text
from pipelines.storage.files import first_line
from smec_core.errors import InputError

READ_BYTES = 1 << 20


class JsonLines:
    """The texts of one .jsonl file; an offset is a byte.

    Attributes:
        path: the file.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self.filesystem = filesystem
        self.path = path

    def read(self, start: Position = START) -> Iterator[Text]:
        """Validated texts from a position on; blank lines are passed over.

        Raises:
            InputError: a line that is no such record.
        """
        position = start
        for raw in _lines(self.filesystem, self.path, start.offset):
            if raw.strip():
                yield self._parse(raw, position)
            position = Position(0, position.offset + len(raw), position.before + 1)

    def locate(self, position: Position) -> str:
        """Names the file and the line, from 1."""
        return f"{self.path}: line {position.before + 1}"

    def _parse(self, raw: bytes, position: Position) -> Text:
        where = self.locate(position)
        try:
            entry = json.loads(raw)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({first_line(error)})") from None
        values = entry if isinstance(entry, dict) else {}
        key, title, text = (values.get(name) for name in ("_id", "title", "text"))
        if not isinstance(key, str) or not key:
            raise InputError(f"{where}: needs an _id that is a string")
        if not isinstance(text, str) or not isinstance(title, str | None):
            raise InputError(f"{where}: text must be a string, and title, where there is one, too")
        return Text.checked(position, where, key, title, text)


def _lines(filesystem: pafs.FileSystem, path: str, offset: int = 0) -> Iterator[bytes]:
    with filesystem.open_input_file(path) as raw:
        raw.seek(offset)
        yield from io.BufferedReader(raw, READ_BYTES)
