"""`smec ingest`: text with judgements to a dataset of embeddings, on a pool of Ray actors that each hold the encoder.

The driver reads all text once: it refuses malformed text before anything is encoded, and notes where each shard begins.
A task encodes one shard into its Parquet file. The plan is everything that decides the dataset's bytes: a finished
dataset of the same plan is left as it is, and an unfinished one is continued (pipelines/ingest/draft.py).
"""

import datetime
import importlib.util
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import signals
from pipelines.console import RowProgress, say, telling, warn
from pipelines.ingest.actor import EncodeShard, Job
from pipelines.ingest.draft import JOB, DatasetDraft, digest_of
from pipelines.ingest.encoder import Encoder
from pipelines.ingest.readers import Place, Texts
from pipelines.ingest.settings import IngestSettings
from pipelines.ingest.text import Scan, Shard, find_texts, qrels_fingerprint, read_judgements, scan
from pipelines.runtime.file_tasks import actor_pool, run_file_tasks
from pipelines.storage.files import new_file
from pipelines.storage.lease import Lease
from smec_core.data.qrels import QrelsFile, as_table
from smec_core.data.stored_files import StoredFile, describe
from smec_core.data.tables import QRELS, check_dataset, check_names
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.errors import InputError, SmecError, extra, one_line


class Source(NamedTuple):
    """All that was read of the text before anything is encoded."""

    texts: dict[str, Texts]
    scans: dict[str, Scan]
    qrels: dict[str, pa.Table]
    judged: frozenset[str] | None
    doubts: list[str]

    @classmethod
    @telling("reading the text")
    def read(cls, uri: str, rows_per_file: int) -> "Source":
        """Finds and validates everything in a folder.

        Raises:
            InputError: something is missing or malformed, with file and row.
        """
        filesystem, path = open_filesystem(uri)
        place = Place(filesystem, path.rstrip("/"))
        try:
            check_dataset(filesystem, place.path)
            check_names(filesystem, place.path)
            texts = {kind: find_texts(place, kind) for kind in ("corpus", "queries")}
            judgements = read_judgements(place)
            qrels = {split: as_table(files) for split, files in judgements.items()}
            judged = None
            if "train" in qrels:
                judged = frozenset(name for table in qrels.values() for name in table["query_id"].to_pylist())
            scans = {
                kind: scan(found, kind, rows_per_file, judged if kind == "queries" else None)
                for kind, found in texts.items()
            }
        except SmecError:
            raise
        except OSError as error:
            raise InputError(f"{public_uri(uri)}: cannot be read ({one_line(error)})") from error
        doubts = [doubt for split, files in judgements.items() for doubt in _unknown(split, files, scans)]
        if judged is None:
            found = ", ".join(judgements) or "no split at all"
            doubts.append(
                f"{place.shown(QRELS)}: no judgements for training there (found: {found}); all queries are encoded, "
                "and a training learns from those that no split names, where they are 100 or more"
            )
        return cls(texts, scans, qrels, judged, doubts)

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


def _unknown(split: str, files: list[QrelsFile], scans: dict[str, Scan]) -> Iterator[str]:
    queries, docs = scans["queries"].ids, scans["corpus"].ids
    unknown = [
        f"{file.locate(row)}, column "
        + (f"{file.stored['doc_id']}: {doc!r}" if query in queries else f"{file.stored['query_id']}: {query!r}")
        for file in files
        for row, (query, doc) in enumerate(zip(file.query_id.to_pylist(), file.doc_id.to_pylist(), strict=True))
        if query not in queries or doc not in docs
    ]
    if unknown:
        yield (
            f"{len(unknown):,} of {sum(len(file.score_J) for file in files):,} judgements of {split} name ids that the "
            f"text does not hold, first {unknown[0]}; jobs leave them out, and refuse a split with more than a tenth "
            "of them"
        )


