"""`smec compress`: embedding shards in, nested vectors out, file by file, into a new version of a published folder.

One task is one input file, streamed through an actor in batches into one output file of the same name, so that rows
keep their order and memory depends neither on the corpus nor on a file's size.

With --upgrade the shards hold what the model's base encoded, and only the stages added since are applied.

Shapes: N rows, D input dims (with --upgrade: dims stored), d dims kept.
"""

import hashlib
import json
import posixpath
import time
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, Field

from pipelines.console import say, warn
from pipelines.file_tasks import RowProgress, actor_pool, record, report_errors, run_file_tasks
from pipelines.publish import CURRENT, MANIFEST, PLAN, Draft, PublishedFile, current, describe_file, new_file
from pipelines.stored_files import exists
from smec_core.errors import InputError, SmecError
from smec_core.model import Model, load
from smec_core.parquet import ROW_GROUP_ROWS, Block, EmbeddingTable, ParquetPart, embedding_column
from smec_core.uri import open_filesystem, public_uri

ROW_GROUP_BYTES = 32 << 20


class CompressSettings(BaseModel):
    """What `smec compress` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str
    """Model folder, as `smec train` writes it."""
    input: str
    """Parquet file, or folder or URI of Parquet files, with the columns id and embedding; other columns are kept.
    With `upgrade` also a published folder, of which the version in force is taken."""
    output: str
    """Published folder or URI: every run adds a version (v0001, ...) and points CURRENT at it."""
    dim: int | None = Field(None, ge=1)
    """Dims to keep; one of the model's dims keeps its measured quality. With `upgrade` by default those stored."""
    upgrade: bool = False
    """The input is what the model that this one extends (`smec train --from`) made of the originals, not these."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number type of the vectors written."""
    batch_rows: int = Field(8192, ge=1)
    """Rows an actor holds and multiplies at a time."""
    workers: int | None = Field(None, ge=1)
    """Actors side by side; by default one per CPU of the cluster, and never more than there are files."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Multiply on GPUs: auto uses what the cluster has, its GPUs shared evenly by the actors."""


class CompressFile:
    """Ray actor that compresses one file a call, and skips one that an earlier, killed run has finished."""

    def __init__(
        self, model: Model, table: EmbeddingTable, draft: Draft, settings: CompressSettings, gpu: bool
    ) -> None:
        self.model = model
        self.table = table
        self.draft = draft
        self.settings = settings
        self.device = "cuda" if gpu else "cpu"
        # Arrow's memory is read-only, and nothing here writes to it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Takes {"file": its number in the table}, gives records as `run_file_tasks` reads them."""
        part = self.table.files[task["file"]]
        return report_errors(self._compress(part), part.path)

    def _compress(self, part: ParquetPart) -> Iterator[dict[str, Any]]:
        target = f"{self.draft.folder}/{posixpath.basename(part.path)}"
        filesystem = self.draft.filesystem
        if _rows_of(filesystem, target) != part.rows:
            yield from self._write(part, filesystem, target)
        rows = _rows_of(filesystem, target)
        if rows != part.rows:
            raise SmecError(f"{part.path}: {part.rows} rows, but {rows} reached {target}; run again")
        yield record(done=describe_file(filesystem, target, part.rows))

    def _write(self, part: ParquetPart, filesystem: pafs.FileSystem, target: str) -> Iterator[dict[str, Any]]:
        schema = self._output_schema(pq.read_schema(part.path, filesystem=self.table.filesystem))
        plain = [name for name in schema.names if name != "embedding"]
        stop = part.start + part.rows
        pending: list[pa.Table] = []
        with new_file(filesystem, target) as sink, pq.ParquetWriter(sink, schema, use_dictionary=plain) as writer:
            for block in self.table.blocks(part.start, stop, self.settings.batch_rows, columns=schema.names):
                pending.append(self._encode(block, schema, part))
                rows = sum(len(table) for table in pending)
                full = rows >= ROW_GROUP_ROWS or sum(table.nbytes for table in pending) >= ROW_GROUP_BYTES
                if full or block.row + len(block.ids) == stop:
                    writer.write_table(pa.concat_tables(pending), row_group_size=rows)
                    pending.clear()
                    yield record(rows=rows)

    def _output_schema(self, schema: pa.Schema) -> pa.Schema:
        value = pa.from_numpy_dtype(np.dtype(self.settings.dtype))
        index = schema.get_field_index("embedding")
        # what other libraries note about the columns (pandas, datasets) no longer holds
        return schema.set(index, pa.field("embedding", pa.list_(value, self.settings.dim))).remove_metadata()

    def _encode(self, block: Block, schema: pa.Schema, part: ParquetPart) -> pa.Table:
        if block.ids.null_count:
            row = block.row - part.start + block.ids.is_null().index(True).as_py()
            raise InputError(f"{part.path}: row {row}, column id: is null; every row needs an id")
        x_ND = torch.from_numpy(block.vectors_ND).to(self.device)
        encode = self.model.upgrade if self.settings.upgrade else self.model.encode
        z_Nd = encode(x_ND, self.settings.dim).cpu().numpy().astype(self.settings.dtype, copy=False)
        columns = [embedding_column(z_Nd) if name == "embedding" else block.table[name] for name in schema.names]
        return pa.table(columns, schema=schema)


