"""What Prometheus would scrape from Ray while a training runs, and after a retrain has ended."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import ray

from pipelines.runtime.prometheus import ACTOR, NAMESPACE, RETRAIN_FIGURES, TRAIN_GAUGES, report_retrain
from tests.builders import write_dataset
from tests.kills import PATIENCE_SECONDS, REPOSITORY, Training

pytestmark = pytest.mark.ray

RUN = "nightly"


class Sample(NamedTuple):
    """One line of what is scraped."""

    name: str
    labels: dict[str, str]
    value: float


def scrape(prefix: str) -> list[Sample]:
    """The gauges of a prefix on all nodes, without the labels that Ray itself adds."""
    samples = []
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        for line in lines:
            if match := re.match(rf"({prefix}\w+)\{{(.*)\}} (\S+)$", line):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                own = {
                    key: labels[key] for key in ("run", "pass", "stage", "projection", "part", "name") if key in labels
                }
                samples.append(Sample(match[1], own, float(match[3])))
    return samples


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(1)


@pytest.fixture
def address(ray_cluster: None) -> str:
    """Where other processes find the tests' cluster."""
    return ray.get_runtime_context().gcs_address


@pytest.fixture
def training(address: str, tmp_path: Path) -> Iterator[Training]:
    """A training that goes on for longer than any test."""
    data = write_dataset(tmp_path / "data")
    arguments = ["--data", str(data), "--dims", "8", "--out", str(tmp_path / "model"), "--workers", "2", "--name", RUN]
    for setting in ("alpha=0.1", "alpha_whole=0.1", "queue_size=500", "epochs=100000", "patience=100000"):
        arguments += ["--set", setting]
    training = Training(arguments, tmp_path / "said", {"RAY_ADDRESS": address})
    yield training
    training.end()


def test_a_training_is_on_rays_endpoint_and_gone_when_it_ends(training: Training) -> None:
    expected = {f"ray_{name}" for name in TRAIN_GAUGES} - {
        "ray_smec_train_dev_neighbour_recall_at_10",
        "ray_smec_train_dev_agreement_at_10",
    }

    def is_complete() -> bool:
        assert training.goes_on(), training.said
        return {sample.name for sample in scrape("ray_smec_train_")} >= expected

    wait_until(is_complete)
    samples = scrape("ray_smec_train_")
    assert {sample.name for sample in samples} == expected
    assert {sample.labels["run"] for sample in samples} == {RUN}
    parts = {s.labels["part"]: s.value for s in samples if s.name == "ray_smec_train_step_seconds"}
    assert set(parts) == {"data", "search", "compute"}
    assert min(parts.values()) > 0
    [fill] = [sample.value for sample in samples if sample.name == "ray_smec_train_memory_fill"]
    # 400 documents, each once, in 500 slots
    assert 0 < fill <= 0.8
    for sample in samples:
        if sample.name in ("ray_smec_train_loss", "ray_smec_train_dev_score", "ray_smec_train_dev_ndcg_at_10"):
            assert (sample.labels["pass"], sample.labels["stage"]) == ("first", "32")
            assert sample.labels["projection"] == "linear"
    [ndcg] = [sample.value for sample in samples if sample.name == "ray_smec_train_dev_ndcg_at_10"]
    assert 0 < ndcg <= 1

    def step() -> float:
        return max((s.value for s in scrape("ray_smec_train_") if s.name == "ray_smec_train_step"), default=0.0)

    before = step()
    wait_until(lambda: step() > before)

    training.process.send_signal(signal.SIGINT)
    training.process.wait(PATIENCE_SECONDS)
    wait_until(lambda: not scrape("ray_smec_train_"))


DRIVER = """
import json, logging, sys
import ray
from pipelines.runtime.prometheus import report_retrain
ray.init(log_to_driver=False, logging_level=logging.ERROR)
report_retrain(sys.argv[1], json.loads(sys.argv[2]))
"""


@pytest.fixture
def report(address: str) -> Iterator[Callable[[str, str], None]]:
    """Reports from a process that ends at once."""

    def call(name: str, figures: str) -> None:
        environment = os.environ | {"RAY_ADDRESS": address}
        subprocess.run([sys.executable, "-c", DRIVER, name, figures], cwd=REPOSITORY, env=environment, check=True)

    yield call
    with suppress(ValueError):
        ray.kill(ray.get_actor(ACTOR, namespace=NAMESPACE))


@pytest.mark.slow
def test_figures_of_a_retrain_stay_when_its_process_is_gone(report: Callable[[str, str], None]) -> None:
    def found() -> dict[tuple[str, str], float]:
        # other tests of the cluster may have retrained series of theirs
        ours = [sample for sample in scrape("ray_smec_retrain_") if sample.labels["name"] in ("products", "images")]
        return {(sample.labels["name"], sample.name): sample.value for sample in ours}

    report("products", '{"gate_refused": 1, "drift_mean": 0.25, "drift_neighbours_kept": null}')
    first = {("products", "ray_smec_retrain_gate_refused"): 1.0, ("products", "ray_smec_retrain_drift_mean"): 0.25}
    wait_until(lambda: found() == first)
    # longer than Ray keeps what nobody sets again
    until = time.monotonic() + 2.5 * ray._config.metrics_report_interval_ms() / 1000
    while time.monotonic() < until:
        assert found() == first
        time.sleep(1)

    report("products", '{"gate_refused": 0}')
    report("images", '{"gate_refused": 1}')
    second = first | {
        ("products", "ray_smec_retrain_gate_refused"): 0.0,
        ("images", "ray_smec_retrain_gate_refused"): 1.0,
    }
    wait_until(lambda: found() == second)
    actor = ray.get_actor(ACTOR, namespace=NAMESPACE)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"], "it must not take a CPU from trainings"
    assert actor is not None


def test_what_cannot_be_exported_does_not_stop_a_retrain(ray_cluster: None, capfd: pytest.CaptureFixture[str]) -> None:
    report_retrain("products", {"gate_refused": "no number"})  # type: ignore[dict-item]
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: the figures of this retrain are not exported to Prometheus: ")
    assert "no number" in line


def test_figures_have_names_that_prometheus_takes() -> None:
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in (*TRAIN_GAUGES, *RETRAIN_FIGURES))
