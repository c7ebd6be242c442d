"""A training's run in MLflow, also where the training is killed."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import smec_core
from pipelines.storage.run_folder import RunFolder
from smec_core.data.dataset import Dataset
from smec_core.errors import InputError, SmecError
from smec_core.model.model import Model
from tests.builders import write_dataset
from tests.pipelines.tracking.recording import (
    CONFIG,
    SCORES,
    all_bytes,
    by_dim,
    files_of,
    offline_client,
    only_run,
    start,
    step,
    steps_of,
)
from tests.pipelines.tracking.servers import PATIENCE_SECONDS

pytestmark = pytest.mark.server

REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_training_is_one_run_on_the_server_and_its_password_is_nowhere(
    model: Model,
    model_folder: Path,
    server: tuple[str, Callable[[], None]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    address, _ = server
    recorder = start(tmp_path / "state", tags={"smec.data_fingerprint": "fedcba98"})
    for number in range(1, 11):
        recorder.log(step(number))
    recorder.log({"pass": "first", "stage": 4, "projection": "linear", "epoch": 1, "step": 10, "dev_ndcg@10": 0.61})
    for number in range(11, 21):
        recorder.log(step(number, projection="rotation"))
    for number in range(21, 31):
        recorder.log(step(number, **{"pass": "refit"}))
    recorder.finish(model_folder)

    client = MlflowClient()
    run = only_run(client)
    assert recorder.run_id == run.info.run_id
    assert (run.info.run_name, run.info.status) == ("nightly", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "smec"
    assert run.data.params["dims"] == "(4,)"
    assert CONFIG["notes"].startswith(run.data.params["notes"])  # type: ignore[attr-defined]
    assert run.data.tags["smec.data_fingerprint"] == "fedcba98"
    assert run.data.tags["smec.version"] == smec_core.__version__
    assert run.data.tags["smec.model_fingerprint"] == model.fingerprint

    # curves of projections and passes stay apart
    assert steps_of(run, client, "stages/first/4/linear/loss") == list(range(1, 11))
    assert steps_of(run, client, "stages/first/4/rotation/loss") == list(range(11, 21))
    assert steps_of(run, client, "stages/refit/4/linear/loss") == list(range(21, 31))
    assert run.data.metrics["stages/first/4/linear/seconds/data"] == 0.1
    assert run.data.metrics["stages/first/4/linear/dev_ndcg_at_10"] == 0.61
    # one curve a measure, with the dim as its step
    assert by_dim(run, client, "quality/test/ndcg_at_10") == {8: 0.71, 4: 0.62}
    assert by_dim(run, client, "quality/test/ndcg_at_10_pca") == {8: 0.6, 4: 0.5}
    assert by_dim(run, client, "quality/test/ndcg_at_10_full") == {8: 0.6, 4: 0.6}
    assert by_dim(run, client, "quality/test/ndcg_at_10_low") == {8: 0.65, 4: 0.55}
    assert by_dim(run, client, "quality/test/recall_at_100") == {8: 0.9, 4: 0.85}
    assert by_dim(run, client, "quality/dev/ndcg_at_10") == {8: 0.7, 4: 0.6}
    assert by_dim(run, client, "stages/dev_score") == {8: 1.4, 4: 1.4}
    assert not [name for name in run.data.metrics if name.rsplit("/", 1)[-1].isdigit()]
    assert run.data.metrics["cost/seconds"] == 12.5

    files = files_of(client, run.info.run_id)
    assert {"evaluation.csv", "pictures/quality.png", "pictures/loss.png"} <= files
    assert {f"model_folder/{file.name}" for file in model_folder.iterdir()} <= files
    table = Path(client.download_artifacts(run.info.run_id, "evaluation.csv", str(tmp_path)))
    rows = list(csv.DictReader(table.open()))
    assert [(row["dim"], row["ndcg@10"], row["ndcg@10 pca"], row["ndcg@10 full"]) for row in rows] == [
        ("8", "0.71", "0.6", "0.6"),
        ("4", "0.62", "0.5", "0.6"),
    ]
    x_ND = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    served = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    np.testing.assert_array_equal(served.predict(x_ND, params={"dim": 4}), model.encode(x_ND, 4))
    assert mlflow.active_run() is None

    printed = capfd.readouterr()
    assert recorder.uri == f"http://***@{address}"
    assert "arning" not in printed.err
    assert "hunter2" not in printed.out + printed.err
    for folder in ("server", "state"):
        assert b"hunter2" not in all_bytes(tmp_path / folder)


def test_without_a_tracking_uri_the_run_is_where_mlflow_puts_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    recorder = start(tmp_path / "state")
    recorder.finish(model_folder)
    assert recorder.uri == f"sqlite:///{tmp_path}/mlflow.db"
    run = only_run(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"))
    assert next((tmp_path / "mlruns").glob(f"*/{run.info.run_id}/artifacts/evaluation.csv")).is_file()
    assert not (tmp_path / "state" / "mlflow-offline").exists()


KILLED_TRAINING = """
import os, signal, sys, time
from pathlib import Path
from mlflow import MlflowClient
from tests.pipelines.tracking.recording import start

