"""`smec ingest`: text in BEIR format to a dataset of embeddings, on a pool of Ray actors that each hold the encoder.

    SOURCE/corpus.jsonl                     {"_id": "...", "title": "...", "text": "..."}, one a line
    SOURCE/queries.jsonl                    {"_id": "...", "text": "..."}
    SOURCE/qrels/{train,dev,test}.tsv       query-id, corpus-id, score

The driver reads all text once, so that what is malformed is refused before anything is encoded, and notes where each
shard begins; a task is one shard, from its lines to its Parquet file.
"""

import datetime
import hashlib
import importlib.util
import io
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from pipelines.console import say
from pipelines.encoder import hub_is_offline, load_encoder
from pipelines.file_tasks import RowProgress, actor_pool, record, report_errors, run_file_tasks
from pipelines.publish import MANIFEST, PublishedFile, describe_file, first_line, new_file
from smec_core.errors import InputError, SmecError
from smec_core.parquet import write_embeddings
from smec_core.uri import open_filesystem, public_uri

SPLITS = ("train", "dev", "test")
QRELS_SCHEMA = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.int32())])
# the encoder sorts this many texts by length, so that a batch holds little padding
SORTED_TEXTS = 1024


class IngestSettings(BaseModel):
    """What `smec ingest` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    source: str
    """Folder or URI in BEIR format: corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""
    output: str
    """Folder or URI of the dataset to write; it must not exist yet."""
    encoder: str
    """sentence-transformers model: a folder, or a name on the Hugging Face hub."""
    batch_size: int = Field(64, ge=1)
    """Texts that the encoder takes at a time."""
    rows_per_file: int = Field(8192, ge=1)
    """Rows of a Parquet file; one file is one task, so fewer rows spread a small corpus over more workers."""
    workers: int | None = Field(None, ge=1)
    """Encoders side by side; by default one per GPU, or one per CPU of the cluster where there is none."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Encode on GPUs: auto uses what the cluster has, one for each encoder."""


class Shard(NamedTuple):
    """Lines `first` to `last` of a .jsonl file, the byte at which they begin, and which Parquet file they become."""

    kind: str
    number: int
    offset: int
    first: int
    last: int

    @property
    def target(self) -> str:
        """Path in the dataset."""
        return f"{self.kind}/{self.number:05d}.parquet"


class Texts(NamedTuple):
    """What the first reading of a .jsonl file found; `sha256` is of its bytes."""

    shards: list[Shard]
    rows: int
    sha256: str


