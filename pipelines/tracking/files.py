"""What a finished training leaves in its MLflow run: final figures, files, pictures, and the model for serving."""

import csv
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import smec_core
from pipelines.tracking.plots import loss_picture, main_measure, quality_picture
from smec_core.data.seen import PARTS, parts_of
from smec_core.shown import csv_cell
from smec_core.temporary import temporary_folder

FINGERPRINT_TAG = "smec.model_fingerprint"
MOST_METRICS = 1000
"""How many metrics MLflow takes in one request."""
MODEL_REQUIREMENTS = ("numpy", "pyarrow", "pydantic", "safetensors", "torch")
"""What smec_core.load and encode import; MLflow adds itself."""


def metric(name: str, value: float, step: int = 0, timestamp: int | None = None) -> Metric:
    """A metric under a name that MLflow takes: ndcg@10 becomes ndcg_at_10."""
    legal = re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))
    return Metric(legal, float(value), int(time.time() * 1000) if timestamp is None else timestamp, step)


def log_figures(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Logs what metrics.json holds.

    MLflow shows metrics in sections, by what stands before the last slash, in order of the alphabet: first `cost` and
    `quality`, then `stages`, which has steps and epochs. A figure for each dim is a curve with the dim as its step, as
    quality/test/ndcg_at_10.
    """
    metrics = _read(folder, "metrics.json")
    by_dim: dict[str, Mapping[str, Any]] = {
        f"quality/dev/{name}": scores for name, scores in metrics.get("dev", {}).items()
    }
    for name in ("epochs", "dev_score", "seconds"):
        by_dim[f"stages/{name}"] = {str(stage["dim"]): stage.get(name) for stage in metrics.get("stages", [])}
    if evaluation := metrics.get("evaluation"):
        by_dim |= _evaluation_curves(evaluation)
    figures = [
        metric(name, value, int(dim))
        for name, values in by_dim.items()
        for dim, value in values.items()
        if _is_number(value)
    ]
    figures += [
        metric(f"cost/{name}", value) for name, value in metrics.get("training", {}).items() if _is_number(value)
    ]
    for start in range(0, len(figures), MOST_METRICS):
        client.log_batch(run_id, metrics=figures[start : start + MOST_METRICS])


def _evaluation_curves(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    main, place = main_measure(evaluation), evaluation["split"] or "held_out"
    if evaluation.get("learnt"):
        # beside the curve of the first pass, which had not learnt from dev
        place += "_learnt"
    curves = {name: scores for name, scores in evaluation.items() if "@" in name}
    for name, scores in evaluation.get("baselines", {}).items():
        # the original embeddings' score is a level
        curves[f"{main}_{name}"] = scores if isinstance(scores, Mapping) else dict.fromkeys(evaluation[main], scores)
    for number, name in enumerate(("low", "high")):
        interval = evaluation.get("intervals", {}).get(main, {})
        curves[f"{main}_{name}"] = {dim: ends[number] for dim, ends in interval.items()}
    found = {f"quality/{place}/{name}": values for name, values in curves.items()}
    for name in PARTS.keys() & evaluation.keys():
        # a part is an evaluation of its own
        if evaluation[name]["queries"]:
            found |= _evaluation_curves({"split": f"{place}/{name}"} | evaluation[name])
        found[f"quality/{place}/{name}/queries"] = {"0": evaluation[name]["queries"]}
    return found


def log_files(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Logs the model folder, the evaluation as a table that MLflow shows, and the pictures."""
    client.log_artifacts(run_id, str(folder), "model_folder")
    history_file = folder / "history.jsonl"
    history = [json.loads(line) for line in history_file.read_text().splitlines()] if history_file.exists() else []
    with temporary_folder() as made:
        pictures = made / "pictures"
        pictures.mkdir()
        if evaluation := _read(folder, "metrics.json").get("evaluation"):
            _write_table(made / "evaluation.csv", evaluation)
            quality_picture(evaluation).savefig(pictures / "quality.png", dpi=120)
        if any("loss" in record for record in history):
            loss_picture(history).savefig(pictures / "loss.png", dpi=120)
        client.log_artifacts(run_id, str(made))


def log_model(client: MlflowClient, run_id: str, folder: Path, model: smec_core.Model) -> None:
    """Logs the model as `runs:/<run id>/model`, for `mlflow.pyfunc.load_model` and `mlflow models serve`.

    What `mlflow.pyfunc.log_model` does, but through a client: that function needs MLflow's global tracking URI.

    Args:
        client: of the server.
        run_id: the run.
        folder: the stored model.
        model: the same, read.
    """
    experiment_id = client.get_run(run_id).info.experiment_id
    tags = {FINGERPRINT_TAG: model.fingerprint}
    logged = client.create_logged_model(experiment_id, "model", run_id, tags, model_type="smec")
    try:
        log_model_files(client, logged, folder, model)
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    client.set_tag(run_id, FINGERPRINT_TAG, model.fingerprint)


def log_model_files(client: MlflowClient, logged: LoggedModel, folder: Path, model: smec_core.Model) -> None:
    """Logs the files of a logged model.

    Args:
        client: of the server.
        logged: the logged model.
        folder: the stored model.
        model: the same, read.
    """
    # without inputs: MLflow refuses a tensor of another type than the one named, and numpy's default is not the model's
    signature = ModelSignature(
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
        params=ParamSchema([ParamSpec("dim", DataType.long, default=model.input_dim)]),
    )
    with temporary_folder() as made:
        mlflow.pyfunc.save_model(
            f"{made}/model",
            mlflow_model=Model(
                logged.artifact_location, logged.source_run_id, model_uuid=logged.model_id, model_id=logged.model_id
            ),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(folder)},
            code_paths=[str(Path(smec_core.__file__).parent)],
            signature=signature,
            input_example=(np.eye(1, model.input_dim, dtype=np.float32), {"dim": min(model.dims)}),
            # "+cpu" and the like name builds that package indexes do not have
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in MODEL_REQUIREMENTS],
            metadata={"smec_fingerprint": model.fingerprint, "smec_dims": list(model.dims)},
        )
        client.log_model_artifacts(logged.model_id, f"{made}/model")


def _read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _write_table(path: Path, evaluation: Mapping[str, Any]) -> None:
    """A row a dim: the model's scores, then those of its baselines in the main measure."""
    main = main_measure(evaluation)
    columns = {name: scores for name, scores in evaluation.items() if "@" in name}
    for number, end in enumerate(("low", "high")):
        if interval := evaluation.get("intervals", {}).get(main):
            columns[f"{main} 95 % {end}"] = {dim: ends[number] for dim, ends in interval.items()}
    for name, scores in evaluation.get("baselines", {}).items():
        columns[f"{main} {name}"] = scores if isinstance(scores, Mapping) else dict.fromkeys(evaluation[main], scores)
    for label, part in parts_of(evaluation).items():
        columns[f"{main} {label}"] = part[main]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["dim", *map(csv_cell, columns)])
        rows.writerows([dim, *(scores.get(dim, "") for scores in columns.values())] for dim in evaluation[main])