recorder = start(Path(sys.argv[1]), {"lr": 0.1})
for number in range(1, 11):
    recorder.log({"pass": "first", "stage": 4, "projection": "linear", "epoch": 0, "step": number, "loss": 1.0})
client = MlflowClient()
while len(client.get_metric_history(recorder.run_id, "stages/first/4/linear/loss")) < 10:
    time.sleep(0.1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_training_goes_on_in_its_run_and_logs_no_step_twice(model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_TRAINING, str(tmp_path / "state")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run(command, env=environment, timeout=PATIENCE_SECONDS, check=False)
    assert killed.returncode == -signal.SIGKILL
    client = MlflowClient()
    before = only_run(client)

    # its last checkpoint is older than what it had logged, and the restart sets one more param
    recorder = start(tmp_path / "state", {"lr": 0.2, "workers": 2})
    for number in [*range(6, 14), *range(12, 16)]:  # in between, workers of the same training were started again
        recorder.log(step(number))
    recorder.finish(model_folder)

    run = only_run(client)
    assert run.info.run_id == before.info.run_id
    assert steps_of(run, client) == list(range(1, 16))
    assert run.data.params == {"lr": "0.1", "workers": "2"}
    assert run.info.status == "FINISHED"


# Two projections side by side and a dev score each epoch, five steps; says each step that it has logged. A restart
# sends everything again, since it cannot know what of it arrived.
SENDING = """
import sys, time
from pathlib import Path
from pipelines.tracking import recorder as tracking
from pipelines.storage.run_folder import RunFolder

storage, scratch = sys.argv[1], Path(sys.argv[2])
tracking.FLUSH_SECONDS = 0.02
recorder = tracking.MlflowRecorder.start({"lr": 0.1}, RunFolder(storage, "nightly"), scratch)
for step in range(1, 61):
    for projection in ("linear", "rotation"):
        place = {"pass": "first", "stage": 4, "projection": projection, "epoch": step // 5, "step": step}
        recorder.log(place | {"loss": 1 / step, "tau": 1.0})
        if step % 5 == 0:
            recorder.log(place | {"dev_ndcg@10": step / 100})
    time.sleep(0.01)
    print(step, flush=True)
recorder.finish(None)
print(recorder.run_id, flush=True)
"""


@pytest.mark.slow
def test_a_training_killed_again_and_again_on_several_machines_logs_each_step_once(
    tmp_path: Path, s3: Callable[[str], str]
) -> None:
    RunFolder(s3("runs"), "nightly").create()
    output: list[str] = []
    for machine, last in enumerate((17, 20, 33, 50, 60)):
        command = [sys.executable, "-c", SENDING, s3("runs"), str(tmp_path / f"scratch{machine}")]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
        )
        assert process.stdout is not None
        while int(process.stdout.readline()) < last:
            pass
        if last < 60:
            process.kill()
        output = process.stdout.read().split()
        assert process.wait() == (-signal.SIGKILL if last < 60 else 0)
    client = MlflowClient()
    run = only_run(client)
    assert output == [run.info.run_id]
    for projection in ("linear", "rotation"):
        assert steps_of(run, client, f"stages/first/4/{projection}/loss") == list(range(1, 61))
        assert steps_of(run, client, f"stages/first/4/{projection}/tau") == list(range(1, 61))
        assert steps_of(run, client, f"stages/first/4/{projection}/dev_ndcg_at_10") == list(range(5, 61, 5))
    assert not list(tmp_path.glob("scratch*"))


def test_who_lost_the_training_says_nothing_more_in_its_run(tmp_path: Path) -> None:
    mine = start(tmp_path / "state")
    mine.log(step(1))
    theirs = start(tmp_path / "state")
    mine.abandon()
    assert theirs.run_id == mine.run_id
    assert only_run(MlflowClient()).info.status == "RUNNING"
    theirs.finish(None)


def test_a_failed_training_says_why_and_a_restart_takes_that_back(model_folder: Path, tmp_path: Path) -> None:
    client = MlflowClient()
    recorder = start(tmp_path / "state")
    recorder.log(step(1))
    recorder.finish(None, "FAILED", "no memory left; read from s3://AKIA:hunter2@bucket")
    run = only_run(client)
    assert run.info.status == "FAILED"
    assert run.data.tags["smec.error"] == "no memory left; read from s3://***@bucket"
    assert steps_of(run, client) == [1]

    start(tmp_path / "state").finish(model_folder)
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert "smec.error" not in run.data.tags


def test_a_model_that_cannot_be_read_makes_no_finished_run(
    model_folder: Path, server: tuple[str, Callable[[], None]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    weights = (tmp_path / "model" / "adapter.safetensors").read_bytes()
    (tmp_path / "model" / "adapter.safetensors").write_bytes(weights[:-8])
    recorder = start(tmp_path / "state")
    with pytest.raises(InputError, match=r"adapter\.safetensors: is not as it was written") as refusal:
        recorder.finish(tmp_path / "model")
    assert only_run(MlflowClient()).info.status == "RUNNING"
    recorder.fail(refusal.value, lost=False)

    run = only_run(MlflowClient())
    assert run.info.status == "FAILED"
    assert "adapter.safetensors: is not as it was written" in run.data.tags["smec.error"]
    assert "adapter.safetensors: is not as it was written" in run.data.tags["mlflow.note.content"]
    # it is not the server that failed
    assert not (tmp_path / "state" / "mlflow-offline").exists()
    assert "MLflow at" not in capfd.readouterr().err


def test_a_training_that_fails_after_its_run_was_finished_is_failed_there(model_folder: Path, tmp_path: Path) -> None:
    recorder = start(tmp_path / "state")
    recorder.finish(model_folder)
    recorder.fail(SmecError("no space left"), lost=False)
    run = only_run(MlflowClient())
    assert (run.info.status, run.data.tags["smec.error"]) == ("FAILED", "no space left")


def test_the_run_says_what_it_is_on_what_data_and_what_it_reached(
    model_folder: Path, server: tuple[str, Callable[[], None]], tmp_path: Path
) -> None:
    dataset = Dataset.open(str(write_dataset(tmp_path / "set")))
    for _ in range(2):
        # a restart says nothing twice
        recorder = start(tmp_path / "state", {"lr": None, "seed": 0}, about="Training to 4 dims.", data=dataset)
        run = only_run(MlflowClient())
        assert run.data.tags["mlflow.note.content"] == "Training to 4 dims."
        recorder.abandon()
    recorder = start(tmp_path / "state", {"lr": None, "seed": 0}, about="Training to 4 dims.", data=dataset)
    recorder.finish(model_folder)

    run = only_run(MlflowClient())
    assert run.data.params == {"seed": "0"}
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("Training to 4 dims.\n\nReached, by nDCG@10 on test, 120 queries; 0.6000 with the original")
    assert "| 4 | 0.6200 | 0.5500 to 0.6900 | 0.3000 | 0.5000 |" in note
    assert run.data.tags["mlflow.user"]
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.data.tags.get("mlflow.source.git.commit", "") == commit.stdout.strip()
    assert run.inputs is not None
    inputs = {found.tags[0].value: found.dataset for found in run.inputs.dataset_inputs}
    assert {(key, value.name) for key, value in inputs.items()} == {
        ("training", "set, training"),
        ("evaluation", "set, evaluation"),
    }
    for used, split in (("training", "train"), ("evaluation", "test")):
        assert inputs[used].digest == dataset.fingerprint
        assert mlflow.data.get_source(inputs[used]).to_dict()["uri"] == str(tmp_path / "set")
        profile = json.loads(inputs[used].profile or "")
        assert (profile["documents"], profile["queries"]) == (dataset.corpus.rows, dataset.queries.rows)
        assert (profile["split"], profile["judged_queries"]) == (split, len(dataset.splits[split].with_positives()))
        columns = json.loads(inputs[used].schema or "")["mlflow_colspec"]
        assert [column["name"] for column in columns] == ["id", "embedding"]


def test_the_experiment_is_that_of_the_environment(
    server: tuple[str, Callable[[], None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = MlflowClient().create_experiment("ours")
    for variables in (
        {"MLFLOW_EXPERIMENT_NAME": "ours"},
        {"MLFLOW_EXPERIMENT_ID": number},
        {"MLFLOW_EXPERIMENT_NAME": "ours", "MLFLOW_EXPERIMENT_ID": number},
    ):
        with monkeypatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            recorder = start(tmp_path / "-".join(variables))
            recorder.finish(None)
        assert MlflowClient().get_run(recorder.run_id).info.experiment_id == number


def test_an_experiment_that_is_not_there_is_told_of_and_the_training_goes_on(
    server: tuple[str, Callable[[], None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    client = MlflowClient()
    for number, name, told in (
        ("4711", "", "MLFLOW_EXPERIMENT_ID: there is no experiment 4711"),
        ("products", "", "MLFLOW_EXPERIMENT_ID: there is no experiment products"),
        ("0", "ours", "MLFLOW_EXPERIMENT_ID: experiment 0 is 'Default', but MLFLOW_EXPERIMENT_NAME is 'ours'"),
    ):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        start(tmp_path / number).finish(None)
        assert told in capfd.readouterr().err
        # what an experiment's id means on the server it does not mean in our own store
        assert only_run(offline_client(tmp_path / number)).info.status == "FINISHED"
    assert not client.search_runs([one.experiment_id for one in client.search_experiments()])


def test_a_run_that_was_deleted_is_not_gone_on_with(tmp_path: Path) -> None:
    first = start(tmp_path / "state")
    first.finish(None)
    MlflowClient().delete_run(first.run_id)
    second = start(tmp_path / "state")
    second.finish(None)
    assert only_run(MlflowClient()).info.run_id == second.run_id != first.run_id


@pytest.mark.parametrize("tags", [{}, {"mlflow.parentRunId": "a" * 32}], ids=["training", "trial"])
def test_a_training_killed_before_it_could_write_its_runs_id_goes_on_in_that_run(
    tags: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunFolder.write

    def killed(folder: RunFolder, name: str, record: dict[str, Any]) -> None:
        # no error: those are caught, and the next store is tried
        if "run_id" in record:
            raise SystemExit
        write(folder, name, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", killed)
        with pytest.raises(SystemExit):
            start(tmp_path / "state", tags=tags)
    left = only_run(MlflowClient())
    assert (left.info.status, left.data.params) == ("RUNNING", {})
    other = start(tmp_path / "other", tags=tags)
    other.finish(None)
    again = start(tmp_path / "state", tags=tags)
    again.finish(None)
    assert again.run_id == left.info.run_id != other.run_id
    run = MlflowClient().get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params


def test_a_training_without_judgements_is_recorded_by_neighbour_recall(
    model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluation = {
        "split": None,
        "queries": 20,
        "neighbour_recall@10": SCORES,
        "baselines": {"pca": {"8": 0.9, "4": 0.4}},
    }
    Model(model.stages, 8, {"dims": [8, 4]}, {"evaluation": evaluation}).save(tmp_path / "model")
    recorder = start(tmp_path / "state")
    recorder.finish(tmp_path / "model")
    client = MlflowClient()
    run = only_run(client)
    assert by_dim(run, client, "quality/held_out/neighbour_recall_at_10")[4] == 0.62
    assert by_dim(run, client, "quality/held_out/neighbour_recall_at_10_pca")[4] == 0.4
    assert "arning" not in capfd.readouterr().err
