"""Trainings whose workers or driver are killed, for real: they give what one gives that nobody disturbs."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smec_core
from pipelines.storage.run_folder import RunFolder
from pipelines.train import job as train
from pipelines.train.settings import TrainSettings
from tests.builders import write_dataset
from tests.kills import (
    PATIENCE_SECONDS,
    Training,
    assert_complete_in_mlflow,
    checkpoints,
    descendants,
    history,
    resumed_at,
    wait_for_step,
    workers,
)

pytestmark = pytest.mark.ray

SETTINGS = {
    "epochs": 6,
    "batch_size": 16,
    "negatives": 16,
    # a memory in each stage: long enough to be killed within
    "init": "pca",
    "alpha": 0.1,
    "alpha_whole": 0.1,
    "queue_size": 100,
    "checkpoint_every": 30,  # Ray takes in four a second: steps must not run ahead of what an onlooker sees
    "max_failures": 9,
}


def settings_of(data: Path, out: Path, storage: str, name: str, **changes: object) -> TrainSettings:
    chosen = SETTINGS | {"data": str(data), "out": str(out), "storage": storage, "name": name} | changes
    return TrainSettings.model_validate(chosen | {"dims": "8,4", "workers": 2})


def arguments_of(settings: TrainSettings) -> list[str]:
    chosen = settings.model_dump(mode="json", exclude_unset=True, exclude={"dims"})
    return ["--dims", "8,4", *(text for key, value in chosen.items() for text in ("--set", f"{key}={value}"))]


def sha256(model: Path) -> str:
    return hashlib.sha256((model / "adapter.safetensors").read_bytes()).hexdigest()


def last_step(model: Path) -> int:
    return max(int(str(record["step"])) for record in history(model))


def assert_same_training(model: Path, undisturbed: Path) -> None:
    """The same bytes, and the same figures, each step's once and in order."""
    print(f"sha256 of adapter.safetensors: undisturbed {sha256(undisturbed)}, killed {sha256(model)}")
    assert sha256(model) == sha256(undisturbed)
    records = history(model)
    assert records == history(undisturbed)
    losses = [(record["step"], record["projection"]) for record in records if "loss" in record]
    assert len(set(losses)) == len(losses)
    steps = list(dict.fromkeys(step for step, _ in losses))
    assert steps == list(range(1, last_step(undisturbed) + 1))


def spread(steps: int, count: int) -> list[int]:
    """Random steps of a run, one from each of its parts, none so late that the run could be over."""
    random = np.random.default_rng(count)
    bounds = np.linspace(10, steps - 40, count + 1).astype(int)
    return [int(random.integers(low, high)) for low, high in pairwise(bounds)]


def kill_workers(pid: int, run_folder: RunFolder, targets: list[int], goes_on: Callable[[], bool]) -> list[int]:
    """Kills one of the two workers that a process has started at each of some steps; the steps last seen then."""
    random, struck, before = np.random.default_rng(0), [], frozenset[str]()
    for target in targets:
        struck.append(wait_for_step(run_folder, target, goes_on, but=before))
        both = workers(pid)
        assert len(both) == 2
        os.kill(both[random.integers(2)].pid, signal.SIGKILL)
        before = checkpoints(run_folder)
    return struck


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train.run(settings_of(dataset, folder / "model", str(folder / "runs"), "undisturbed"))
    return folder / "model"


