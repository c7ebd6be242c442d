"""`pipelines.train.fit`: what `smec_core.fit` does, on a Ray cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.console import say
from pipelines.data.opened import open_dataset
from pipelines.storage.files import new_file
from pipelines.storage.model_folder import check_replaceable
from pipelines.storage.run_folder import check_storage
from pipelines.train.job import run
from pipelines.train.settings import TrainSettings
from smec_core.config import PRESETS
from smec_core.data.columns import given_columns
from smec_core.data.dataset import Dataset
from smec_core.data.forms import Qrels, Vectors, dataset_of
from smec_core.data.memory import MemoryDataset
from smec_core.data.parquet import ROW_GROUP_ROWS
from smec_core.data.records import exists
from smec_core.data.uri import join_uri, open_filesystem, public_uri
from smec_core.errors import InputError
from smec_core.layers import merged
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.temporary import temporary_folder
from smec_core.training.finish import Parents
from smec_core.training.fit import plain_dims
from smec_core.training.plan import plan_training
from smec_core.training.self_taught import shape_unread


def fit(
    corpus: Vectors | str | Path | Dataset,
    queries: Vectors = None,
    qrels: Qrels = None,
    *,
    dims: Sequence[int] | int | str,
    out: str | Path,
    preset: str | None = None,
    base: Model | str | Path | None = None,
    warm_start: Model | str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    **settings: Any,
) -> Model:
    """Trains on the cluster of RAY_ADDRESS, or on one on this machine, as `smec train` does: it survives kills.

    Args:
        corpus: as `smec_core.fit` takes it. Arrays and tables are written to `storage` as a dataset, once: all nodes
            read them there.
        queries: queries.
        qrels: judgements.
        dims: target dims.
        out: model folder to write.
        preset: settings under the others.
        base: model, or its folder or URI, to which smaller dims are added.
        warm_start: model, or its folder or URI, whose weights the training starts at.
        columns: names of columns that have others.
        settings: of `smec train`: `workers=4`, `storage="s3://bucket/runs"`, `epochs=5`.

    Returns:
        The model in `out`.

    Raises:
        InputError: bad settings or data.
        SmecError: the training failed.

    Example:
        >>> model = fit(corpus, queries, qrels, dims=[16, 8], out="model", workers=2)  # doctest: +SKIP
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"preset: {preset} is unknown; known: {', '.join(PRESETS)}")
    if "data" in settings:
        raise InputError("data: is no setting here; give what is trained on as corpus, queries and qrels")
    with temporary_folder() as made:
        given: dict[str, Any] = {
            "dims": plain_dims(dims),
            "data": "",
            "out": str(out),
            "columns": given_columns(columns),
            **settings,
        }
        for name, model in (("base", base), ("warm_start", warm_start)):
            if isinstance(model, Model):
                model.save(made / name)
                model = made / name
            given[name] = None if model is None else str(model)
        layers = [("the preset", PRESETS[preset] if preset else {}), ("fit", given)]

        def checked() -> TrainSettings:
            return merged(TrainSettings, layers, lambda key: f"give {key}=")

        asked = checked()
        if asked.dry_run:
            raise InputError("dry_run: makes no model; use smec train --dry-run")
        check_replaceable(Path(out))
        check_storage(settings.get("storage"))
        dataset = dataset_of(corpus, queries, qrels, exclude_self=asked.exclude_self, columns=columns)
        if isinstance(corpus, Dataset) and not isinstance(corpus, MemoryDataset):
            _check_as_stored(dataset, asked)
        given["data"] = dataset.uri
        if isinstance(dataset, MemoryDataset):
            # before all of it is written
            parents, config = Parents.of(given["base"], given["warm_start"], dataset.dim), asked.method()
            plan_training(shape_unread(dataset, config), config, parents.base_stages, parents.warm_start)
            storage = settings.get("storage") or str(Path(out).absolute().parent / ".smec-runs")
            given |= {"data": _written(dataset, join_uri(storage, f"data-{dataset.fingerprint}")), "columns": {}}
        run(checked())
    return load(out)


def _check_as_stored(dataset: Dataset, settings: TrainSettings) -> None:
    """Refuses an open dataset that is not what a cluster would read anew from its folder.

    Raises:
        InputError: it is not.
    """
    stored = open_dataset(dataset.uri, exclude_self=settings.exclude_self, columns=settings.columns)

    def told(one: Dataset) -> list[Any]:
        judged = {
            name: [found.tobytes() for found in (some.query_row_Q, some.offset_Q1, some.doc_row_J, some.score_J)]
            + [some.own_doc_of is not None]
            for name, some in one.splits.items()
        }
        return [[part.path for part in one.corpus.files], one.corpus.names, judged]

    if told(stored) != told(dataset):
        raise InputError(
            f"corpus: this dataset is not as {public_uri(dataset.uri)} has it (part of it is held out, it is reversed, "
            "or exclude_self or columns are its own), and workers read it there; give the folder, and these as "
            "settings (hold_out=, exclude_self=, columns=), or take smec_core.fit"
        )


def _written(dataset: MemoryDataset, uri: str) -> str:
    """Writes a dataset to a folder that is named by its content, so that what is there already is the same."""
    filesystem, folder = open_filesystem(uri)
    content = dict(dataset.content)
    if not content["queries"].num_rows:
        # a dataset has queries; a training without judgements uses none
        content["queries"] = content["corpus"].slice(0, 1)
    for name, table in content.items():
        path = f"{folder}/{name}.parquet"
        if not exists(filesystem, path):
            with new_file(filesystem, path) as sink:
                pq.write_table(
                    table, sink, use_dictionary=False, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True
                )
    say(f"data: {public_uri(uri)}")
    return uri
