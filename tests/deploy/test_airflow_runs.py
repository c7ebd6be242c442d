"""deploy/airflow/smec_retrain.py in a real Airflow, on a real cluster that asks for a token."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.storage.lease import Lease
from pipelines.storage.run_folder import RunFolder
from tests.deploy.airflow_server import Airflow, start_airflow
from tests.deploy.job_cluster import REPOSITORY, Cluster
from tests.kills import Process, descendants
from tests.pipelines.retrain.series import Series

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]

DAG = REPOSITORY / "deploy/airflow/smec_retrain.py"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file that the DAG names."""
    return tmp_path_factory.mktemp("shared") / "retrain.yaml"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def airflow(
    cluster: Cluster, config: Path, tracking: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Airflow]:
    """Airflow with the DAG, set up as its head says."""
    folder = tmp_path_factory.mktemp("airflow")
    # as a link to another environment's command: Airflow's own has no smec
    smec = folder / "bin" / "smec"
    smec.parent.mkdir()
    smec.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" exec "{sys.executable}" -m pipelines.cli "$@"\n')
    smec.chmod(0o755)
    written = DAG.read_text()
    assert written.count('CONFIG = "/shared/retrain.yaml"') == 1
    assert written.count("timedelta(minutes=10)") == 1
    dag_file = written.replace("/shared/retrain.yaml", str(config)).replace("minutes=10", "seconds=1")
    # else Airflow makes up for last night when it first sees the DAG
    assert written.count('schedule="0 3 * * *"') == 1
    dag_file = dag_file.replace('"0 3 * * *"', "None")
    env = {
        **{name: value for name, value in cluster.client_env.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "RAY_API_SERVER_ADDRESS": cluster.dashboard,
        "MLFLOW_TRACKING_URI": tracking,
        "PATH": f"{smec.parent}{os.pathsep}{os.environ['PATH']}",
    }
    with start_airflow(folder / "home", dag_file, "smec_retrain", "retrain", env) as running:
        yield running


@pytest.fixture
def series(tmp_path: Path, config: Path, tracking: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Series]:
    """A series that the DAG retrains."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    series = Series(tmp_path)
    config.write_bytes(series.config.read_bytes())
    yield series
    config.unlink()


def test_exit_codes_become_task_states(airflow: Airflow, cluster: Cluster, series: Series) -> None:
    def night(name: str) -> tuple[str | None, str]:
        airflow.trigger(name)
        state = airflow.wait(name)
        said = airflow.task_log(name, 1)
        print(f"{name}: {state}\n{said}")
        return state, said

    before = cluster.jobs().keys()
    series.judge(0.6)
    assert night("released")[0] == "success"
    assert series.version == "v0001"

    state, said = night("nothing+new")
    assert state == "success"
    assert "there is nothing to do" in said

    series.judge(1, shuffled=("train", "test"))
    state, said = night("refused")
    assert state == "skipped"
    assert "REFUSED: " in said
    assert series.version == "v0001"

    # by someone who does not believe it
    airflow.clear("refused")
    assert airflow.wait("refused", number=2) == "skipped"
    assert "job refused is done already" in airflow.task_log("refused", 2)

    with Lease(RunFolder(str(series.storage), series.name), on_lost=lambda: None):
        state, said = night("at-work")
    assert state == "skipped"
    assert "return code 4" in said

    broken = series.data / "qrels/train.parquet"
    broken.write_bytes(b"not parquet")
    state, said = night("bad_data")
    assert state == "failed"  # after one try: a second would find the same
    assert str(broken) in said

    # one job each: none was started twice
    assert cluster.jobs().keys() - before == {"released", "nothing+new", "refused", "at-work", "bad_data"}


def test_a_task_that_is_killed_or_cleared_finds_its_job_again(
    airflow: Airflow, cluster: Cluster, series: Series, config: Path
) -> None:
    run, settings = "manual__2026-01-02T03:04:05.678901+00:00", config.read_text()
    config.unlink()
    os.mkfifo(config)  # on which the job waits

    def commands() -> list[Process]:
        return [found for found in descendants(airflow.process.pid) if "pipelines.cli submit" in found.title]

    def status() -> str:
        jobs = cluster.jobs()
        return jobs[run].status.value if run in jobs else "none"

    airflow.trigger(run)
    airflow.until(lambda: status() == "RUNNING", "the job")
    # the command is lost, so the task is tried again
    os.kill(commands()[-1].pid, signal.SIGKILL)
    airflow.wait_for_line(run, 2, "runs already")

    # so is everything of the task, as on a machine that is gone; Airflow misses its heartbeat
    works = [found for found in descendants(airflow.process.pid) if found.title.startswith("airflow worker -- ")]
    lost = [found for found in works if "<idle>" not in found.title] + commands()
    assert len(lost) >= 3, lost
    for found in lost:
        os.kill(found.pid, signal.SIGKILL)
    airflow.wait_for_line(run, 3, "runs already")

    airflow.mark_failed(run)
    airflow.until(lambda: not commands(), "the end of the command")
    assert status() == "RUNNING"

    airflow.clear(run)
    airflow.wait_for_line(run, 4, "runs already")
    config.write_text(settings)
    assert airflow.wait(run, number=4) == "success"
    assert [job for job in cluster.jobs() if job.startswith("manual")] == [run]
    assert series.version == "v0001"
