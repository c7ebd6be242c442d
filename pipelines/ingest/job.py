"""`smec ingest`: text with judgements to a dataset of embeddings, on a pool of Ray actors that each hold the encoder.

The driver reads all text once, so that what is malformed is refused before anything is encoded, and notes where each
shard begins; a task is one shard, from its rows to its Parquet file. What decides the dataset's bytes is a plan: of the
same plan a finished dataset is left as it is, and an unfinished one gone on with (pipelines/ingest/draft.py).
"""

import datetime
import importlib.util
import time
from _thread import interrupt_main
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.console import say, warn
from pipelines.ingest.actor import EncodeShard
from pipelines.ingest.draft import JOB, DatasetDraft, digest_of
from pipelines.ingest.encoder import Encoder
from pipelines.ingest.rows import Place
from pipelines.ingest.settings import IngestSettings
from pipelines.ingest.text import Scan, Shard, Texts, find_texts, qrels_fingerprint, read_judgements, scan
from pipelines.runtime.file_tasks import RowProgress, actor_pool, run_file_tasks
from pipelines.storage.files import PublishedFile, describe_file, new_file
from pipelines.storage.lease import Lease
from smec_core.data.qrels import QrelsFile, as_table
from smec_core.data.tables import check_names
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.errors import InputError, SmecError, one_line


class Source(NamedTuple):
    """All that was read of the text before anything is encoded."""

    texts: dict[str, Texts]
    scans: dict[str, Scan]
    qrels: dict[str, pa.Table]
    judged: frozenset[str]

    @classmethod
    def read(cls, uri: str, rows_per_file: int) -> "Source":
        """Finds and validates everything in a folder.

        Raises:
            InputError: something is missing or malformed, with file and row.
        """
        filesystem, path = open_filesystem(uri)
        place = Place(filesystem, path.rstrip("/"))
        try:
            check_names(filesystem, place.path)
            texts = {kind: find_texts(place, kind) for kind in ("corpus", "queries")}
            judgements = read_judgements(place)
            qrels = {split: as_table(files) for split, files in judgements.items()}
            judged = frozenset(name for table in qrels.values() for name in table["query_id"].to_pylist())
            scans = {
                kind: scan(found, kind, rows_per_file, judged if kind == "queries" else None)
                for kind, found in texts.items()
            }
        except SmecError:
            raise
        except OSError as error:
            raise InputError(f"{public_uri(uri)}: cannot be read ({one_line(error)})") from error
        for split, files in judgements.items():
            _warn_of_unknown(split, files, scans)
        return cls(texts, scans, qrels, judged)

    @property
    def shards(self) -> list[Shard]:
        """Of corpus and queries."""
        return [shard for found in self.scans.values() for shard in found.shards]

    @property
    def rows(self) -> int:
        """Texts to encode."""
        return sum(found.rows for found in self.scans.values())

    def fingerprints(self) -> dict[str, Any]:
        """Rows and hash of each part, by content."""
        parts = {kind: {"rows": found.rows, "sha256": found.sha256} for kind, found in self.scans.items()}
        return parts | {
            f"qrels/{split}": {"rows": len(table), "sha256": qrels_fingerprint(table)}
            for split, table in self.qrels.items()
        }


def _warn_of_unknown(split: str, files: list[QrelsFile], scans: dict[str, Scan]) -> None:
    """Says how many judgements name ids that no text has."""
    queries, docs = scans["queries"].ids, scans["corpus"].ids
    unknown = [
        f"{file.locate(row)}, column " + (f"doc_id: {doc!r}" if query in queries else f"query_id: {query!r}")
        for file in files
        for row, (query, doc) in enumerate(zip(file.query_id.to_pylist(), file.doc_id.to_pylist(), strict=True))
        if query not in queries or doc not in docs
    ]
    if unknown:
        warn(
            f"{len(unknown):,} of {sum(len(file.score_J) for file in files):,} judgements of {split} name ids that the "
            f"text does not hold, first {unknown[0]}; jobs leave them out, and refuse a split with more than a tenth "
            "of them"
        )