class Place(NamedTuple):
    """A folder on a file system."""

    filesystem: pafs.FileSystem
    path: str

    def lines(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Lines of a file in the folder, from a byte on.

        Raises:
            InputError: the file is missing.
        """
        try:
            raw = self.filesystem.open_input_file(f"{self.path}/{name}")
        except FileNotFoundError:
            raise InputError(f"{self.path}/{name}: no such file; BEIR format needs it") from None
        with raw:
            raw.seek(offset)
            yield from io.BufferedReader(raw, 1 << 20)


class EncodeShard:
    """Ray actor that encodes one shard a call; its first call loads the encoder."""

    def __init__(
        self, settings: IngestSettings, source: Place, target: Place, judged: frozenset[str], offline: bool, gpu: bool
    ) -> None:
        self.settings = settings
        self.source = source
        self.target = target
        self.judged = judged
        self.offline = offline
        self.device = "cuda" if gpu else "cpu"
        self._encoder: Any = None

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Takes a shard as a dict, gives records as `run_file_tasks` reads them."""
        shard = Shard(**task)
        return report_errors(self._encode(shard), f"{self.target.path}/{shard.target}")

    def _encode(self, shard: Shard) -> Iterator[dict[str, Any]]:
        if self._encoder is None:
            self._encoder = load_encoder(self.settings.encoder, self.device, self.offline)
        rows = list(self._rows(shard))
        vectors = []
        for start in range(0, len(rows), SORTED_TEXTS):
            piece = rows[start : start + SORTED_TEXTS]
            vectors.append(self._vectors(piece, f"{self.source.path}/{shard.kind}.jsonl"))
            yield record(rows=len(piece))
        path = f"{self.target.path}/{shard.target}"
        write_embeddings(path, [name for _, name, _ in rows], np.concatenate(vectors), self.target.filesystem)
        yield record(done=describe_file(self.target.filesystem, path, len(rows))._replace(name=shard.target))

    def _rows(self, shard: Shard) -> Iterator[tuple[int, str, str]]:
        name = f"{shard.kind}.jsonl"
        lines = self.source.lines(name, shard.offset)
        for number, raw in zip(range(shard.first, shard.last + 1), lines, strict=False):
            if raw.strip():
                key, text = parse_line(raw, f"{self.source.path}/{name}", number)
                if shard.kind == "corpus" or key in self.judged:
                    yield number, key, text

    def _vectors(self, rows: list[tuple[int, str, str]], file: str) -> np.ndarray:
        vectors_ND = self._encoder.encode(
            [text for _, _, text in rows],
            batch_size=self.settings.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        ).astype(np.float32, copy=False)
        # the comparison is false for NaN, too
        bad_N = ~(np.einsum("nd,nd->n", vectors_ND, vectors_ND) > 0)
        if bad_N.any():
            line = rows[int(bad_N.argmax())][0]
            raise SmecError(f"{file}: line {line}: the encoder gave NaN or a zero vector for this text")
        return vectors_ND


def parse_line(raw: bytes, file: str, line: int) -> tuple[str, str]:
    """Id and text (title first) of one line in BEIR format; `line` counts from 1.

    Raises:
        InputError: the line is not such a record.
    """
    try:
        entry = json.loads(raw)
    except ValueError as error:
        raise InputError(f"{file}: line {line}: not JSON ({first_line(error)})") from None
    key, text, title = (entry.get(name) for name in ("_id", "text", "title")) if isinstance(entry, dict) else [None] * 3
    if not isinstance(key, str) or not key:
        raise InputError(f"{file}: line {line}: needs an _id that is a string")
    if not isinstance(text, str) or not isinstance(title, str | None):
        raise InputError(f"{file}: line {line}: text must be a string, and title, where there is one, too")
    return key, f"{title or ''} {text}".strip()


def scan(source: Place, kind: str, rows_per_file: int, judged: frozenset[str] | None = None) -> Texts:
    """Validates a .jsonl file and cuts it into shards; with `judged`, rows of other ids do not count.

    Raises:
        InputError: a malformed line, an id seen before, or no rows at all.
    """
    file = f"{source.path}/{kind}.jsonl"
    shards: list[Shard] = []
    seen: set[str] = set()
    digest = hashlib.sha256()
    offset = rows = line = 0
    begin = (0, 1)
    for line, raw in enumerate(source.lines(f"{kind}.jsonl"), start=1):
        digest.update(raw)
        offset += len(raw)
        if not raw.strip():
            continue
        key, _ = parse_line(raw, file, line)
        if key in seen:
            raise InputError(f"{file}: line {line}: _id {key!r} was seen before; remove one")
        seen.add(key)
        if judged is None or key in judged:
            rows += 1
            if rows % rows_per_file == 0:
                shards.append(Shard(kind, len(shards), *begin, line))
                begin = (offset, line + 1)
    if rows % rows_per_file:
        shards.append(Shard(kind, len(shards), *begin, line))
    if not rows:
        raise InputError(f"{file}: {'no rows' if judged is None else 'none of its queries occurs in qrels'}")
    return Texts(shards, rows, digest.hexdigest())


def read_qrels(source: Place) -> dict[str, pa.Table]:
    """Judgements of every split that is there.

    Raises:
        InputError: no split at all, or a malformed line.
    """
    found = source.filesystem.get_file_info([f"{source.path}/qrels/{split}.tsv" for split in SPLITS])
    present = [split for split, info in zip(SPLITS, found, strict=True) if info.type == pafs.FileType.File]
    if not present:
        raise InputError(f"{source.path}/qrels: no train.tsv, dev.tsv or test.tsv; BEIR format needs one at least")
    return {split: _read_split(source, f"qrels/{split}.tsv") for split in present}


def _read_split(source: Place, name: str) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for line, raw in enumerate(source.lines(name), start=1):
        try:
            query, document, score = raw.decode().strip("\r\n").split("\t")
            if line > 1 or score != "score":
                rows.append({"query_id": query, "doc_id": document, "score": int(score)})
        except ValueError:
            raise InputError(
                f"{source.path}/{name}: line {line}: needs query-id, corpus-id and a whole score, separated by tabs"
            ) from None
    return pa.Table.from_pylist(rows, QRELS_SCHEMA)


def run(settings: IngestSettings) -> dict[str, Any]:
    """Encodes a BEIR folder into a dataset, which appears when it is whole.

    Only queries that a qrels file names are kept: others can neither train nor test.

    Returns:
        corpus and queries (rows), qrels (rows by split), dim, seconds, rows_per_s, path.

    Raises:
        InputError: malformed text or qrels, an output that exists, or an encoder that cannot be loaded.
        SmecError: sentence-transformers is not installed, or a worker failed.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise SmecError("smec ingest needs sentence-transformers: pip install 'smec-ray[ingest]'")
    source = Place(*open_filesystem(settings.source))
    place = Place(*open_filesystem(settings.output))
    if place.filesystem.get_file_info(place.path).type != pafs.FileType.NotFound:
        raise InputError(f"{public_uri(settings.output)}: exists already; choose another folder, or remove it first")
    started = time.perf_counter()
    qrels = read_qrels(source)
    judged = frozenset(name for table in qrels.values() for name in table["query_id"].to_pylist())
    texts = {
        "corpus": scan(source, "corpus", settings.rows_per_file),
        "queries": scan(source, "queries", settings.rows_per_file, judged),
    }
    local = isinstance(place.filesystem, pafs.LocalFileSystem)
    # an object store has no rename: there, the manifest tells a finished dataset from an unfinished one
    target = Place(place.filesystem, f"{place.path}.partial-{uuid.uuid4().hex[:8]}") if local else place
    try:
        files = _encode_all(settings, source, target, texts, judged)
        manifest = _write_rest(settings, target, texts, qrels, files)
        if local:
            os.rename(target.path, place.path)
    except BaseException:
        _remove(target)
        raise
    seconds = time.perf_counter() - started
    rows = {kind: found.rows for kind, found in texts.items()}
    say(f"encoded {rows['corpus']:,} documents and {rows['queries']:,} queries: {public_uri(settings.output)}")
    return {
        **rows,
        "qrels": manifest["qrels"],
        "dim": manifest["dim"],
        "seconds": round(seconds, 3),
        "rows_per_s": round(sum(rows.values()) / seconds, 1),
        "path": settings.output,
    }


def _encode_all(
    settings: IngestSettings, source: Place, target: Place, texts: dict[str, Texts], judged: frozenset[str]
) -> list[PublishedFile]:
    if Path(settings.encoder).is_dir():
        settings = settings.model_copy(update={"encoder": str(Path(settings.encoder).absolute())})
    shards = [shard for found in texts.values() for shard in found.shards]
    total = sum(found.rows for found in texts.values())
    try:
        for kind in ("corpus", "queries", "qrels"):
            target.filesystem.create_dir(f"{target.path}/{kind}")
    except OSError as error:
        raise InputError(f"{public_uri(settings.output)}: cannot be written to ({first_line(error)})") from error
    workers, gpus = actor_pool(len(shards), settings.workers, settings.gpu, share_gpus=False)
    arguments = {
        "settings": settings,
        "source": source,
        "target": target,
        "judged": judged,
        "offline": hub_is_offline(),
        "gpu": gpus > 0,
    }
    files, progress = [], RowProgress("encoded", total)
    for rows, done in run_file_tasks(EncodeShard, arguments, [shard._asdict() for shard in shards], workers, gpus):
        progress.add(rows)
        if done:
            files.append(done)
    if len(files) != len(shards) or sum(file.rows for file in files) != total:
        raise SmecError(f"{public_uri(settings.source)}: changed while it was read; run again")
    return sorted(files)


def _write_rest(
    settings: IngestSettings,
    target: Place,
    texts: dict[str, Texts],
    qrels: dict[str, pa.Table],
    files: list[PublishedFile],
) -> dict[str, Any]:
    """Writes the judgements and, last, the manifest."""
    for split, table in qrels.items():
        path = f"{target.path}/qrels/{split}.parquet"
        pq.write_table(table, path, filesystem=target.filesystem)
        files.append(describe_file(target.filesystem, path, len(table))._replace(name=f"qrels/{split}.parquet"))
    schema = pq.read_schema(f"{target.path}/{files[0].name}", filesystem=target.filesystem)
    manifest = {
        "format": 1,
        "job": "ingest",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": public_uri(settings.source),
        "text": {kind: {"rows": found.rows, "sha256": found.sha256} for kind, found in texts.items()},
        "encoder": settings.encoder,
        "dim": schema.field("embedding").type.list_size,
        "qrels": {split: len(table) for split, table in qrels.items()},
        "files": [file._asdict() for file in files],
    }
    with new_file(target.filesystem, f"{target.path}/{MANIFEST}") as sink:
        sink.write(json.dumps(manifest, indent=1).encode())
    return manifest


def _remove(place: Place) -> None:
    try:
        place.filesystem.delete_dir(place.path)
    except OSError:
        # nothing there yet, or a worker is still writing; what stays has no manifest
        return
