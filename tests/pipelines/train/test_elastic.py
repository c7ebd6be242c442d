"""A training on a cluster of several nodes (raylets of this machine), one of which dies, and another of which comes."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipelines.storage.run_folder import RunFolder
from pipelines.train import job as train
from pipelines.train.settings import TrainSettings
from smec_core.model.files import load
from tests.builders import write_dataset
from tests.kills import PATIENCE_SECONDS, Training, assert_complete_in_mlflow, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# rotations of so many dims take half a second a step: long enough for a node to come and be noticed, every 20 s
SETTINGS = {"dims": "96", "projection": "rotation", "epochs": 8, "checkpoint_every": 5, "resize_seconds": 2}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head node for the driver alone, and two nodes of one CPU each."""
    # never as an address that another program of this machine could find
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed(data_dir: Callable[[str], Path], ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    chosen = SETTINGS | {"data": str(data_dir("scifact")), "out": str(folder / "model"), "workers": 2}
    train.run(TrainSettings.model_validate(chosen))
    return folder / "model"


def sizes(training: Training) -> list[int]:
    """Numbers of workers that the training has had so far."""
    return [int(size) for size in re.findall(r"^(\d+) worker\(s\) share the steps", training.said, re.MULTILINE)]


def wait_for_sizes(training: Training, count: int) -> list[int]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(sizes(training)) < count:
        assert training.goes_on(), training.said
        assert time.monotonic() < deadline, training.said
        time.sleep(0.2)
    return sizes(training)


def test_a_node_dies_and_another_comes(
    cluster: Cluster, undisturbed: Path, data_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    run_folder = RunFolder(str(tmp_path / "runs"), "elastic")
    chosen = SETTINGS | {"data": data_dir("scifact"), "out": tmp_path / "model", "storage": tmp_path / "runs"}
    arguments = [text for key, value in chosen.items() for text in ("--set", f"{key}={value}")]
    training = Training(
        [*arguments, "--workers", "1:2", "--name", "elastic"],
        tmp_path / "said.log",
        {"RAY_ADDRESS": cluster.address},
    )
    try:
        died = wait_for_step(run_folder, 10, training.goes_on, frozenset())
        cluster.remove_node(min(cluster.worker_nodes, key=lambda node: node.unique_id), allow_graceful=False)
        begun = time.monotonic()
        wait_for_sizes(training, 2)
        print(f"a node died past step {died}; the rest went on after {time.monotonic() - begun:.1f} s")
        cluster.add_node(num_cpus=1)
        begun = time.monotonic()
        wait_for_sizes(training, 3)
        print(f"a node came; it was in use after {time.monotonic() - begun:.1f} s")
        training.finish()
    finally:
        training.end()
    print(f"workers: {sizes(training)}, went on from steps {training.resumed_at}")
    assert sizes(training) == [2, 1, 2]
    assert all(step > 0 for step in training.resumed_at)
    ours, theirs = (load(folder).metrics["evaluation"]["ndcg@10"] for folder in (tmp_path / "model", undisturbed))
    print(f"nDCG@10 on test: {ours}, undisturbed {theirs}")
    assert ours == pytest.approx(theirs, abs=0.005)
    assert_complete_in_mlflow(training.mlflow_run, tmp_path / "model")


def test_the_driver_is_killed_and_the_cluster_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """The killed run's claim to the nodes, which Ray keeps for three minutes, does not stand in the next one's way."""
    data = write_dataset(tmp_path / "data")
    run_folder = RunFolder(str(tmp_path / "runs"), "killed")
    chosen = {
        "dims": "8,4",
        "epochs": 5,
        "batch_size": 16,
        "negatives": 16,
        "alpha": 0.1,
        "queue_size": 100,
        "checkpoint_every": 10,
    }
    chosen |= {"data": data, "out": tmp_path / "model", "storage": tmp_path / "runs", "name": "killed"}
    arguments = [text for key, value in chosen.items() for text in ("--set", f"{key}={value}")]

    def start(log: str) -> Training:
        return Training([*arguments, "--workers", "1:2"], tmp_path / log, {"RAY_ADDRESS": cluster.address})

    training = start("first.log")
    try:
        wait_for_step(run_folder, 30, training.goes_on, frozenset())
        os.kill(training.pid, signal.SIGKILL)
    finally:
        training.end()
    training = start("second.log")
    begun = time.monotonic()
    try:
        wait_for_sizes(training, 1)
        print(f"{sizes(training)} worker(s) after {time.monotonic() - begun:.1f} s")
        training.finish()
    finally:
        training.end()
    assert sizes(training) == [2]
    assert training.resumed_at[0] > 0
