"""Text to embed: what a source folder holds, in BEIR's own format or in Parquet, and its shards.

    corpus and queries      KIND.jsonl, KIND.parquet, KIND/*.parquet or data/KIND-*.parquet
    judgements              qrels/SPLIT.tsv, qrels/SPLIT.parquet or qrels/SPLIT-*.parquet; validation is dev

Which of these each has is found from what lies there. A fingerprint is of ids and text in their order, so that it does
not depend on format and files.
"""

import hashlib
import posixpath
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import pyarrow as pa

from pipelines.ingest_beir import JsonLines, read_tsv
from pipelines.ingest_parquet import ParquetTexts, read_parquet
from pipelines.ingest_rows import START, Place, Position, Text
from smec_core.errors import InputError

SPLITS = ("train", "dev", "test")
# the Hugging Face hub calls dev so
ALIASES = {"dev": ("dev", "validation")}


class Texts(Protocol):
    """The texts of a corpus or of queries, in the order of their files and rows.

    Attributes:
        path: where they lie, for messages.
    """

    path: str

    def read(self, start: Position = START) -> Iterator[Text]:
        """Validated texts from a position on."""

    def locate(self, position: Position) -> str:
        """Names a file and a row in it."""


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
    """What the first reading found; `sha256` is of all ids and texts that are encoded."""

    shards: list[Shard]
    rows: int
    sha256: str


def find_texts(source: Place, kind: str) -> Texts:
    """Finds the corpus or the queries.

    Raises:
        InputError: nothing there, or more than one of the ways in which they can lie there.
    """
    in_data = [path for path in source.parquet_files("data") if posixpath.basename(path).startswith(f"{kind}-")]
    found = {
        f"{kind}.jsonl": [source.join(f"{kind}.jsonl")] if source.has_file(f"{kind}.jsonl") else [],
        f"{kind}.parquet": [source.join(f"{kind}.parquet")] if source.has_file(f"{kind}.parquet") else [],
        f"{kind}/*.parquet": source.parquet_files(kind),
        f"data/{kind}-*.parquet": in_data,
    }
    present = [pattern for pattern, paths in found.items() if paths]
    if not present:
        raise InputError(f"{source.path}: no {kind} there; expected {' or '.join(found)}")
    if len(present) > 1:
        raise InputError(f"{source.path}: holds {' and '.join(present)}; leave one of them there, to be the {kind}")
    [pattern] = present
    if pattern.endswith(".jsonl"):
        return JsonLines(source.filesystem, found[pattern][0])
    return ParquetTexts(source.filesystem, found[pattern])


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
        raise InputError(f"{texts.path}: {'no rows' if judged is None else 'none of its queries occurs in qrels'}")
    shards.append(Shard(kind, len(shards), *begin, rows - len(shards) * rows_per_file, part.hexdigest()))
    return Scan(shards, rows, whole.hexdigest())


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


def read_qrels(source: Place) -> dict[str, pa.Table]:
    """Judgements of every split that is there: query_id, doc_id, score.

    Raises:
        InputError: no split at all, a split in two ways or without judgements, or a malformed row.
    """
    tables = {}
    files = source.parquet_files("qrels")
    for split in SPLITS:
        found: dict[str, list[str]] = {}
        for name in ALIASES.get(split, (split,)):
            whole = [path for path in files if posixpath.basename(path) == f"{name}.parquet"]
            parts = [path for path in files if posixpath.basename(path).startswith(f"{name}-")]
            tsv = [source.join(f"qrels/{name}.tsv")] if source.has_file(f"qrels/{name}.tsv") else []
            found |= {f"{name}.tsv": tsv, f"{name}.parquet": whole, f"{name}-*.parquet": parts}
        present = [pattern for pattern, paths in found.items() if paths]
        if len(present) > 1:
            raise InputError(f"{source.path}/qrels: holds {' and '.join(present)}; leave one of them there")
        if present:
            paths = found[present[0]]
            read = read_tsv if present[0].endswith(".tsv") else read_parquet
            tables[split] = pa.concat_tables([read(source.filesystem, path) for path in paths])
            if not len(tables[split]):
                raise InputError(f"{paths[0]}: no judgements; add some or remove the file")
    if not tables:
        raise InputError(f"{source.path}/qrels: no train, dev or test there, as .tsv or .parquet")
    return tables


def qrels_fingerprint(table: pa.Table) -> str:
    """Hash of the judgements of a split in their order."""
    digest = hashlib.sha256()
    for query, document, score in zip(*(column.to_pylist() for column in table.columns), strict=True):
        digest.update(f"{query}\t{document}\t{score}\n".encode())
    return digest.hexdigest()