def test_a_worker_is_killed_and_the_result_is_the_same(
    dataset: Path, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(dataset, tmp_path / "model", str(tmp_path / "runs"), "killed")
    run_folder = RunFolder(str(tmp_path / "runs"), "killed")
    struck: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        struck.extend(
            kill_workers(os.getpid(), run_folder, spread(last_step(undisturbed), 1), lambda: not ended.is_set())
        )

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        train.run(settings)
    finally:
        ended.set()
        killer.join()
    said = capfd.readouterr().err
    print(f"a worker was killed past steps {struck}, the run went on from {resumed_at(said)}")
    [at], [resumed] = struck, resumed_at(said)
    assert at > 0
    assert resumed > 0
    assert_same_training(tmp_path / "model", undisturbed)
    [run_id] = [line.split()[2] for line in said.splitlines() if line.startswith("MLflow run ")]
    print(f"{assert_complete_in_mlflow(run_id, tmp_path / 'model')} figures in MLflow, none twice")
    assert not checkpoints(run_folder), "a finished run needs none"


def test_the_driver_is_killed_and_the_same_command_goes_on(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    _kill_drivers(dataset, undisturbed, [tmp_path], str(tmp_path / "runs"), spread(last_step(undisturbed), 1))


@pytest.mark.slow
def test_the_queue_of_figures_is_killed_and_the_run_fails_in_one_line(dataset: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "runs")
    settings = settings_of(dataset, tmp_path / "model", storage, "killed", epochs=200)
    training = Training(arguments_of(settings), tmp_path / "log")
    try:
        wait_for_step(RunFolder(storage, "killed"), 30, training.goes_on, but=frozenset())
        [queue] = [process for process in descendants(training.pid) if process.title.startswith("ray::_QueueActor")]
        os.kill(queue.pid, signal.SIGKILL)
        assert training.process.wait(PATIENCE_SECONDS) == 1, training.said
    finally:
        training.end()
    # Ray itself prints that a process has died
    [line] = [line for line in training.said.splitlines() if line.startswith("smec: ")]
    assert line.startswith("smec: a Ray worker failed: ActorDiedError")
    assert "Traceback" not in training.said


@pytest.mark.slow
def test_so_does_that_of_a_warm_start(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    champion = smec_core.load(undisturbed)
    for stage in champion.metrics["stages"]:
        stage["epochs"] = 10
    champion.save(tmp_path / "champion")
    changes: dict[str, Any] = {"warm_start": str(tmp_path / "champion"), "compatible": 1.0}
    train.run(settings_of(dataset, tmp_path / "whole", str(tmp_path / "runs"), "whole", **changes))
    targets = spread(last_step(tmp_path / "whole"), 1)
    _kill_drivers(dataset, tmp_path / "whole", [tmp_path], str(tmp_path / "runs"), targets, **changes)


def _kill_drivers(
    data: Path,
    undisturbed: Path,
    folders: list[Path],
    storage: str,
    targets: list[int],
    between: Callable[[RunFolder], None] = lambda run_folder: None,
    **changes: object,
) -> None:
    """Kills the driver at some steps and gives the same command again, each time in the next folder if there is one."""
    run_folder = RunFolder(storage, "killed")
    struck: list[int] = []
    resumed: list[int] = []
    runs: list[str] = []
    before = frozenset[str]()
    for number, target in enumerate([*targets, None]):
        folder = folders[min(number, len(folders) - 1)]
        folder.mkdir(exist_ok=True)
        settings = settings_of(data, folder / "model", storage, "killed", **changes)
        training = Training(arguments_of(settings), folder / f"{number}.log")
        try:
            if target is None:
                training.finish()
            else:
                struck.append(wait_for_step(run_folder, target, training.goes_on, but=before))
                seconds = training.kill()
                print(f"the driver was killed past step {struck[-1]}; its processes were gone after {seconds:.1f} s")
                between(run_folder)
                before = checkpoints(run_folder)
        finally:
            training.end()
        resumed += training.resumed_at
        runs.append(training.mlflow_run)
    print(f"the next runs went on from {resumed}")
    assert len(resumed) == len(targets)
    assert all(step > 0 for step in struck + resumed)
    assert_same_training(folder / "model", undisturbed)
    assert len(set(runs)) == 1
    print(f"{assert_complete_in_mlflow(runs[0], folder / 'model')} figures in MLflow, none twice")


@pytest.mark.slow
def test_on_s3_another_machine_goes_on(
    dataset: Path, undisturbed: Path, tmp_path: Path, s3: Callable[[str], str]
) -> None:
    _kill_drivers(dataset, undisturbed, [tmp_path / "one", tmp_path / "other"], s3("deep/runs"), [90])


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", docs=1200, queries=600)


@pytest.fixture(scope="module")
def larger_undisturbed(larger: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train.run(settings_of(larger, folder / "model", str(folder / "runs"), "undisturbed"))
    return folder / "model"


@pytest.mark.slow
def test_workers_are_killed_at_five_steps(larger: Path, larger_undisturbed: Path, tmp_path: Path) -> None:
    settings = settings_of(larger, tmp_path / "model", str(tmp_path / "runs"), "killed")
    run_folder = RunFolder(str(tmp_path / "runs"), "killed")
    training = Training(arguments_of(settings), tmp_path / "said.log")
    try:
        struck = kill_workers(training.pid, run_folder, spread(last_step(larger_undisturbed), 5), training.goes_on)
        training.finish()
    finally:
        training.end()
    print(f"workers were killed past steps {struck}, the run went on from {training.resumed_at}")
    assert len(struck) == len(training.resumed_at) == 5
    assert all(step > 0 for step in struck + training.resumed_at)
    assert_same_training(tmp_path / "model", larger_undisturbed)
    print(f"{assert_complete_in_mlflow(training.mlflow_run, tmp_path / 'model')} figures in MLflow, none twice")


@pytest.mark.slow
def test_the_driver_is_killed_at_two_steps_with_writes_under_way(
    larger: Path, larger_undisturbed: Path, tmp_path: Path
) -> None:
    """Besides, what a crash leaves half written is made so: Ray's own state, then a file of the newest checkpoint."""
    damaged: list[Path] = []

    def damage(run_folder: RunFolder) -> None:
        files = [max(Path(run_folder.path).glob("killed.start-*/checkpoint_manager_snapshot.json"))]
        if damaged:
            files.append(max(Path(run_folder.path).glob("killed.start-*/checkpoint_*/files-1.json")))
        for file in files:
            file.write_bytes(file.read_bytes()[:-10])
        damaged.extend(files)

    targets = spread(last_step(larger_undisturbed), 2)
    _kill_drivers(larger, larger_undisturbed, [tmp_path], str(tmp_path / "runs"), targets, damage)
    assert len(damaged) == 3