def run(settings: CompressSettings) -> dict[str, Any]:
    """Compresses every input file and publishes the result as a new version.

    Returns:
        rows, files, bytes_per_vector, seconds (from the first task to the published version), rows_per_s (rows
        compressed in that time), version, path.

    Raises:
        InputError: settings, model and data do not fit together, or a row cannot be compressed; nothing is published.
        SmecError: a worker failed; nothing is published, and the next run goes on where this one stopped.
    """
    model = load(settings.model)
    source = _version_in_force(settings.input) if settings.upgrade else settings.input
    table = EmbeddingTable.open(source)
    dim = _upgraded_dim(settings, model, table) if settings.upgrade else _encoded_dim(settings, model, table)
    settings = settings.model_copy(update={"input": source, "dim": dim})
    if dim not in model.dims:
        trained = ", ".join(map(str, model.dims))
        warn(f"the model was trained for {trained} dims; its quality at {dim} is unmeasured")
    workers, gpus = actor_pool(len(table.files), settings.workers, settings.gpu, share_gpus=True)
    draft = Draft.open(settings.output, _plan(settings, dim, model, table))
    started = time.perf_counter()
    try:
        files, rows = _compress_files(model, table, draft, settings, workers, gpus)
    except InputError:
        # the input must change first, and then this is another job
        draft.discard()
        raise
    manifest = draft.publish(files)
    seconds = time.perf_counter() - started
    size = dim * np.dtype(settings.dtype).itemsize
    done = "upgraded" if settings.upgrade else "compressed"
    say(f"{done} {table.rows:,} rows to {dim} dims, {size} bytes a vector: {public_uri(draft.uri)}")
    return {
        "rows": manifest["rows"],
        "files": len(files),
        "bytes_per_vector": size,
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows / seconds, 1),
        "version": draft.name,
        "path": draft.uri,
    }


def _encoded_dim(settings: CompressSettings, model: Model, table: EmbeddingTable) -> int:
    """Dims to keep of the model's encoding of original embeddings."""
    if settings.dim is None:
        raise InputError("dim: is required; give --dim or set it in --config")
    if table.dim != model.input_dim:
        raise InputError(f"{settings.input}: {table.dim} dims, but the model {settings.model} takes {model.input_dim}")
    if settings.dim > model.input_dim:
        raise InputError(f"dim is {settings.dim}, but the model has {model.input_dim}; trained dims: {model.dims}")
    return settings.dim


def _version_in_force(uri: str) -> str:
    """The version that a published folder has in force, and any other path or URI as it is."""
    filesystem, root = open_filesystem(uri)
    return current(uri) if exists(filesystem, f"{root.rstrip('/')}/{CURRENT}") else uri


