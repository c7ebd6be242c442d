"""Text and judgements in BEIR's own format.

KIND.jsonl              {"_id": "...", "title": "...", "text": "..."}, one a line; queries need no title
qrels/SPLIT.tsv         query-id, corpus-id, score, with or without a header
"""

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.ingest_rows import MAX_SCORE, QRELS_SCHEMA, START, Position, Text
from pipelines.publish import first_line
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


def read_tsv(filesystem: pafs.FileSystem, path: str) -> pa.Table:
    """Judgements of one file.

    Raises:
        InputError: a malformed line.
    """
    rows: list[dict[str, Any]] = []
    for line, raw in enumerate(_lines(filesystem, path), start=1):
        try:
            query, document, score = raw.decode().strip("\r\n").split("\t")
            if line == 1 and score == "score":
                continue
            if abs(int(score)) > MAX_SCORE:
                raise ValueError(score)
            rows.append({"query_id": query, "doc_id": document, "score": int(score)})
        except ValueError:
            raise InputError(
                f"{path}: line {line}: needs query-id, corpus-id and a whole score, separated by tabs"
            ) from None
    return pa.Table.from_pylist(rows, QRELS_SCHEMA)


def _lines(filesystem: pafs.FileSystem, path: str, offset: int = 0) -> Iterator[bytes]:
    with filesystem.open_input_file(path) as raw:
        raw.seek(offset)
        yield from io.BufferedReader(raw, READ_BYTES)
