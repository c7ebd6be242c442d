"""Figures of the machine in a training's MLflow run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.pipelines.tracking.recording import offline_client, only_run, start, step, steps_of
from tests.pipelines.tracking.servers import wait_until

pytestmark = pytest.mark.server

CPU, MEMORY = "system/cpu_utilization_percentage", "system/system_memory_usage_percentage"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")


def system_names(run: Run) -> set[str]:
    return {name for name in run.data.metrics if name.startswith("system/")}


def has_step(client: MlflowClient, run_id: str, step: int) -> bool:
    return step in steps_of(client.get_run(run_id), client)


def test_a_restart_goes_on_with_the_figures_of_its_machine(tmp_path: Path) -> None:
    client = MlflowClient()
    for least in (2, 4):
        recorder = start(tmp_path / "state")
        wait_until(lambda least=least: len(steps_of(only_run(client), client, CPU)) >= least)  # type: ignore[misc]
        recorder.finish(None)

    run = only_run(client)
    for name in (CPU, MEMORY, "system/disk_usage_percentage", "system/network_receive_megabytes"):
        steps = steps_of(run, client, name)
        assert steps == list(range(len(steps)))
    history = client.get_metric_history(run.info.run_id, MEMORY)
    assert all(0 < metric.value <= 100 for metric in history)
    assert [metric.timestamp for metric in history] == sorted(metric.timestamp for metric in history)


def test_when_the_server_dies_they_go_where_the_rest_goes(
    server: tuple[str, Callable[[], None]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, kill = server
    server_store = MlflowClient(f"sqlite:///{tmp_path}/server/server.db")
    recorder = start(tmp_path / "state")
    wait_until(lambda: steps_of(only_run(server_store), server_store, CPU))
    of_server = recorder.run_id
    kill()
    recorder.log(step(1))
    wait_until(lambda: recorder.run_id not in ("", of_server))
    offline = offline_client(tmp_path / "state")
    wait_until(lambda: steps_of(only_run(offline), offline, CPU))
    recorder.finish(None)

    assert steps_of(only_run(offline), offline, "stages/first/4/linear/loss") == [1]
    assert capfd.readouterr().err.count("warning: ") == 1


def test_mlflows_own_variable_switches_them_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    client = MlflowClient()
    recorder = start(tmp_path / "state")
    for number in (1, 2, 3):
        # by the third time a sample would have been sent
        recorder.log(step(number))
        wait_until(partial(has_step, client, recorder.run_id, number))
    recorder.finish(None)
    assert not system_names(only_run(client))


def test_a_study_has_them_once_and_not_for_each_trial(tmp_path: Path) -> None:
    client = MlflowClient()
    study = start(tmp_path / "study")
    trial = start(tmp_path / "trial", parent=study)
    for number in (1, 2, 3):
        trial.log(step(number))
        wait_until(partial(has_step, client, trial.run_id, number))
    wait_until(lambda: CPU in system_names(client.get_run(study.run_id)))
    trial.finish(None)
    study.finish(None)
    assert not system_names(client.get_run(trial.run_id))
