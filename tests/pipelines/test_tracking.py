"""A training's run in MLflow, against real servers and stores, also when they fail."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

import smec_core
from pipelines.pictures import quality_picture
from pipelines.run_folder import RunFolder
from pipelines.tracking import MlflowRecorder, mask
from smec_core.adapter import FrozenStage
from smec_core.model import Model

pytestmark = pytest.mark.server

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 120  # until something has hung, on a busy machine
SCORES = {"8": 0.71, "4": 0.62}
EVALUATION = {
    "split": "test",
    "ndcg@10": SCORES,
    "recall@10": {"8": 0.8, "4": 0.7},
    "recall@100": {"8": 0.9, "4": 0.85},
    "mrr": {"8": 0.6, "4": 0.5},
    "baselines": {"truncation": {"8": 0.6, "4": 0.3}, "pca": {"8": 0.6, "4": 0.5}, "full": 0.6},
}
CONFIG = {"dims": (4,), "lr": 0.001, "data": "s3://AKIA:hunter2@bucket/set?region=x", "notes": "long " * 2000}


@pytest.fixture(scope="module")
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


@contextmanager
def serving(arguments: list[str], folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """An `mlflow` server process that answers; gives its address and what kills it."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": "", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("w") as log:
        # a session of its own: the server starts workers, and they are killed with it
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
        )

    def kill() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"mlflow {arguments[0]} did not start:\n{(folder / 'server.log').read_text()}")
                time.sleep(0.2)
        yield f"127.0.0.1:{port}", kill
    finally:
        kill()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def tracking_server(folder: Path, empty_store: Path) -> AbstractContextManager[tuple[str, Callable[[], None]]]:
    folder.mkdir()
    shutil.copy(empty_store, folder / "server.db")
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/server"]
    return serving(["server", *store], folder)


@pytest.fixture(scope="module")
def model() -> Model:
    generator = torch.Generator().manual_seed(0)
    stages = [
        FrozenStage(dim, "free", {"weight": torch.randn(8, 8, generator=generator), "logits": torch.zeros(8)})
        for dim in (8, 4)
    ]
    metrics = {
        "dev": {"ndcg@10": {"8": 0.7, "4": 0.6}},
        "stages": [
            {"d_in": 8, "dim": dim, "projection": "free", "epochs": 2, "dev_score": 1.4, "seconds": 3.0}
            for dim in (8, 4)
        ],
        "evaluation": EVALUATION,
        "training": {"seconds": 12.5, "steps": 30, "workers": 2, "device": "cpu"},
    }
    config = {"dims": [8, 4], "train": {"seed": 0}}
    return Model(stages, 8, config, metrics)


@pytest.fixture(scope="module")
def model_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "model"
    model.save(folder)
    (folder / "history.jsonl").write_text("".join(json.dumps(step(number)) + "\n" for number in range(1, 31)))
    return folder


def start(folder: Path, config: Mapping[str, Any] = CONFIG, **more: Any) -> MlflowRecorder:
    """Records a training that keeps its state in a local folder, `nightly` of the one given."""
    run_folder = RunFolder(str(folder), "nightly")
    run_folder.create()
    return MlflowRecorder.start(config, run_folder, folder, **more)