def run(settings: IngestSettings) -> dict[str, Any]:
    """Encodes text into a dataset, which appears when it is whole.

    Where there are judgements for training, only queries that a qrels file names are kept.

    Returns:
        corpus and queries (rows), qrels (rows by split), dim, encoder_fingerprint, encoded (rows that this run had to
        encode), seconds, rows_per_s (of those), path.

    Raises:
        InputError: malformed text or qrels, an output that holds something else, or an unknown encoder.
        LeaseError: another process writes this dataset.
        SmecError: sentence-transformers is not installed, or a worker failed; the same command goes on from there.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise SmecError(f"smec ingest needs sentence-transformers: {extra('ingest')}")
    started = time.perf_counter()
    draft = DatasetDraft(settings.output)
    draft.check_free()
    source = Source.read(settings.source, settings.rows_per_file)
    for doubt in source.doubts:
        warn(doubt)
    encoder = Encoder.find(settings.encoder)
    plan = {
        "job": JOB,
        "text": source.fingerprints(),
        "encoder_fingerprint": encoder.fingerprint,
        **settings.model_dump(include={"query_prompt", "document_prompt", "batch_size", "rows_per_file"}),
    }
    manifest, encoded = draft.finished(plan), 0
    if manifest is None:
        draft.create()
        with Lease(draft.state, signals.interrupt, f"dataset {draft.uri}", "written", "folder") as lease:
            # another process may have finished it meanwhile
            manifest = draft.finished(plan) or draft.sealed(plan)
            if manifest is None:
                left = draft.begin(plan)
                files, encoded = _encode(settings, source, encoder, draft.target, digest_of(plan), left)
                head = _manifest(settings, source, plan, draft.target, files)
                if Source.read(settings.source, settings.rows_per_file).fingerprints() != plan["text"]:
                    raise SmecError(f"{public_uri(settings.source)}: changed while it was read; run again")
                lease.check()
                manifest = draft.publish(head, files)
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


def _encode(
    settings: IngestSettings, source: Source, encoder: Encoder, target: Place, plan_digest: str, left: list[str]
) -> tuple[list[StoredFile], int]:
    """Runs the tasks; returns all files of vectors, sorted, and how many rows were encoded, not found finished."""
    shards, total = source.shards, source.rows
    done_before = sum(shard.rows for shard in shards if shard.target in left)
    if done_before:
        say(f"going on with an unfinished dataset: {done_before:,} of {total:,} rows are encoded already")
    workers, gpus = actor_pool(len(shards), settings.workers, settings.gpu, share_gpus=False)
    say(f"encoding {total - done_before:,} rows with {encoder.name}, {workers} on {'GPU' if gpus else 'CPU'}")
    prompts = {"corpus": settings.document_prompt, "queries": settings.query_prompt}
    job = Job(encoder, source.texts, source.judged, target, plan_digest, prompts, settings.batch_size)
    files, progress = [], RowProgress("encoded", total - done_before)
    tasks = [shard._asdict() for shard in shards]
    for rows, done in run_file_tasks(EncodeShard, {"job": job, "gpu": gpus > 0}, tasks, workers, gpus):
        progress.add(rows)
        if done:
            files.append(done)
    if len(files) != len(shards) or sum(file.rows for file in files) != total:
        raise SmecError(f"{public_uri(settings.output)}: not all shards were written; run again")
    return sorted(files), progress.rows


def _manifest(
    settings: IngestSettings, source: Source, plan: dict[str, Any], target: Place, files: list[StoredFile]
) -> dict[str, Any]:
    """Writes the judgements beside the vectors, and says what the dataset is."""
    schema = pq.read_schema(target.join(files[0].name), filesystem=target.filesystem)
    for split, table in source.qrels.items():
        name = f"qrels/{split}.parquet"
        with new_file(target.filesystem, target.join(name)) as sink:
            pq.write_table(table, sink)
        files.append(describe(target.filesystem, target.join(name), name, len(table)))
    return {
        "format": 2,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": public_uri(settings.source),
        "encoder": settings.encoder,
        **plan,
        "dim": schema.field("embedding").type.list_size,
        "qrels": {split: len(table) for split, table in source.qrels.items()},
    }