def _upgraded_dim(settings: CompressSettings, model: Model, table: EmbeddingTable) -> int:
    """Dims to keep of stored vectors, once it is clear that the model's base made them."""
    if model.base is None:
        raise InputError(
            f"{settings.model}: extends no other model, so it upgrades no vectors; leave out --upgrade and give the "
            "original embeddings"
        )
    base = model.base.fingerprint[:12]
    folder = posixpath.dirname(table.files[0].path)
    manifest = _read_manifest(table.filesystem, folder)
    if manifest is None:
        say(f"{folder}: no {MANIFEST} says which model made these vectors; they are taken as those of the base {base}")
    elif manifest["model_fingerprint"] == model.fingerprint:
        raise InputError(f"{folder}: the model {settings.model} made these vectors itself; there is nothing to upgrade")
    elif manifest["model_fingerprint"] != model.base.fingerprint:
        raise InputError(
            f"{folder}: the model {manifest['model_fingerprint'][:12]} ({manifest['model']}) made these vectors, but "
            f"{settings.model} upgrades those of its base {base}; give vectors of that, or the original embeddings"
        )
    if _value_type(table) == pa.float16():
        warn("the stored vectors are float16; upgraded, they keep the rounding of that")
    # refuses widths and dims that do not fit
    return int(model.upgrade(np.empty((0, table.dim), np.float32), settings.dim).shape[1])


def _read_manifest(filesystem: pafs.FileSystem, folder: str) -> dict[str, Any] | None:
    """The manifest of a published version, None for a folder that is none."""
    path = f"{folder}/{MANIFEST}"
    if not exists(filesystem, path):
        if exists(filesystem, f"{folder}/{PLAN}"):
            raise InputError(f"{folder}: a version that is not finished (no {MANIFEST}); give one that is published")
        return None
    with filesystem.open_input_stream(path) as source:
        try:
            manifest = json.loads(source.read())
        except ValueError as error:
            raise InputError(f"{path}: is damaged ({error}); publish the version again") from error
    if not isinstance(manifest, dict) or not {"model", "model_fingerprint"} <= manifest.keys():
        raise InputError(f"{path}: is not a manifest of smec compress; give a folder with the Parquet files only")
    return manifest


def _compress_files(
    model: Model, table: EmbeddingTable, draft: Draft, settings: CompressSettings, workers: int, gpus: float
) -> tuple[list[PublishedFile], int]:
    """Runs the tasks; returns the files in table order and how many rows were compressed, not found finished."""
    # the largest file first: the last task to end decides when all end
    order = sorted(range(len(table.files)), key=lambda number: -table.files[number].rows)
    arguments = {"model": model, "table": table, "draft": draft, "settings": settings, "gpu": gpus > 0}
    files: dict[str, PublishedFile] = {}
    progress = RowProgress("compressed", table.rows)
    for rows, done in run_file_tasks(CompressFile, arguments, [{"file": number} for number in order], workers, gpus):
        progress.add(rows)
        if done:
            files[done.name] = done
    names = [posixpath.basename(part.path) for part in table.files]
    missing = [name for name in names if name not in files]
    if missing or sum(file.rows for file in files.values()) != table.rows:
        raise SmecError(f"{public_uri(draft.uri)}: not all rows arrived (missing files: {missing[:3]}); run again")
    return [files[name] for name in names], progress.rows


def _plan(settings: CompressSettings, dim: int, model: Model, table: EmbeddingTable) -> dict[str, Any]:
    """Everything that decides the version's bytes; an unfinished version with the same plan is taken up again."""
    infos = table.filesystem.get_file_info([part.path for part in table.files])
    stamps = [(info.base_name, info.size, info.mtime_ns) for info in infos]
    plan = {
        "job": "compress",
        "input": public_uri(settings.input),
        "input_fingerprint": hashlib.sha256(json.dumps(stamps).encode()).hexdigest(),
        "model": public_uri(settings.model),
        "model_fingerprint": model.fingerprint,
        "input_dim": model.input_dim,
        "dim": dim,
        "dims": sorted({dim, *(prefix for prefix in model.dims if prefix <= dim)}, reverse=True),
        "dtype": settings.dtype,
    }
    if settings.upgrade and model.base is not None:
        stored = {"dim": table.dim, "dtype": _value_type(table).to_pandas_dtype().__name__}
        plan["upgraded_from"] = {"model_fingerprint": model.base.fingerprint, **stored}
    return plan


def _value_type(table: EmbeddingTable) -> pa.DataType:
    """Number type of the vectors in the first file."""
    kind = pq.read_schema(table.files[0].path, filesystem=table.filesystem).field("embedding").type
    return kind.value_type


def _rows_of(filesystem: pafs.FileSystem, path: str) -> int:
    """Rows by the footer; -1 where there is no finished Parquet file."""
    if not exists(filesystem, path):
        return -1
    try:
        return int(pq.read_metadata(path, filesystem=filesystem).num_rows)
    except pa.ArrowInvalid:
        return -1
