"""`smec train --dry-run` through the command: what is printed, what is written, and that nothing is started or made."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from click.testing import CliRunner

from pipelines.cli import app
from pipelines.storage.run_folder import RunFolder
from pipelines.train.checkpoints import write_file_list
from pipelines.train.job import Training
from pipelines.train.settings import TrainSettings
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.model.model import Model
from smec_core.training.scanned import load_training_data
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train
from tests.builders import write_dataset


def smec(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", docs=300, queries=200, dim=16)


@pytest.fixture(scope="module")
def model(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig(dims=(8,), epochs=1)
    trained = train(load_training_data(Dataset.open(str(dataset)), config), config, NullTracker())
    folder = tmp_path_factory.mktemp("model") / "m"
    Model(trained.stages, 16, {"dims": [16, 8]}, trained.metrics).save(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_may_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr("pipelines.tracking.recorder.MlflowRecorder.start", refuse)
    # where MLflow's own store would appear
    monkeypatch.chdir(tmp_path)


def dry_run(data: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """The figures, once it is clear that nothing else was made."""
    figures = folder / "figures.json"
    flags = ["--data", str(data), "--out", str(folder / "model"), "--dry-run", "--json", str(figures)]
    code, printed, errors = smec("train", *flags, *arguments)
    assert code == 0, errors
    assert [path.name for path in folder.iterdir()] == ["figures.json"]
    found: dict[str, Any] = json.loads(figures.read_text())
    assert "total" in printed or found["finished"]
    # cut short where the terminal is narrow, figures say something else
    assert "…" not in printed
    return found


def test_it_says_steps_time_memory_and_disk_and_makes_nothing(dataset: Path, tmp_path: Path) -> None:
    found = dry_run(dataset, tmp_path, "--dims", "8,4")
    assert [(stage["pass"], stage["d_in"], stage["dim"]) for stage in found["stages"]] == [
        (name, *shape) for name in ("first", "refit") for shape in ((16, 16), (16, 8), (8, 4))
    ]
    for stage in found["stages"]:
        assert stage["steps"]["least"] <= stage["steps"]["most"]
        assert stage["step_ms"] > 0
    training = found["seconds"]["training"]
    assert training["least"] <= training["most"]
    assert training["most"] == pytest.approx(sum(stage["seconds"]["most"] for stage in found["stages"]), abs=0.5)
    assert found["memory"]["rows_of_a_node"] > 500 * 16 * 4
    assert found["disk"]["checkpoints"] > 0


def test_a_training_of_a_closed_form_has_no_steps(dataset: Path, tmp_path: Path) -> None:
    found = dry_run(dataset, tmp_path, "--dims", "8,4", "--preset", "fast")
    assert [stage["steps"] for stage in found["stages"]] == [{"least": 0, "most": 0}] * len(found["stages"])
    assert all(stage["step_ms"] == 0 for stage in found["stages"])


def test_the_run_has_the_name_that_it_would_have(dataset: Path, tmp_path: Path) -> None:
    found = dry_run(dataset, tmp_path, "--dims", "8,4")
    settings = TrainSettings.model_validate({"data": str(dataset), "dims": "8,4", "out": str(tmp_path / "model")})
    assert found["run"] == Training(settings).name


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "paper"],
        ["--preset", "fast"],
        ["--set", "epochs=0"],
        ["--set", "epochs=1"],
        ["--set", "schedule=parallel"],
        ["--workers", "2"],
        ["--workers", "1:4"],
        ["--set", "alpha=0.1"],
        ["--set", "projection=residual_mlp"],
        ["--set", "hold_out=0.2"],
        ["--set", "sample_rows=100"],
        ["--set", "epochs=100000"],
    ],
    ids=" ".join,
)
def test_any_settings_of_a_training_have_their_figures(arguments: list[str], dataset: Path, tmp_path: Path) -> None:
    assert dry_run(dataset, tmp_path, "--dims", "8,4", *arguments)["stages"]


def test_it_warns_of_what_does_not_fit(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert dry_run(dataset, tmp_path, "--dims", "8,4")["warnings"] == []
    found = dry_run(dataset, tmp_path, "--dims", "8,4", "--workers", "5000")
    [cores] = found["warnings"]
    assert cores.startswith("workers: 5000 of 1 CPU(s) take turns on")
    # what another machine has is not known
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    [elsewhere] = dry_run(dataset, tmp_path, "--dims", "8,4", "--workers", "5000")["warnings"]
    assert "RAY_ADDRESS" in elsewhere


def test_it_says_that_the_run_would_go_on(dataset: Path, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "here"
    folder.mkdir()
    flags = ["--dims", "8", "--name", "begun", "--storage", str(runs)]
    assert dry_run(dataset, folder, *flags)["warnings"] == []
    state = runs / "begun" / "begun.start-1" / "checkpoint"
    state.mkdir(parents=True)
    (state / "weights").write_bytes(b"1234")
    write_file_list(state, 0, 1, 3)
    [begun] = dry_run(dataset, folder, *flags)["warnings"]
    assert "checkpoint" in begun


@pytest.mark.parametrize(("queries", "passes"), [(10, {"first"}), (200, {"first", "refit"})])
def test_without_judgements_enough_queries_have_dev_and_a_refit(
    queries: int, passes: set[str], dataset: Path, tmp_path: Path
) -> None:
    data = tmp_path / "copied"
    folder = tmp_path / "here"
    folder.mkdir()
    data.mkdir()
    (data / "corpus").symlink_to(dataset / "corpus")
    pq.write_table(pq.read_table(dataset / "queries.parquet").slice(0, queries), data / "queries.parquet")
    assert {stage["pass"] for stage in dry_run(data, folder, "--dims", "8,4")["stages"]} == passes


def test_a_warm_start_and_added_dims_have_their_figures(dataset: Path, model: Path, tmp_path: Path) -> None:
    warm = dry_run(dataset, tmp_path, "--dims", "8", "--warm-start", str(model), "--compatible")
    assert {stage["pass"] for stage in warm["stages"]} == {"warm"}
    added = dry_run(dataset, tmp_path, "--dims", "4", "--from", str(model))
    assert {(stage["d_in"], stage["dim"]) for stage in added["stages"]} == {(8, 4)}


def test_a_finished_run_would_not_be_trained(dataset: Path, model: Path, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "here"
    folder.mkdir()
    flags = ["--dims", "8", "--name", "done", "--storage", str(runs)]
    settings = {"data": str(dataset), "dims": "8", "out": str(folder / "model"), "name": "done"}
    run_folder = RunFolder(str(runs), "done")
    run_folder.create()
    run_folder.claim(Training(TrainSettings.model_validate(settings)).identity)
    assert not dry_run(dataset, folder, *flags)["finished"]
    run_folder.store_model(model)
    assert dry_run(dataset, folder, *flags) == {"run": "done", "finished": True}
    code, _, errors = smec(
        "train", "--data", str(dataset), "--out", str(folder / "m"), "--dry-run", *flags[2:], "--dims", "4"
    )
    assert code == 2
    assert "was made with other settings or data" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dims", "32"], "dims: 32 is more than the 16 dims of the data"),
        (["--dims", "8", "--warm-start", "nowhere"], "nowhere"),
        (["--dims", "8", "--set", "taau=1"], "did you mean 'tau'"),
    ],
)
def test_bad_input_is_refused_as_a_training_refuses_it(
    arguments: list[str], message: str, dataset: Path, tmp_path: Path
) -> None:
    code, _, errors = smec("train", "--data", str(dataset), "--out", str(tmp_path / "model"), "--dry-run", *arguments)
    assert code == 2
    assert message in errors
    assert not list(tmp_path.iterdir())