def run(settings: IngestSettings) -> dict[str, Any]:
    """Encodes text into a dataset, which appears when it is whole.

    Only queries that a qrels file names are kept: others can neither train nor test.

    Returns:
        corpus and queries (rows), qrels (rows by split), dim, encoder_fingerprint, encoded (rows that this run had to
        encode), seconds, rows_per_s (of those), path.

    Raises:
        InputError: malformed text or qrels, an output that is another's, or an encoder that there is not.
        LeaseError: another process writes this dataset.
        SmecError: sentence-transformers is not installed, or a worker failed; the same command goes on from there.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise SmecError("smec ingest needs sentence-transformers: pip install 'smec-ray[ingest]'")
    started = time.perf_counter()
    draft = DatasetDraft(settings.output)
    draft.check_free()
    source = Source.read(settings.source, settings.rows_per_file)
    encoder = Encoder.find(settings.encoder)
    plan = _plan(settings, source, encoder)
    manifest, encoded = draft.finished(plan), 0
    if manifest is None:
        draft.create()
        with Lease(draft.state, interrupt_main, f"dataset {draft.uri}", "written", "folder") as lease:
            # another process may have finished it meanwhile
            manifest = draft.finished(plan)
            if manifest is None:
                manifest, encoded = _write(settings, source, encoder, plan, draft, lease)
    draft.clean()
    seconds = time.perf_counter() - started
    rows = {kind: found.rows for kind, found in source.scans.items()}
    contents = f"{rows['corpus']:,} documents and {rows['queries']:,} queries, {manifest['dim']} dims: {draft.uri}"
    say(f"encoded {contents}" if encoded else f"nothing to do: holds these already, {contents}")
    return {
        **rows,
        "qrels": manifest["qrels"],
        "dim": manifest["dim"],
        "encoder_fingerprint": encoder.fingerprint,
        "encoded": encoded,
        "seconds": round(seconds, 3),
        "rows_per_s": round(encoded / seconds, 1),
        "path": settings.output,
    }


def _plan(settings: IngestSettings, source: Source, encoder: Encoder) -> dict[str, Any]:
    """Everything that decides the dataset's bytes."""
    return {
        "job": JOB,
        "text": source.fingerprints(),
        "encoder_fingerprint": encoder.fingerprint,
        "query_prompt": settings.query_prompt,
        "document_prompt": settings.document_prompt,
        "batch_size": settings.batch_size,
        "rows_per_file": settings.rows_per_file,
    }


def _write(
    settings: IngestSettings, source: Source, encoder: Encoder, plan: dict[str, Any], draft: DatasetDraft, lease: Lease
) -> tuple[dict[str, Any], int]:
    """Encodes what is not yet there and publishes the dataset; returns its manifest, and the rows encoded."""
    left = draft.begin(plan)
    files, encoded = _encode_all(settings, source, encoder, plan, draft, left)
    for split, table in source.qrels.items():
        path = draft.target.join(f"qrels/{split}.parquet")
        with new_file(draft.target.filesystem, path) as sink:
            pq.write_table(table, sink)
        described = describe_file(draft.target.filesystem, path, len(table))
        files.append(described._replace(name=f"qrels/{split}.parquet"))
    schema = pq.read_schema(draft.target.join(files[0].name), filesystem=draft.target.filesystem)
    manifest = {
        "format": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": public_uri(settings.source),
        "encoder": settings.encoder,
        **plan,
        "dim": schema.field("embedding").type.list_size,
        "qrels": {split: len(table) for split, table in source.qrels.items()},
        "files": [file._asdict() for file in files],
    }
    lease.check()
    draft.publish(manifest, files)
    return manifest, encoded


def _encode_all(
    settings: IngestSettings,
    source: Source,
    encoder: Encoder,
    plan: dict[str, Any],
    draft: DatasetDraft,
    left: list[str],
) -> tuple[list[PublishedFile], int]:
    """Runs the tasks; returns all files of vectors, sorted, and how many rows were encoded, not found finished."""
    shards, total = source.shards, source.rows
    done_before = sum(shard.rows for shard in shards if shard.target in left)
    if done_before:
        say(f"going on with an unfinished dataset: {done_before:,} of {total:,} rows are encoded already")
    workers, gpus = actor_pool(len(shards), settings.workers, settings.gpu, share_gpus=False)
    say(f"encoding {total - done_before:,} rows with {encoder.name}, {workers} on {'GPU' if gpus else 'CPU'}")
    arguments = {
        "encoder": encoder,
        "texts": source.texts,
        "judged": source.judged,
        "target": draft.target,
        "plan_digest": digest_of(plan),
        "prompts": {"corpus": settings.document_prompt, "queries": settings.query_prompt},
        "batch_size": settings.batch_size,
        "gpu": gpus > 0,
    }
    files, progress = [], RowProgress("encoded", total - done_before)
    for rows, done in run_file_tasks(EncodeShard, arguments, [shard._asdict() for shard in shards], workers, gpus):
        progress.add(rows)
        if done:
            files.append(done)
    if len(files) != len(shards) or sum(file.rows for file in files) != total:
        raise SmecError(f"{draft.uri}: not all shards were written; run again")
    return sorted(files), progress.rows
