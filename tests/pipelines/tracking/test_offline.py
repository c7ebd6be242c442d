"""A training's run in MLflow where the server or the store fails."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from pipelines.storage.run_folder import RunFolder
from pipelines.tracking.recorder import MlflowRecorder
from smec_core.model.model import Model
from tests.pipelines.tracking.recording import (
    CONFIG,
    all_bytes,
    by_dim,
    files_of,
    offline_client,
    only_run,
    start,
    step,
    steps_of,
)
from tests.pipelines.tracking.servers import wait_until

pytestmark = pytest.mark.server


def test_a_server_killed_in_mid_run_costs_one_warning_and_a_local_copy_of_the_rest(
    model: Model,
    model_folder: Path,
    server: tuple[str, Callable[[], None]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    address, kill = server
    server_store = MlflowClient(f"sqlite:///{tmp_path}/server/server.db")
    recorder = start(tmp_path / "state")
    server_run = recorder.run_id
    for number in range(1, 6):
        recorder.log(step(number))
    wait_until(lambda: server_store.get_metric_history(server_run, "stages/first/4/linear/loss"))
    kill()
    for number in range(6, 11):
        recorder.log(step(number))
    recorder.finish(model_folder)

    offline = offline_client(tmp_path / "state")
    run = only_run(offline)
    assert (run.info.run_name, run.info.status) == ("nightly", "FINISHED")
    assert run.data.tags["smec.continues"] == f"run {server_run} at http://***@{address}"
    assert run.data.params["lr"] == "0.001"
    assert steps_of(only_run(server_store), server_store) == [1, 2, 3, 4, 5]
    assert set(steps_of(run, offline)) >= {6, 7, 8, 9, 10}  # and what the server took without living to say so
    assert by_dim(run, offline, "quality/test/ndcg_at_10")[4] == 0.62
    assert "model_folder/adapter.safetensors" in files_of(offline, run.info.run_id)
    stored = next((tmp_path / "state" / "mlflow-offline" / "artifacts" / "models").glob("*/artifacts"))
    x_ND = np.ones((1, 8), dtype=np.float32)
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(str(stored)).predict(x_ND), model.encode(x_ND))

    printed = capfd.readouterr()
    assert printed.err.count("warning: ") == 1
    assert f"MLflow at http://***@{address} fails: " in printed.err
    assert "Traceback" not in printed.err
    assert "hunter2" not in printed.out + printed.err
    assert b"hunter2" not in all_bytes(tmp_path / "state")


def test_two_threads_that_meet_a_dead_server_give_up_that_one_alone(
    server: tuple[str, Callable[[], None]], tmp_path: Path
) -> None:
    _, kill = server
    recorder = start(tmp_path / "state")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "plan.txt").write_text("whole")
    kill()
    # as the thread that sends figures, and whoever trains
    gate = Barrier(6)

    def send(number: int) -> None:
        gate.wait()
        recorder.log_files(folder)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(send, range(6)))
    assert recorder.uri == f"sqlite:///{tmp_path}/state/mlflow-offline/mlflow.db"
    recorder.log(step(1))
    recorder.finish(None)
    offline = offline_client(tmp_path / "state")
    run = only_run(offline)
    assert files_of(offline, run.info.run_id) == {"plan.txt"}
    assert steps_of(run, offline) == [1]


def test_a_restart_returns_to_the_run_on_a_server_that_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = os.environ["MLFLOW_TRACKING_URI"]
    first = start(tmp_path / "state")
    first.finish(None, "KILLED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    runs = []
    for number in (1, 2):
        recorder = start(tmp_path / "state")
        recorder.log(step(number))
        recorder.finish(None, "KILLED")
        runs.append(recorder.run_id)
    assert runs[0] == runs[1] != first.run_id
    assert steps_of(only_run(offline_client(tmp_path / "state")), offline_client(tmp_path / "state")) == [1, 2]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", direct)
    last = start(tmp_path / "state")
    last.finish(None)
    assert last.run_id == first.run_id


def test_where_only_artifacts_fail_the_servers_run_has_its_figures_and_says_that_it_is_not_whole(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    (tmp_path / "file").write_text("")
    client.create_experiment("smec", f"file://{tmp_path}/file/artifacts")  # no folder can be made there
    start(tmp_path / "state").finish(model_folder)
    run = only_run(client)
    assert run.info.status == "FAILED"
    assert run.data.tags["smec.error"].startswith("incomplete: ")
    assert "mlflow-offline" in run.data.tags["smec.error"]
    assert by_dim(run, client, "quality/test/ndcg_at_10")[4] == 0.62
    offline = offline_client(tmp_path / "state")
    assert only_run(offline).info.status == "FINISHED"
    assert "evaluation.csv" in files_of(offline, only_run(offline).info.run_id)
    assert capfd.readouterr().err.count("warning: ") == 1


def test_a_run_whose_store_was_given_up_before_the_end_does_not_look_as_if_it_were_in_training(tmp_path: Path) -> None:
    client = MlflowClient()
    (tmp_path / "file").write_text("")
    client.create_experiment("smec", f"file://{tmp_path}/file/artifacts")  # no folder can be made there
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "summary.json").write_text("{}")
    recorder = start(tmp_path / "state")
    recorder.log_files(tmp_path / "results")
    recorder.finish(None)
    run = only_run(client)
    assert run.info.status == "FAILED"
    assert run.data.tags["smec.error"].startswith("incomplete: ")


def test_training_goes_on_when_nothing_can_be_recorded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "file").write_text("")
    recorder = MlflowRecorder.start(CONFIG, RunFolder(str(tmp_path / "state"), "nightly"), tmp_path / "file")
    recorder.log(step(1))
    recorder.finish(model_folder)
    assert (recorder.run_id, recorder.uri) == ("", "")
    assert "goes on without MLflow" in capfd.readouterr().err
