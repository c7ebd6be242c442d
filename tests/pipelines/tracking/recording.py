"""A training as it is recorded, and what is then in a store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.storage.run_folder import RunFolder
from pipelines.tracking.recorder import MlflowRecorder

SCORES = {"8": 0.71, "4": 0.62}
EVALUATION = {
    "split": "test",
    "queries": 120,
    "ndcg@10": SCORES,
    "recall@10": {"8": 0.8, "4": 0.7},
    "recall@100": {"8": 0.9, "4": 0.85},
    "mrr@10": {"8": 0.6, "4": 0.5},
    "baselines": {"truncation": {"8": 0.6, "4": 0.3}, "pca": {"8": 0.6, "4": 0.5}, "full": 0.6},
    "intervals": {"ndcg@10": {"8": [0.65, 0.77], "4": [0.55, 0.69]}, "kept": {"8": [1.1, 1.3], "4": [0.9, 1.1]}},
}
CONFIG = {"dims": (4,), "lr": 0.001, "data": "s3://AKIA:hunter2@bucket/set?region=x", "notes": "long " * 2000}


def start(folder: Path, config: Mapping[str, Any] = CONFIG, **more: Any) -> MlflowRecorder:
    """Records a training that keeps its state in a local folder, `nightly` of the one given."""
    run_folder = RunFolder(str(folder), "nightly")
    run_folder.create()
    return MlflowRecorder.start(config, run_folder, folder, **more)


def step(number: int, **changes: Any) -> dict[str, Any]:
    figures = {"epoch": number // 10, "step": number, "loss": 1 / number, "tau": 1.0, "seconds/data": 0.1}
    return {"pass": "first", "stage": 4, "projection": "linear"} | figures | changes


def steps_of(run: Run, client: MlflowClient, name: str = "stages/first/4/linear/loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run.info.run_id, name)]


def by_dim(run: Run, client: MlflowClient, name: str) -> dict[int, float]:
    """A measure by dim, which is the step of its curve."""
    return {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}


def only_run(client: MlflowClient) -> Run:
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 1, f"{len(runs)} runs"
    return runs[0]


def offline_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow-offline/mlflow.db")


def files_of(client: MlflowClient, run_id: str, path: str | None = None) -> set[str]:
    found: set[str] = set()
    for file in client.list_artifacts(run_id, path):
        found |= files_of(client, run_id, file.path) if file.is_dir else {file.path}
    return found


def all_bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
