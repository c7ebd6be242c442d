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
import pytest
import ray

from tests.kills import REPOSITORY
from tests.pipelines.retrain.interrupted import STEP
from tests.pipelines.retrain.series import Series

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PATIENCE_SECONDS = 300
# of a cycle that trains, releases, and removes an old release; checked against what it does
POINTS = 25
OF_EVERY_RUN = {17, 19, 21}


class Story(NamedTuple):
    """A series as it stands before a third release, what its undisturbed end is, and what happens on the way."""

    series: Series
    start: Path
    end: dict[str, Any]
    steps: list[str]


def retrained(series: Series, *point: str) -> "subprocess.CompletedProcess[str]":
    address = ray.get_runtime_context().gcs_address
    return subprocess.run(
        [sys.executable, "-m", "tests.pipelines.retrain.interrupted", str(series.config), *point],
        env=os.environ | {"RAY_ADDRESS": address},
        cwd=REPOSITORY,
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
                for key in ("created", "decided", "seconds"):
                    record.pop(key, None)
                    if record.get("release"):
                        record["release"].pop(key, None)
            found[name] = text
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


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        # a store of its own, which goes back with the rest
        (folder / "series").mkdir()
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'series' / 'mlflow.db'}")
        patch.chdir(folder / "series")
        series = Series(folder / "series")
        series.config.write_text(series.config.read_text().replace("dim: 16", "dim: 16\n  keep: 2"))
        for share in (0.35, 0.7):
            series.judge(share)
            before = retrained(series)
            assert before.returncode == 0, before.stdout
        series.judge(1)
        shutil.copytree(series.folder, folder / "start")
        with polled(series):
            undisturbed = retrained(series)
        assert undisturbed.returncode == 0, undisturbed.stdout
        steps = [line.removeprefix(STEP) for line in undisturbed.stdout.splitlines() if line.startswith(STEP)]
        yield Story(series, folder / "start", outcome(series), steps)


def test_the_points_are_all_that_there_are(story: Story) -> None:
    assert len(story.steps) == POINTS, "\n".join(story.steps)


def test_the_oldest_release_is_removed_with_its_model(story: Story) -> None:
    releases = story.end[f"storage/{story.series.name}/releases.json"]["releases"]
    assert [release["version"] for release in releases] == ["v0002", "v0003"]
    published = {name.split("/")[1] for name in story.end if name.startswith("vectors/")}
    assert published == {"CURRENT", "v0002", "v0003"}
    models = {name.split("/")[1] for name in story.end if name.endswith("adapter.safetensors")}
    assert models == {release["run"] for release in releases}


@pytest.mark.parametrize(
    "point",
    [point if point in OF_EVERY_RUN else pytest.param(point, marks=pytest.mark.slow) for point in range(POINTS)],
)
def test_a_rerun_ends_as_an_undisturbed_run(story: Story, point: int) -> None:
    shutil.rmtree(story.series.folder)
    shutil.copytree(story.start, story.series.folder)

    with polled(story.series):
        killed = retrained(story.series, str(point))
        assert killed.returncode == -signal.SIGKILL, killed.stdout
        again = retrained(story.series)

    assert again.returncode == 0, again.stdout
    assert outcome(story.series) == story.end
