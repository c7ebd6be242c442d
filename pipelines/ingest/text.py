"""Text to embed: what a source folder holds, in BEIR's own format or in Parquet, and its shards.

smec_core/data/tables.py finds where corpus, queries and judgements lie. A fingerprint is of ids and text in their
order, so that it does not depend on format and files.
"""

import hashlib
from typing import NamedTuple

import pyarrow as pa

from pipelines.ingest.readers import START, JsonLines, ParquetTexts, Place, Position, Text, Texts
from smec_core.data import tables
from smec_core.data.qrels import QrelsFile, read_qrels
from smec_core.errors import InputError


class Shard(NamedTuple):
    """Texts that one task encodes into one Parquet file.

    It begins at a position (`file`, `offset`, `before`) and is `rows` texts long; `sha256` is of their ids and text.
    """

    kind: str
    number: int
    file: int
    offset: int
    before: int
    rows: int
    sha256: str

    @property
    def start(self) -> Position:
        """Where its first text lies."""
        return Position(self.file, self.offset, self.before)

    @property
    def target(self) -> str:
        """Path in the dataset."""
        return f"{self.kind}/{self.number:05d}.parquet"


class Scan(NamedTuple):
    """What the first reading found; `sha256` is of all ids and texts that are encoded, `ids` are those of all texts."""

    shards: list[Shard]
    rows: int
    sha256: str
    ids: set[str]


def find_texts(source: Place, kind: str) -> Texts:
    """Finds the corpus or the queries.

    Raises:
        InputError: nothing there, or more than one of the ways in which they can lie there.
    """
    table = tables.find_texts(source.filesystem, source.path, kind)
    if table.form.endswith(".jsonl"):
        return JsonLines(source.filesystem, table.paths[0])
    return ParquetTexts(source.filesystem, table.paths)


def scan(texts: Texts, kind: str, rows_per_file: int, judged: frozenset[str] | None = None) -> Scan:
    """Validates all texts and cuts them into shards; with `judged`, texts of other ids do not count.

    Raises:
        InputError: a malformed row, an id seen before, or no rows at all.
    """
    shards: list[Shard] = []
    seen: set[str] = set()
    rows, whole, part = 0, hashlib.sha256(), hashlib.sha256()
    begin = START
    for text in texts.read():
        if text.id in seen:
            raise InputError(f"{texts.locate(text.position)}: id {text.id!r} was seen before; remove one")
        seen.add(text.id)
        if judged is not None and text.id not in judged:
            continue
        if rows % rows_per_file == 0:
            if rows:
                shards.append(Shard(kind, len(shards), *begin, rows_per_file, part.hexdigest()))
            begin, part = text.position, hashlib.sha256()
        content = _bytes(text)
        whole.update(content)
        part.update(content)
        rows += 1
    if not rows:
        raise InputError(f"{texts.place}: {'no rows' if judged is None else 'none of its queries occurs in qrels'}")
    shards.append(Shard(kind, len(shards), *begin, rows - len(shards) * rows_per_file, part.hexdigest()))
    return Scan(shards, rows, whole.hexdigest(), seen)


def fingerprint(texts: list[Text]) -> str:
    """Hash of ids and text, as a shard has it."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(_bytes(text))
    return digest.hexdigest()


def _bytes(text: Text) -> bytes:
    key, content = text.id.encode(), text.text.encode()
    # with their lengths no two pairs give the same bytes
    return b"%d %d " % (len(key), len(content)) + key + content


def read_judgements(source: Place) -> dict[str, list[QrelsFile]]:
    """Reads the judgements of every split that is there.

    Raises:
        InputError: a split in two forms or without judgements, a file that fits none, or a malformed row.
    """
    found = tables.find_qrels(source.filesystem, source.path)
    return {split: read_qrels(source.filesystem, table) for split, table in found.items()}


def qrels_fingerprint(table: pa.Table) -> str:
    """Hash of the judgements of a split in their order."""
    digest = hashlib.sha256()
    for query, document, score in zip(*(column.to_pylist() for column in table.columns), strict=True):
        digest.update(f"{query}\t{document}\t{score}\n".encode())
    return digest.hexdigest()
