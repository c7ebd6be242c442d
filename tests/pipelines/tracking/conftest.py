"""A store and a folder of its own for every test, and a trained model to record."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from tests.pipelines.tracking.recording import EVALUATION, step
from tests.pipelines.tracking.servers import serving


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs; making one takes MLflow seconds, copying it none."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_store: Path) -> None:
    """One try instead of three, so that a dead server is noticed soon; MLflow's files go to the test's own folder."""
    shutil.copy(empty_store, tmp_path / "direct.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/direct.db")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Callable[[], None]]]:
    """A tracking server with a password, which MLflow is told to use; its address, and what kills it."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "server.db")
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/server"]
    with serving(["server", *store], folder) as (address, kill):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:hunter2@{address}")
        yield address, kill


@pytest.fixture(scope="session")
def model() -> Model:
    generator = torch.Generator().manual_seed(0)
    stages = [
        FrozenStage(dim, "linear", {"weight": torch.randn(8, 8, generator=generator), "logits": torch.zeros(8)})
        for dim in (8, 4)
    ]
    metrics = {
        "dev": {"ndcg@10": {"8": 0.7, "4": 0.6}},
        "stages": [
            {"d_in": 8, "dim": dim, "projection": "linear", "epochs": 2, "dev_score": 1.4, "seconds": 3.0}
            for dim in (8, 4)
        ],
        "evaluation": EVALUATION,
        "training": {"seconds": 12.5, "steps": 30, "workers": 2, "device": "cpu"},
    }
    config = {"dims": [8, 4], "train": {"seed": 0}}
    return Model(stages, 8, config, metrics)


@pytest.fixture(scope="session")
def model_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "model"
    model.save(folder)
    (folder / "history.jsonl").write_text("".join(json.dumps(step(number)) + "\n" for number in range(1, 31)))
    return folder
