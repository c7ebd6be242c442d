"""`smec train`: streams a dataset into Ray Train workers, trains the chain there, evaluates and stores the model."""

import hashlib
import json
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

import smec_core
from pipelines.console import say
from pipelines.fit import History, fit
from pipelines.model_folder import check_replaceable, replace_folder
from pipelines.tracking import MlflowRecorder
from smec_core.config import TrainConfig
from smec_core.dataset import Dataset
from smec_core.errors import InputError
from smec_core.evaluation import default_split, evaluate
from smec_core.model import Model, load
from smec_core.schedule import chain_dims, prefix_dims
from smec_core.train import Trained
from smec_core.uri import public_uri


class TrainSettings(TrainConfig):
    """What `smec train` takes: where from, where to, on what, and every setting of the method."""

    data: str
    """Dataset folder or URI: corpus, queries and qrels in Parquet."""
    out: str
    """Model folder to write; an earlier model there is replaced once the new one is whole."""
    workers: int = Field(1, ge=1)
    """Ray Train workers; they share every step, so the result does not depend on their number but for rounding."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs, and torch threads, of each worker."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Train on GPUs, one a worker: auto where the cluster has enough."""
    storage: str | None = None
    """Folder that all nodes reach, where a run keeps its state; default: .smec-runs beside the model."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Run name; default: a hash of settings and data. A finished run of this name is returned, not trained again."""

    @field_validator("out", "storage")
    @classmethod
    def _is_path(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("must be a path on a file system that every node mounts, not a URI")
        return value

    def method(self) -> TrainConfig:
        """The settings that decide what is computed."""
        return TrainConfig(**{name: getattr(self, name) for name in TrainConfig.model_fields})


def run(settings: TrainSettings) -> dict[str, Any]:
    """Trains a model and stores it.

    Returns:
        The model's metrics.json.

    Raises:
        InputError: bad settings or data.
        SmecError: the training failed.
    """
    config = settings.method()
    dataset = Dataset.open(settings.data)
    chain_dims(dataset.dim, config.dims)
    dataset.train_judgements()
    out = Path(settings.out)
    check_replaceable(out)
    state = Path(settings.storage or out.absolute().parent / ".smec-runs").absolute()
    if state.is_relative_to(out.absolute()):
        raise InputError(f"storage: {state} lies in the model folder {out}, which is replaced as a whole; name another")
    identity = {"train": config.model_dump(mode="json"), "data": dataset.fingerprint}
    name = settings.name or f"smec-{_digest(identity)}"
    folder = state / name
    finished = folder / "model"
    if finished.exists():
        model = load(finished)
        if {"train": model.config["train"], "data": model.config["data"]["fingerprint"]} != identity:
            raise InputError(f"name: {finished} holds a run with other settings or data; choose another --name")
        say(f"run {name} is finished already; its model is taken from {finished}")
    else:
        model = _train_on_ray(settings, config, dataset, name, folder)
    # hours may have passed
    check_replaceable(out)
    replace_folder(out, lambda new: shutil.copytree(finished, new, dirs_exist_ok=True))
    say(f"model: {out}")
    return model.metrics


def _train_on_ray(settings: TrainSettings, config: TrainConfig, dataset: Dataset, name: str, folder: Path) -> Model:
    folder.mkdir(parents=True, exist_ok=True)
    summary = dataset.summary()
    say(
        f"run {name}: {summary['corpus']['rows']} documents, {summary['queries']['rows']} queries, {dataset.dim} dims, "
        f"to {', '.join(map(str, config.dims))}"
    )
    recorder = MlflowRecorder.start(
        name=name,
        config=settings.model_dump(mode="json"),
        folder=folder,
        tags={"smec.data": public_uri(dataset.uri), "smec.data_fingerprint": dataset.fingerprint},
    )
    say(f"MLflow run {recorder.run_id} in {recorder.uri}")
    try:
        with (folder / "history.jsonl").open("w") as history:
            trained = fit(settings, config, dataset, name, folder, History(history, recorder))
        model = _evaluated(trained, config, dataset, name)
        replace_folder(folder / "model", lambda new: _write_model(model, folder / "history.jsonl", new))
    except BaseException as error:
        interrupted = not isinstance(error, Exception)
        recorder.finish(None, "KILLED" if interrupted else "FAILED", "interrupted" if interrupted else str(error))
        raise
    recorder.finish(folder / "model")
    return model


def _evaluated(trained: Trained, config: TrainConfig, dataset: Dataset, name: str) -> Model:
    """The trained chain as a model that knows what made it and how good it is."""
    summary = dataset.summary()
    record = {
        "dims": prefix_dims(dataset.dim, config.dims),
        "train": config.model_dump(mode="json"),
        "run": name,
        "data": {
            "uri": public_uri(dataset.uri),
            "fingerprint": dataset.fingerprint,
            "rows": dataset.corpus.rows,
            "queries": dataset.queries.rows,
            "splits": summary["splits"],
        },
        "versions": {"smec": smec_core.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    model = Model(trained.stages, dataset.dim, record, trained.metrics)
    split = default_split(dataset)
    say(f"evaluating on {'nearest documents' if split is None else split}")
    model.metrics["evaluation"] = evaluate(dataset, model, split, baselines=True)
    return model


def _write_model(model: Model, history: Path, folder: Path) -> None:
    model.save(folder)
    shutil.copy(history, folder / "history.jsonl")


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()