def step(number: int, **changes: Any) -> dict[str, Any]:
    figures = {"epoch": number // 10, "step": number, "loss": 1 / number, "tau": 1.0, "seconds/data": 0.1}
    return {"pass": "first", "stage": 4, "projection": "free"} | figures | changes


def steps_of(run: Run, client: MlflowClient, name: str = "first/4/free/loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run.info.run_id, name)]


def only_run(client: MlflowClient) -> Run:
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 1
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


def test_a_training_is_one_run_on_the_server_and_its_password_is_nowhere(
    model: Model,
    model_folder: Path,
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tracking_server(tmp_path / "server", empty_store) as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:hunter2@{address}")
        recorder = start(tmp_path / "state", tags={"smec.data_fingerprint": "fedcba98"})
        for number in range(1, 11):
            recorder.log(step(number))
        recorder.log({"pass": "first", "stage": 4, "projection": "free", "epoch": 1, "step": 10, "dev_ndcg@10": 0.61})
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

        # curves of candidates and passes stay apart
        assert steps_of(run, client, "first/4/free/loss") == list(range(1, 11))
        assert steps_of(run, client, "first/4/rotation/loss") == list(range(11, 21))
        assert steps_of(run, client, "refit/4/free/loss") == list(range(21, 31))
        assert run.data.metrics["first/4/free/seconds/data"] == 0.1
        assert run.data.metrics["first/4/free/dev_ndcg_at_10"] == 0.61
        assert run.data.metrics["test/ndcg_at_10/4"] == 0.62
        assert run.data.metrics["test/ndcg_at_10/pca/4"] == 0.5
        assert run.data.metrics["test/ndcg_at_10/full"] == 0.6
        assert run.data.metrics["test/recall_at_100/8"] == 0.9
        assert run.data.metrics["dev/ndcg_at_10/8"] == 0.7
        assert run.data.metrics["stages/4/dev_score"] == 1.4
        assert run.data.metrics["training/seconds"] == 12.5

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
from tests.pipelines.test_tracking import start

recorder = start(Path(sys.argv[1]), {"lr": 0.1})
for number in range(1, 11):
    recorder.log({"pass": "first", "stage": 4, "projection": "free", "epoch": 0, "step": number, "loss": 1.0})
client = MlflowClient()
while len(client.get_metric_history(recorder.run_id, "first/4/free/loss")) < 10:
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
from pipelines import tracking
from pipelines.run_folder import RunFolder

storage, scratch = sys.argv[1], Path(sys.argv[2])
tracking.FLUSH_SECONDS = 0.02
recorder = tracking.MlflowRecorder.start({"lr": 0.1}, RunFolder(storage, "nightly"), scratch)
for step in range(1, 61):
    for projection in ("free", "rotation"):
        place = {"pass": "first", "stage": 4, "projection": projection, "epoch": step // 5, "step": step}
        recorder.log(place | {"loss": 1 / step, "tau": 1.0})
        if step % 5 == 0:
            recorder.log(place | {"dev_ndcg@10": step / 100})
    time.sleep(0.01)
    print(step, flush=True)
recorder.finish(None)
print(recorder.run_id, flush=True)
"""


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
    for projection in ("free", "rotation"):
        assert steps_of(run, client, f"first/4/{projection}/loss") == list(range(1, 61))
        assert steps_of(run, client, f"first/4/{projection}/tau") == list(range(1, 61))
        assert steps_of(run, client, f"first/4/{projection}/dev_ndcg_at_10") == list(range(5, 61, 5))
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


def test_a_run_that_was_deleted_is_not_gone_on_with(tmp_path: Path) -> None:
    first = start(tmp_path / "state")
    first.finish(None)
    MlflowClient().delete_run(first.run_id)
    second = start(tmp_path / "state")
    second.finish(None)
    assert only_run(MlflowClient()).info.run_id == second.run_id != first.run_id


def test_a_server_killed_in_mid_run_costs_one_warning_and_a_local_copy_of_the_rest(
    model: Model,
    model_folder: Path,
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tracking_server(tmp_path / "server", empty_store) as (address, kill):
        server_store = MlflowClient(f"sqlite:///{tmp_path}/server/server.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:hunter2@{address}")
        recorder = start(tmp_path / "state")
        server_run = recorder.run_id
        for number in range(1, 6):
            recorder.log(step(number))
        wait_until(lambda: server_store.get_metric_history(server_run, "first/4/free/loss"))
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
    assert run.data.metrics["test/ndcg_at_10/4"] == 0.62
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


def test_where_only_artifacts_fail_the_servers_run_still_has_its_figures_and_ends(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    (tmp_path / "file").write_text("")
    client.create_experiment("smec", f"file://{tmp_path}/file/artifacts")  # no folder can be made there
    start(tmp_path / "state").finish(model_folder)
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/ndcg_at_10/4"] == 0.62
    offline = offline_client(tmp_path / "state")
    assert "evaluation.csv" in files_of(offline, only_run(offline).info.run_id)
    assert capfd.readouterr().err.count("warning: ") == 1


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
    metrics = only_run(MlflowClient()).data.metrics
    assert metrics["held_out/neighbour_recall_at_10/4"] == 0.62
    assert metrics["held_out/neighbour_recall_at_10/pca/4"] == 0.4
    assert "arning" not in capfd.readouterr().err


LOADING = """
import json, sys
import mlflow, numpy as np
served = mlflow.pyfunc.load_model(sys.argv[1])
import smec_core
answer = {"code": smec_core.__file__, "whole": served.predict(np.ones((1, 8), np.float32)).tolist()}
answer["pipelines"] = "pipelines" in sys.modules
print(json.dumps(answer))
"""


def test_the_logged_model_brings_its_code_and_asks_for_plain_versions(
    model: Model, model_folder: Path, tmp_path: Path
) -> None:
    recorder = start(tmp_path / "state")
    recorder.finish(model_folder)
    folder = mlflow.artifacts.download_artifacts(f"runs:/{recorder.run_id}/model", dst_path=str(tmp_path / "copy"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-c", LOADING, folder],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=PATIENCE_SECONDS, check=True,
    )  # fmt: skip
    found = json.loads(answer.stdout)
    assert Path(found["code"]).is_relative_to(folder)
    assert not found["pipelines"]
    np.testing.assert_allclose(found["whole"], model.encode(np.ones((1, 8), np.float32)), rtol=1e-6)

    assert mlflow.models.get_model_info(folder).metadata["smec_fingerprint"] == model.fingerprint  # type: ignore[index]
    required = dict(line.split("==") for line in Path(folder, "requirements.txt").read_text().splitlines())
    assert set(required) == {"mlflow", "numpy", "pydantic", "safetensors", "torch"}
    assert not any("+" in version for version in required.values())
    assert not list(Path(folder).rglob("*.pkl"))


def test_mlflow_models_serve_answers_with_vectors(model: Model, model_folder: Path, tmp_path: Path) -> None:
    recorder = start(tmp_path / "state")
    recorder.finish(model_folder)
    model_uri = f"runs:/{recorder.run_id}/model"
    with serving(["models", "serve", "--model-uri", model_uri, "--env-manager", "local"], tmp_path / "serve") as served:
        question = {"inputs": [[1, 2, 3, 4, 5, 6, 7, 8]], "params": {"dim": 4}}
        request = urllib.request.Request(
            f"http://{served[0]}/invocations", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    expected = model.encode(np.arange(1, 9, dtype=np.float32)[None], 4)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-6)


def test_the_quality_picture_shows_the_model_against_its_baselines() -> None:
    (axes,) = quality_picture(EVALUATION).axes
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert lines["model"] == [0.62, 0.71]  # from few dims to many
    assert lines["PCA"] == [0.5, 0.6]
    assert lines["truncation"] == [0.3, 0.6]
    assert set(lines["full embeddings"]) == {0.6}
    assert axes.get_ylabel() == "nDCG@10"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:pass@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://me:p/a@ss@host/db", "postgresql://***@host/db"),
        ("request to https://token@host failed", "request to https://***@host failed"),
        ("postgresql://host/db?user=me&password=hunter2&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("s3://bucket/folder@v2", "s3://bucket/folder@v2"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_credentials_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask(text) == masked
