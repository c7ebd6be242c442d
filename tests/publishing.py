"""Published folders as `smec compress` writes them, by its own parts, in this process and without Ray."""

import json
from pathlib import Path
from typing import Any

from pipelines.compress import job as compress_job
from pipelines.compress.actor import CompressPiece, Job, cut
from pipelines.compress.reuse import inputs_of
from pipelines.compress.settings import CompressSettings
from pipelines.storage.publish import Draft, promote
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.stored_files import StoredFile
from smec_core.data.table_files import states_of
from smec_core.data.versions import in_force
from smec_core.model.files import load


def publish(out: str | Path, model: str | Path, source: str | Path, *dims: int, **more: Any) -> str:
    """Puts a version in force that holds a table's vectors at some dims, and returns its name."""
    settings = CompressSettings(model=str(model), input=str(source), output=str(out), dim=dims, **more)
    made_by, table, seen = load(settings.model), EmbeddingTable.open(settings.input), in_force(settings.output)
    states = states_of(table.filesystem, [part.path for part in table.files])
    draft = Draft.open(settings.output, compress_job._plan(settings, dims, made_by, table, settings.input, ""))
    bad = table.rows if settings.on_bad_row == "quarantine" else None
    job = Job(made_by, table, draft.filesystem, draft.folder, dims, settings.dtype, False, bad, settings.batch_rows)
    pieces = cut(table, settings.rows_per_file)
    records = [
        json.loads(told["done"])
        for piece in pieces
        for told in CompressPiece(job, False)(piece._asdict())
        if told["done"]
    ]
    files = [StoredFile(*found) for found in records]
    apart = sum(file.rows for file in files if file.name.startswith("_"))
    draft.finish(
        sorted(files), {"rows": table.rows - apart, "quarantined": apart, "inputs": inputs_of(table, pieces, states)}
    )
    promote(settings.output, draft.name, seen)
    return draft.name
