"""`smec compress`: embedding shards in, nested vectors out, into a new version of a published folder.

A task is one input file, or a piece of a large one, streamed through an actor in batches into an output file of the
same name, so that rows keep their order and memory depends neither on the corpus nor on a file's size.

With --upgrade the shards hold what the model's base encoded, and only the stages added since are applied.

What the version in force has made of the same input file by the same plan is copied, not made again.
"""

import time
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from pipelines.compress.actor import QUARANTINE, CompressPiece, Job, Piece, TooManyBadRows, cut, too_many_bad_rows
from pipelines.compress.reuse import Earlier, find_earlier, inputs_of, take_over
from pipelines.compress.settings import CompressSettings
from pipelines.compress.upgrade import check_stored, stored_type, vectors_of_version
from pipelines.console import RowProgress, say, warn
from pipelines.runtime.file_tasks import actor_pool, run_file_tasks
from pipelines.storage.apart import check_apart_from_table
from pipelines.storage.publish import Draft, check_output, check_version, finished_version, promote
from smec_core.data.columns import DEFAULT_NAMES
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.stored_files import StoredFile
from smec_core.data.table_files import stamp_of, states_of
from smec_core.data.tables import find_table, find_values
from smec_core.data.uri import open_filesystem, public_uri, shown_path, without_slash
from smec_core.data.versions import CURRENT, current, in_force, is_published, manifest_of, stored_dims
from smec_core.errors import InputError, SmecError, StoreError
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.model.vector_types import vector_bytes


def run(settings: CompressSettings) -> dict[str, Any]:
    """Compresses every input file and puts the result in force as a new version; see `compress`."""
    # what cannot be published to has no CURRENT that could be read
    check_output(settings.output)
    seen = in_force(settings.output)
    if seen.content is not None and not seen.name:
        warn(f"{public_uri(settings.output)}/{CURRENT}: names no version; this run puts its own in force")
    figures = compress(settings)
    promote(settings.output, figures["version"], seen)
    return figures


def compress(settings: CompressSettings) -> dict[str, Any]:
    """Compresses every input file into a new version, which is not in force yet.

    Returns:
        rows, reused (of these, taken from the version in force), quarantined, files, bytes_per_vector, seconds (from
        the first task to the finished version), rows_per_s (rows compressed in that time), version, path.

    Raises:
        InputError: settings, model and data do not fit together, or a row cannot be compressed; there is no version.
            Where a store refuses, or too many rows are bad, the next run goes on where this one stopped.
        SmecError: a worker failed; there is no version, and the next run goes on where this one stopped.
    """
    # before the work begins
    check_output(settings.output)
    check_apart_from_table("output", settings.output, settings.input)
    model = load(settings.model)
    source = settings.input
    if settings.upgrade:
        if is_published(source):
            version = current(source)
            check_version(source, version.partition("?")[0].rpartition("/")[2])
            source = version
        if (done := _upgraded(settings, model, source)) is not None:
            return done
        source = vectors_of_version(source)
    # before the rows are counted: a file that is replaced meanwhile is then new to the next run
    filesystem, path = open_filesystem(source)
    states = states_of(filesystem, find_table(filesystem, without_slash(path)))
    stamp = stamp_of(states)
    quarantine = settings.on_bad_row == "quarantine"
    known_dim = model.input_dim if quarantine and not settings.upgrade else None
    table = EmbeddingTable.open(source, known_dim, settings.columns)
    table = table.with_values(find_values(filesystem, without_slash(path), table.files[0].path))
    if settings.upgrade:
        check_stored(model, settings.model, table)
        dims = settings.dim or (table.dim,)
        # refuses widths and dims that do not fit
        model.upgrade(np.empty((0, table.dim), np.float32), dims[0])
    else:
        dims = _encoded_dims(settings, model, table)
    for dim in dims:
        if settings.dtype in ("int8", "binary"):
            model.int8_scale(dim)  # refuses a dim that has none
        if dim not in model.dims:
            trained = ", ".join(map(str, model.dims))
            warn(f"the model was trained for {trained} dims; its quality at {dim} is unmeasured")
    plan = _plan(settings, dims, model, table, source, stamp)
    allowed = int(settings.max_bad_rows * table.rows)
    if (done := _finished(settings.output, plan, allowed)) is not None:
        return done
    pieces = cut(table, settings.rows_per_file)
    workers, gpus = actor_pool(len(pieces), settings.workers, settings.gpu, share_gpus=True)
    draft = Draft.open(settings.output, plan)

    def check_input() -> None:
        try:
            # opened again: what was opened of the Hub stays at its commit
            latest, place = open_filesystem(source)
            is_same = states_of(latest, find_table(latest, without_slash(place))) == states
        except StoreError:
            raise
        except (FileNotFoundError, InputError):
            is_same = False
        if not is_same:
            draft.discard()
            raise SmecError(f"{public_uri(source)}: changed while it was used; nothing is published, run again")

    job = Job(
        model=model,
        table=table,
        filesystem=draft.filesystem,
        folder=draft.folder,
        dims=dims,
        dtype=settings.dtype,
        upgrade=settings.upgrade,
        max_bad_rows=allowed if quarantine else None,
        batch_rows=settings.batch_rows,
    )
    inputs = inputs_of(table, pieces, states)
    earlier = find_earlier(settings.output, plan, inputs, job, pieces)
    started = time.perf_counter()
    try:
        made = _make(job, pieces, earlier, workers, gpus)
    except (StoreError, TooManyBadRows):
        # more rights, or more bad rows allowed, and the next run goes on with what is finished
        raise
    except InputError:
        # the input must change first, and then this is another job
        draft.discard()
        raise
    check_input()
    manifest = draft.finish(made.files, {"rows": table.rows - made.bad, "quarantined": made.bad, "inputs": inputs})
    seconds = time.perf_counter() - started
    _say_made(job, made, earlier.version, _bytes_per_vector(manifest), public_uri(draft.uri))
    return _figures(manifest, draft.uri, seconds, made.rows, made.reused)


