"""A retrain that is killed anywhere: readers see whole releases only, and a rerun ends as an undisturbed run would."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pytest
import ray

from smec_core.data.parquet import write_embeddings
from tests.kills import REPOSITORY
from tests.pipelines.retrain.interrupted import STEP
from tests.pipelines.retrain.series import Series

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SLOW = pytest.mark.slow
PATIENCE_SECONDS = 300
# Durable steps of each scene, checked against what it does.
POINTS = {
    # the third model, which removes the first
    "release": 30,
    # after that, new documents and a challenger that is no better
    "refresh": 24,
    # after the third model
    "rollback": 5,
}
OF_EVERY_RUN = {("release", 23), ("rollback", 2)}


class Scene(NamedTuple):
    """How a series stands before a job, how it stands after an undisturbed one, and what happens on the way."""

    start: Path
    job: str
    end: dict[str, Any]
    steps: list[str]


def run(series: Series, job: str, *point: str) -> "subprocess.CompletedProcess[str]":
    address = ray.get_runtime_context().gcs_address
    return subprocess.run(
        [sys.executable, "-m", "tests.pipelines.retrain.interrupted", str(series.config), job, *point],
        env=os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(REPOSITORY)},
        # MLflow puts its artifacts there
        cwd=series.folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_SECONDS,
    )


def champion(series: Series) -> str:
    """Fingerprint of what the alias names, read from the store's database itself: a client would keep it open."""
    database = sqlite3.connect(mlflow.get_tracking_uri().removeprefix("sqlite:///"), timeout=60)
    try:
        [(fingerprint,)] = database.execute(
            "SELECT value FROM registered_model_aliases AS alias JOIN model_version_tags AS tag "
            "ON tag.name = alias.name AND tag.version = alias.version "
            "WHERE alias.name = ? AND alias = 'champion' AND key = 'smec.model_fingerprint'",
            [series.name],
        )
    finally:
        database.close()
    return str(fingerprint)


def outcome(series: Series) -> dict[str, Any]:
    """All that a series has, but for times."""
    found: dict[str, Any] = {"champion": series.check_whole(), "version": series.version}
    assert champion(series) == found["champion"]
    for name, content in series.tree().items():
        # of a training only the model counts here, and how long it took is in that, too
        is_model = name.endswith("/model/adapter.safetensors")
        if name.startswith("storage/") and not is_model and f"/{series.name}/" not in name:
            continue
        if name.endswith(".json") and not is_model:
            text = json.loads(content)
            for record in [text, *(text.get("releases", []) if isinstance(text, dict) else [])]:
                for key in ("created", "decided", "seconds", "sha256", "stamp", "input_fingerprint", "manifest"):
                    record.pop(key, None)
                    if record.get("release"):
                        record["release"].pop(key, None)
            if name.endswith("_manifest.json"):
                text["files"] = [{**file, "stamp": ""} for file in text["files"]]
                text["inputs"] = {piece: {**one, "stamp": ""} for piece, one in text["inputs"].items()}
            found[name] = text
        elif name.endswith("/CURRENT"):
            # the checksum in it is of a manifest, which holds times
            found[name] = content.splitlines()[0]
        else:
            found[name] = content
    return found


@contextmanager
def polled(series: Series) -> Iterator[None]:
    """Reads alias and published folder all the while, as a query service might."""
    stop, problems, reads = threading.Event(), [], [0]

    def poll() -> None:
        while not stop.is_set():
            try:
                series.check_whole()
                assert champion(series)
                reads[0] += 1
                time.sleep(0.02)
            except BaseException as error:
                problems.append(error)
                return

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()
    if problems:
        raise problems[0]
    assert reads[0] > 3


class Stage:
    """A series and the scenes that are played with it, each set up when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.series = Series(folder / "series")
        self._folder = folder
        self._scenes: dict[str, Scene] = {}
        self.series.configure("publish", keep=2)
        for share in (0.35, 0.7):
            self.series.judge(share)
            before = run(self.series, "retrain")
            assert before.returncode == 0, before.stdout
        self.series.judge(1)
        self._play("release", "retrain")

    def _play(self, name: str, job: str) -> None:
        start = self._folder / f"before {name}"
        shutil.copytree(self.series.folder, start)
        with polled(self.series):
            undisturbed = run(self.series, job)
        assert undisturbed.returncode == 0, undisturbed.stdout
        steps = [line.removeprefix(STEP) for line in undisturbed.stdout.splitlines() if line.startswith(STEP)]
        self._scenes[name] = Scene(start, job, outcome(self.series), steps)
        shutil.copytree(self.series.folder, self._folder / f"after {name}")

    def set_up(self, folder: Path) -> None:
        shutil.rmtree(self.series.folder)
        shutil.copytree(folder, self.series.folder)

    def scene(self, name: str) -> Scene:
        if name not in self._scenes:
            self.set_up(self._folder / "after release")
            if name == "refresh":
                x_ND = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
                new = str(self.series.data / "corpus/part-9.parquet")
                write_embeddings(new, [f"new{row}" for row in range(20)], x_ND)
                self.series.configure("gate", min_gain=0.5)
            self._play(name, "rollback" if name == "rollback" else "retrain")
        return self._scenes[name]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        # a store of its own, which goes back with the rest
        (folder / "series").mkdir()
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'series' / 'mlflow.db'}")
        yield Stage(folder)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "release" else pytest.mark.slow) for name in POINTS]
)
def test_the_points_are_all_that_there_are(stage: Stage, name: str) -> None:
    steps = stage.scene(name).steps
    assert len(steps) == POINTS[name], "\n".join(steps)


def test_the_oldest_release_is_removed_with_its_model(stage: Stage) -> None:
    end = stage.scene("release").end
    releases = end[f"storage/{stage.series.name}/releases.json"]["releases"]
    assert [release["version"] for release in releases] == ["v0002", "v0003"]
    published = {name.split("/")[1] for name in end if name.startswith("vectors/")}
    assert published == {"CURRENT", "v0002", "v0003"}
    models = {name.split("/")[1] for name in end if name.endswith("adapter.safetensors")}
    assert models == {release["run"] for release in releases}


@pytest.mark.parametrize(
    ("name", "point"),
    [
        pytest.param(name, point, marks=[] if (name, point) in OF_EVERY_RUN else SLOW)
        for name, points in POINTS.items()
        for point in range(points)
    ],
)
def test_a_rerun_ends_as_an_undisturbed_run(stage: Stage, name: str, point: int) -> None:
    scene = stage.scene(name)
    stage.set_up(scene.start)

    with polled(stage.series):
        killed = run(stage.series, scene.job, str(point))
        assert killed.returncode == -signal.SIGKILL, killed.stdout
        again = run(stage.series, scene.job)

    assert again.returncode == 0, again.stdout
    assert outcome(stage.series) == scene.end
