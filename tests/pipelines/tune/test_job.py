"""Studies on a real Ray cluster: searched, stopped early, killed, gone on with, recorded, shown."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray

from pipelines.cli.settings import resolve
from pipelines.report import job as report
from pipelines.report.settings import ReportSettings
from pipelines.report.study import study_page
from pipelines.storage.run_folder import RunFolder
from pipelines.storage.study import read_trials, trial_folder
from pipelines.train.settings import TrainSettings
from pipelines.tune import job as tune
from pipelines.tune import runner as study_start
from pipelines.tune.callback import TuneCallback
from pipelines.tune.settings import TuneSettings
from smec_core import fit
from smec_core.errors import InputError, SmecError
from tests.builders import write_dataset

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE_SECONDS = 300  # until something has hung, on a busy machine
# from a closed form, trials on so little data end alike, and none is stopped
QUICK = {"epochs": 4, "batch_size": 32, "negatives": 16, "queue_size": 100, "dims": "8,4", "init": "pca"}
SPACE = """
tau: {loguniform: [0.1, 10]}
lr: {loguniform: [1e-5, 3e-2]}
queue_size: {logint: [20, 400]}
"""

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return path


def _settings(data: Path, space: Path, out: Path, **changes: object) -> TuneSettings:
    return TuneSettings.model_validate(
        {"data": str(data), "space": str(space), "out": str(out), "trials": 12, **QUICK, **changes}
    )


@pytest.fixture(scope="module")
def study(dataset: Path, space: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of twelve trials."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    tune.run(_settings(dataset, space, out))
    return out


def _summary(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return content


def _state(out: Path) -> RunFolder:
    [folder] = (out / ".smec-study").iterdir()
    return RunFolder(str(folder.parent), folder.name)


def test_the_defaults_are_trial_one_and_a_third_is_stopped_early(study: Path) -> None:
    summary = _summary(study)
    trials = summary["trials"]
    assert [one["number"] for one in trials] == list(range(1, 13))
    assert trials[0]["params"] == {"tau": 1.0, "lr": 0.002, "queue_size": 100}
    assert trials[0]["state"] == "finished"
    assert summary["states"]["stopped"] >= 4
    assert summary["states"]["finished"] + summary["states"]["stopped"] == 12
    finished = [one for one in trials if one["state"] == "finished"]
    assert all([step["place"] for step in one["steps"]] == [1, 2, 3, 4] for one in finished)
    stopped = [one for one in trials if one["state"] == "stopped"]
    assert all(one["steps"][-1]["place"] < 4 for one in stopped)
    best = max(finished, key=lambda one: one["steps"][-1]["quality"])
    assert summary["best"] == [best["number"]]
    assert summary["defaults"] == trials[0]["steps"][-1]["quality"]


def test_a_trial_reaches_what_a_training_alone_does(study: Path, dataset: Path) -> None:
    finished = [one for one in _summary(study)["trials"] if one["state"] == "finished"]
    # in a process that has trained others before, some of which were stopped
    last = finished[-1]
    alone = fit(str(dataset), **(QUICK | last["params"] | {"dims": (8, 4), "refit": False}))
    [dev] = alone.metrics["dev"].values()
    assert last["steps"][-1]["scores"] == dev


def test_the_best_settings_are_a_config_of_train(study: Path, dataset: Path) -> None:
    summary = _summary(study)
    best = summary["trials"][summary["best"][0] - 1]
    flags = {"data": str(dataset), "out": "model"}
    settings = resolve(TrainSettings, flags, study / "best.yaml")
    assert settings.dims == (8, 4)
    assert settings.refit
    assert {name: getattr(settings, name) for name in best["params"]} == pytest.approx(best["params"])
    assert settings.epochs == QUICK["epochs"]


def test_a_study_is_a_run_with_a_child_a_trial(study: Path) -> None:
    client, summary = mlflow.MlflowClient(), _summary(study)
    parent = _state(study).read("mlflow_run.json")["run_id"]
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=50)
    assert sorted(int(run.data.tags["smec.trial"]) for run in children) == list(range(1, 13))
    assert {run.info.status for run in children} == {"FINISHED"}
    for run in children:
        trial = summary["trials"][int(run.data.tags["smec.trial"]) - 1]
        assert float(run.data.params["tau"]) == trial["params"]["tau"]
        assert run.data.params["epochs"] == str(QUICK["epochs"])
        assert (run.data.params["alpha"], run.data.params["patience"]) == ("0.0", "2")
        assert run.data.tags["mlflow.note.content"].endswith(" on dev.")
        curve = client.get_metric_history(run.info.run_id, "quality")
        assert [point.step for point in curve] == [step["place"] for step in trial["steps"]]
        assert client.get_metric_history(run.info.run_id, "stages/first/32/linear/dev_ndcg_at_10")
    assert [point.step for point in client.get_metric_history(parent, "quality")] == list(range(1, 13))
    assert {file.path for file in client.list_artifacts(parent)} == {"summary.json", "best.yaml"}
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert "Best on dev, which it was chosen by: trial " in run.data.tags["mlflow.note.content"]
    assert run.inputs is not None
    assert {found.dataset.name for found in run.inputs.dataset_inputs} == {"d, training", "d, evaluation"}
    finished = next(one for one in summary["trials"] if one["state"] == "finished")
    trial = next(run for run in children if run.data.tags["smec.trial"] == str(finished["number"]))
    curve = client.get_metric_history(trial.info.run_id, "quality/dev/ndcg_at_10")
    assert {str(point.step): point.value for point in curve} == pytest.approx(finished["steps"][-1]["scores"])


def test_a_finished_study_is_not_run_again_and_can_be_extended(study: Path, dataset: Path, space: Path) -> None:
    before = _summary(study)
    parent = _state(study).read("mlflow_run.json")
    again = tune.run(_settings(dataset, space, study))
    assert again["trials"] == before["trials"]
    more = tune.run(_settings(dataset, space, study, trials=13))
    assert more["trials"][:12] == before["trials"]
    assert [one["number"] for one in more["trials"][12:]] == [13]
    assert _state(study).read("mlflow_run.json") == parent


def test_the_report_of_a_study(study: Path, tmp_path: Path) -> None:
    figures = report.run(ReportSettings(folder=str(study), out=str(tmp_path / "study.html")))
    assert set(figures["importance"]) == {"tau", "lr", "queue_size"}
    page = (tmp_path / "study.html").read_text()
    for element in ("parallel", "importance", "front", "slice-tau", "slice-queue_size", "queue-seconds"):
        assert f'id="{element}"' in page
        assert f'"{element}": {{' in page
    # an interrupted trial does not have the others compared where it ended
    content = _summary(study)
    content.pop("sha256")
    place = study_page(study / "summary.json")["place"]
    interrupted = next(one for one in content["trials"] if one["number"] > 1 and len(one["steps"]) >= 2)
    interrupted |= {"state": "running", "steps": interrupted["steps"][:1]}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    assert study_page(tmp_path / "summary.json")["place"] == place > 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_trial_keeps_its_cause_and_the_study_goes_on(dataset: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("queue_size: {choice: [100, 100000000000000]}")
    summary = tune.run(_settings(dataset, space, tmp_path / "out", trials=6, alpha=0.1))
    failed = [one for one in summary["trials"] if one["state"] == "failed"]
    assert failed and summary["states"]["failed"] == len(failed) < 6
    assert all("memory" in one["error"] for one in failed)
    client = mlflow.MlflowClient()
    folder = _state(tmp_path / "out")
    run_id = trial_folder(folder, failed[0]["number"]).read("mlflow_run.json")["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
    assert "memory" in client.get_run(run_id).data.tags["smec.error"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_whose_process_is_killed_is_recorded_and_the_study_goes_on(
    dataset: Path, space: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not killed and time.monotonic() < deadline:
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if not killed and (folder / "cmdline").read_bytes().startswith(b"ray::ImplicitFunc.train"):
                        os.kill(int(folder.name), signal.SIGKILL)
                        killed.append(int(folder.name))
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = tune.run(_settings(dataset, space, tmp_path / "out", trials=2, max_failures=0))
    killer.join()
    assert killed
    [failed] = [one for one in summary["trials"] if one["state"] == "failed"]
    assert "died" in failed["error"] and "\n" not in failed["error"]
    assert summary["states"]["finished"] + summary["states"]["stopped"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_that_cannot_write_ends_and_goes_on_later(
    dataset: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TuneCallback._write
    settings = _settings(dataset, space, tmp_path / "out", trials=3, max_concurrent=1)

    def broken(watch: TuneCallback, record: Any) -> None:
        if record.number == 2 and record.state != "running":
            raise OSError("no space left on device")
        write(watch, record)

    with monkeypatch.context() as patch:
        patch.setattr(TuneCallback, "_write", broken)
        with pytest.raises(SmecError, match="storage: what a trial reached cannot be written"):
            tune.run(settings)
    assert [one.state for one in read_trials(_state(tmp_path / "out"))] == ["finished", "running"]
    assert tune.run(settings)["states"]["running"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_quality_against_seconds_is_a_front_without_early_stops(dataset: Path, space: Path, tmp_path: Path) -> None:
    summary = tune.run(_settings(dataset, space, tmp_path / "out", trials=3, objective="4,seconds"))
    assert summary["states"] == {"finished": 3, "stopped": 0, "failed": 0, "running": 0}
    front = [summary["trials"][number - 1] for number in summary["best"]]
    quality, seconds = ([one["steps"][-1]["quality"] for one in front], [one["seconds"] for one in front])
    assert quality == sorted(quality, reverse=True)
    assert seconds == sorted(seconds, reverse=True)
    assert quality[0] == max(one["steps"][-1]["scores"]["4"] for one in summary["trials"])


@pytest.mark.usefixtures("ray_cluster")
def test_the_best_is_compared_on_test_and_trained_again(dataset: Path, space: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    settings = _settings(dataset, space, tmp_path / "out", trials=3, confirm=2, train_best=True, storage=str(storage))
    summary = tune.run(settings)
    for one in summary["confirmed"]["dims"].values():
        assert len(one["best"]) == len(one["defaults"]) == 2
        assert one["interval"][0] <= one["gain"] <= one["interval"][1]
        assert one["gain"] == pytest.approx((sum(one["best"]) - sum(one["defaults"])) / 2)
    metrics = json.loads((tmp_path / "out" / "model" / "metrics.json").read_text())
    # the seed of the study is the first of those that were compared
    assert metrics["evaluation"]["ndcg@10"]["8"] == pytest.approx(
        summary["confirmed"]["dims"]["8"]["best"][0], abs=1e-6
    )
    # the study, and the training
    assert sorted(path.name.split("-")[0] for path in storage.iterdir()) == ["smec", "study"]

    # what was compared is kept
    settings = settings.model_copy(update={"train_best": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_start, "confirm", None)
        assert tune.run(settings) == summary
        assert tune.run(settings.model_copy(update={"confirm": 0})) == summary
        # another winner has not been compared yet
        folder = RunFolder(str(storage), next(path.name for path in storage.iterdir() if path.name.startswith("study")))
        kept = folder.read("confirmed.json")
        kept["key"]["params"]["tau"] += 1
        folder.write("confirmed.json", kept)
        assert "confirmed" not in tune.run(settings.model_copy(update={"confirm": 0}))
        with pytest.raises(TypeError):
            tune.run(settings)
    assert not list(storage.rglob("tune-*"))


@pytest.mark.usefixtures("ray_cluster")
def test_the_best_of_a_study_on_a_sample_is_compared_among_all_documents(
    dataset: Path, space: Path, tmp_path: Path
) -> None:
    settings = _settings(dataset, space, tmp_path / "out", trials=3, sample_rows=100, storage=str(tmp_path / "storage"))
    summary = tune.run(settings)
    confirmed = tune.run(settings.model_copy(update={"confirm": 1}))
    assert confirmed["trials"] == summary["trials"], "it is the same study"
    assert list(confirmed["confirmed"]["dims"]) == ["32", "8", "4"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_with_its_state_on_s3_goes_on_where_it_was(
    dataset: Path, space: Path, tmp_path: Path, s3: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TuneCallback._write
    settings = _settings(dataset, space, tmp_path / "out", trials=5, storage=s3("runs"), name="night", max_concurrent=1)

    def lost(watch: TuneCallback, record: Any) -> None:
        write(watch, record)
        if record.number == 3 and record.steps:
            raise OSError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(TuneCallback, "_write", lost)
        with pytest.raises(SmecError, match="the network is gone"):
            tune.run(settings)
    before = {one.number: one for one in read_trials(RunFolder(s3("runs"), "night"))}
    assert [one.state == "running" for one in before.values()] == [False, False, True]
    summary = tune.run(settings)
    assert summary["states"]["running"] == 0
    assert [one["number"] for one in summary["trials"]] == [1, 2, 3, 4, 5]
    for number, one in before.items():
        assert summary["trials"][number - 1]["params"] == one.params
        if one.state != "running":
            assert summary["trials"][number - 1] == one.model_dump(mode="json")


@pytest.mark.usefixtures("ray_cluster")
def test_without_judgements_the_full_vectors_teach(space: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d")
    for file in (data / "qrels").iterdir():
        file.unlink()
    wide = tmp_path / "space.yaml"
    wide.write_text("lr: {loguniform: [1e-4, 1e-2]}")
    summary = tune.run(_settings(data, wide, tmp_path / "out", trials=2))
    assert summary["measure"] == "agreement@10"
    assert summary["trials"][0]["params"] == {"lr": 0.002}
    with pytest.raises(InputError, match=r"confirm: .* has no qrels/test to compare on"):
        tune.run(_settings(data, wide, tmp_path / "out", trials=2, confirm=1))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "5"}, "objective: 5 is none of the dims 32, 8, 4"),
        ({"guard": False, "projection": "linear"}, "guard: trials are compared on dev"),
        ({"dims": "64,8"}, "dims: 64 is more than the 32 dims"),
        ({"cpus_per_worker": 9}, "workers: a trial needs 9 CPUs, "),
        ({"hours": 1e-6}, "no trial finished in time"),
        (
            {"storage": "s3://key:hunter2@bucket/runs"},
            r"storage: s3://\*\*\*@bucket/runs holds a secret",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    dataset: Path, space: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SmecError, match=message):
        tune.run(_settings(dataset, space, tmp_path / "out", **changes))


def test_a_name_belongs_to_one_study(study: Path, dataset: Path, space: Path) -> None:
    with pytest.raises(InputError, match="was made with other settings or data"):
        tune.run(_settings(dataset, space, study, name=_state(study).name, seed=1))


def _command(dataset: Path, space: Path, out: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "pipelines.cli", "tune", "--data", str(dataset), "--space", str(space)]
    command += ["--out", str(out), "--dims", "8,4", *more]
    return command + [word for key, value in QUICK.items() if key != "dims" for word in ("--set", f"{key}={value}")]


def _start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output)


def test_a_killed_study_goes_on_where_it_was(dataset: Path, space: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = _command(dataset, space, out, "--trials", "6")
    driver = _start(command, tmp_path)
    deadline = time.monotonic() + PATIENCE_SECONDS
    ended: dict[int, dict[str, Any]] = {}
    interrupted: dict[int, dict[str, Any]] = {}
    while len(ended) < 2 or not interrupted:
        driver.send_signal(signal.SIGCONT)
        assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
        time.sleep(0.1)
        if (out / ".smec-study").is_dir() and list((out / ".smec-study").iterdir()):
            # stopped before it is looked at: between two trials, there is none to be interrupted
            driver.send_signal(signal.SIGSTOP)
            trials = read_trials(_state(out))
            ended = {one.number: one.model_dump(mode="json") for one in trials if one.state != "running"}
            interrupted = {one.number: one.params for one in trials if one.state == "running"}
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    parent = _state(out).read("mlflow_run.json")
    assert _start(command, tmp_path).wait(PATIENCE_SECONDS) == 0, (tmp_path / "output.txt").read_text()
    after = {one["number"]: one for one in _summary(out)["trials"]}
    assert sorted(after) == list(range(1, 7))
    for number, trial in ended.items():
        assert after[number] == trial
    for number, params in interrupted.items():
        assert after[number]["params"] == params
        assert after[number]["state"] in ("finished", "stopped")
    assert _state(out).read("mlflow_run.json") == parent
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_run(parent["run_id"]).info.experiment_id], max_results=50)
    assert len([run for run in runs if "mlflow.parentRunId" not in run.data.tags]) == 1
    assert len(runs) == 7
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_stopped_trials_of_several_workers_give_back_what_they_held(dataset: Path, space: Path, tmp_path: Path) -> None:
    # the tests' cluster has no dashboard, by which Ray Train would do it: without `release_after` the study hangs here
    cpus = ray.cluster_resources()["CPU"]
    settings = _settings(dataset, space, tmp_path / "out", trials=6, workers=2, cpus_per_worker=int(cpus) // 2)
    summary = tune.run(settings)
    assert summary["states"]["failed"] == 0
    stopped = [one["number"] for one in summary["trials"] if one["state"] == "stopped"]
    assert stopped and min(stopped) < 6
    assert all(one["steps"][0]["place"] == 1 for one in summary["trials"])
    _wait_for(cpus)
    assert not list((tmp_path / "out" / ".smec-study").rglob("*.start-*"))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_trials_of_several_workers_that_are_cut_off_give_back_what_they_held(
    dataset: Path, space: Path, tmp_path: Path
) -> None:
    cpus = ray.cluster_resources()["CPU"]
    changes = {"workers": 2, "cpus_per_worker": int(cpus) // 2, "epochs": 2000, "hours": 45 / 3600}
    with pytest.raises(SmecError, match="no trial finished in time"):
        tune.run(_settings(dataset, space, tmp_path / "out", **changes))
    [trial] = read_trials(_state(tmp_path / "out"))
    assert trial.state == "running"
    assert trial_folder(_state(tmp_path / "out"), 1).read("workers.json")
    _wait_for(cpus)


def _wait_for(cpus: float) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while ray.available_resources().get("CPU") != cpus:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.5)