def _encoded_dims(settings: CompressSettings, model: Model, table: EmbeddingTable) -> tuple[int, ...]:
    """Dims to keep of the model's encoding of original embeddings."""
    if settings.dim is None:
        raise InputError("dim: is required; give --dim or set it in --config")
    if table.dim != model.input_dim:
        raise InputError(f"{settings.input}: {table.dim} dims, but the model {settings.model} takes {model.input_dim}")
    if settings.dim[0] > model.input_dim:
        raise InputError(f"dim is {settings.dim[0]}, but the model has {model.input_dim}; trained dims: {model.dims}")
    return settings.dim


def _finished(output: str, plan: dict[str, Any], allowed: int) -> dict[str, Any] | None:
    """Figures of a version that the same plan has made."""
    try:
        found = finished_version(output, plan)
    except StoreError:
        raise
    except (InputError, OSError):
        # the draft reports it better
        return None
    return None if found is None or found[1]["quarantined"] > allowed else _nothing_to_do(*found)


def _upgraded(settings: CompressSettings, model: Model, source: str) -> dict[str, Any] | None:
    """Figures of the version in force, where an earlier run has upgraded it in place."""
    here, there = (public_uri(uri).rstrip("/") for uri in (settings.input, settings.output))
    if here != there or source == settings.input:
        return None
    manifest = manifest_of(*open_filesystem(source)) or {}
    asked = (model.fingerprint, settings.dtype)
    if "upgraded_from" not in manifest or (manifest["model_fingerprint"], manifest["dtype"]) != asked:
        return None
    if settings.dim is not None and settings.dim != stored_dims(manifest):
        return None
    return _nothing_to_do(source, manifest)


def _nothing_to_do(uri: str, manifest: dict[str, Any]) -> dict[str, Any]:
    say(f"{public_uri(uri)} holds these vectors already; there is nothing to do")
    return _figures(manifest, uri, 0.0, 0, 0)


class Made(NamedTuple):
    """All files of a version by name; rows compressed (not found finished), taken from an earlier one, set apart."""

    files: list[StoredFile]
    rows: int
    reused: int
    bad: int


def _make(job: Job, pieces: list[Piece], earlier: Earlier, workers: int, gpus: float) -> Made:
    """Runs the tasks.

    Raises:
        TooManyBadRows: more rows were set apart than may be.
        SmecError: rows are missing.
    """
    files, reused = take_over(earlier, job, workers)
    # the largest first: the last task to end decides when all end
    order = sorted(pieces, key=lambda piece: piece.start - piece.stop)
    left = [piece for piece in order if job.targets(piece)[job.dims[0]] not in files]
    progress = RowProgress("compressed", sum(piece.stop - piece.start for piece in left))
    if left:
        tasks, workers = [piece._asdict() for piece in left], min(workers, len(left))
        for rows, done in run_file_tasks(CompressPiece, {"job": job, "gpu": gpus > 0}, tasks, workers, gpus):
            progress.add(rows)
            if done:
                files[done.name] = done
    apart = [file for file in files.values() if file.name.startswith(f"{QUARANTINE}/")]
    bad = sum(file.rows for file in apart)
    for dim in job.dims:
        names = [job.targets(piece)[dim] for piece in pieces]
        missing = [name for name in names if name not in files]
        if missing or sum(files[name].rows for name in names) + bad != job.table.rows:
            place = shown_path(job.filesystem, job.folder)
            raise SmecError(f"{place}: not all rows arrived (missing files: {missing[:3]}); run again")
    if bad > (job.max_bad_rows or 0):
        path, columns = f"{job.folder}/{min(apart).name}", ["file", "row", "reason"]
        first = pq.read_table(path, columns=columns, filesystem=job.filesystem).slice(0, 1).to_pylist()[0]
        raise too_many_bad_rows(job, bad, **first)
    # what a lost worker had begun is counted twice
    rows = min(progress.rows, sum(piece.stop - piece.start for piece in left))
    return Made(sorted(files.values()), rows, reused, bad)


def _say_made(job: Job, made: Made, earlier: str, size: int, uri: str) -> None:
    verb, kept = "upgraded" if job.upgrade else "compressed", ", ".join(map(str, job.dims))
    taken = f", {made.reused:,} taken from {earlier}" if made.reused else ""
    rows = job.table.rows - made.bad - made.reused
    say(f"{verb} {rows:,} rows to {kept} dims{taken}, {size} bytes a vector: {uri}")
    if made.bad:
        warn(f"{made.bad:,} rows are no sound vectors; they lie in {uri}/{QUARANTINE}, with the reasons")


def _plan(
    settings: CompressSettings, dims: tuple[int, ...], model: Model, table: EmbeddingTable, source: str, stamp: str
) -> dict[str, Any]:
    """Everything that decides what a version holds; an unfinished version with the same plan is taken up again."""
    plan = {
        "job": "compress",
        "input": public_uri(source),
        "input_fingerprint": stamp,
        "model": public_uri(settings.model),
        "model_fingerprint": model.fingerprint,
        "input_dim": model.input_dim,
        "dim": dims[0],
        "dims": sorted({*dims, *(prefix for prefix in model.dims if prefix <= dims[0])}, reverse=True),
        "folders": [str(dim) for dim in dims] if len(dims) > 1 else [],
        "dtype": settings.dtype,
        "on_bad_row": settings.on_bad_row,
        "rows_per_file": settings.rows_per_file,
    }
    if table.files[0].values:
        plan["added_columns"] = [name for name, _ in table.files[0].values]
    if settings.columns != DEFAULT_NAMES:
        plan["columns"] = settings.columns.model_dump()
    if settings.dtype in ("int8", "binary"):
        plan["int8_scales"] = {str(dim): model.int8_scale(dim) for dim in dims}
    if settings.upgrade and model.base is not None:
        stored = {"dim": table.dim, "dtype": stored_type(table).to_pandas_dtype().__name__}
        plan["upgraded_from"] = {"model_fingerprint": model.base.fingerprint, **stored}
    return plan


def _bytes_per_vector(manifest: dict[str, Any]) -> int:
    return sum(vector_bytes(dim, manifest["dtype"]) for dim in stored_dims(manifest))


def _figures(manifest: dict[str, Any], uri: str, seconds: float, rows: int, reused: int) -> dict[str, Any]:
    return {
        "rows": manifest["rows"],
        "reused": reused,
        "quarantined": manifest["quarantined"],
        "files": len(manifest["files"]),
        "bytes_per_vector": _bytes_per_vector(manifest),
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows / seconds, 1) if seconds else 0.0,
        "version": manifest["version"],
        "path": uri,
    }
