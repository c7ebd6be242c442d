"""Jobs that are killed before any of their durable steps, by kill -9 and by a power cut: a rerun fixes what is left.

After the kill the same command is run twice: once on what the killed process has left, and once on what of that would
have outlasted a power cut.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.publish import check_version
from pipelines.verify import job as verify
from pipelines.verify.settings import VerifySettings
from smec_core.checksums import check_folder
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.versions import current
from smec_core.model.files import load
from tests.builders import write_dataset
from tests.durable import IMAGE, STEP, WATCHED, Disk
from tests.kills import REPOSITORY
from tests.pipelines.retrain.series import Series

pytestmark = [pytest.mark.ray]

PATIENCE_SECONDS = 300
CLUSTER = """
import logging, sys
import ray
ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
# the last of each are those that put something in force
FAST = {"compress": (-1,), "train": (-4,)}


class Scene:
    """A job, the folder that it writes to, and what it leaves when nothing disturbs it."""

    def __init__(
        self, folder: Path, command: list[str], outcome: Callable[[], Any], environment: dict[str, str]
    ) -> None:
        self.root, self._before = folder / "kept", folder / "before"
        self._mlflow, self._image = folder / "mlflow.db", folder / "image"
        self.command, self.outcome = command, outcome
        self._environment = environment | {
            WATCHED: str(self.root),
            IMAGE: str(self._image),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self._mlflow}",
        }
        self.root.mkdir(exist_ok=True)
        shutil.copytree(self.root, self._before)
        if self._mlflow.exists():
            shutil.copy(self._mlflow, folder / "mlflow before.db")
        self.disk = Disk(self.root, self._image)
        self.disk.reset()
        undisturbed = self.run(-1)
        assert undisturbed.returncode == 0, undisturbed.stdout
        self.steps = [line.removeprefix(STEP) for line in undisturbed.stdout.splitlines() if line.startswith(STEP)]
        self.end = outcome()

    def set_up(self, folder: Path | None = None) -> None:
        """As it was before the job, or as another folder is."""
        shutil.rmtree(self.root)
        shutil.copytree(folder or self._before, self.root)
        before = self._mlflow.with_name("mlflow before.db")
        if folder is None and before.exists():
            shutil.copy(before, self._mlflow)
        self.disk.reset()

    def run(self, point: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "tests.durable", str(point), *self.command],
            cwd=self.root.parent,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_SECONDS,
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Scene]]:
    """Scenes by name, on a cluster whose workers' syncs count, too; each is set up when it is first asked for."""
    folder = tmp_path_factory.mktemp("power cut")
    scenes: dict[str, Scene] = {}
    clusters = []

    def scene(name: str) -> Scene:
        if name not in scenes:
            place = folder / name
            place.mkdir()
            environment = os.environ | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": uuid.uuid4().hex,
                WATCHED: str(place / "kept"),
                IMAGE: str(place / "image"),
                "PYTHONPATH": f"{REPOSITORY / 'tests/durable_site'}:{REPOSITORY}",
            }
            cluster = subprocess.Popen(
                [sys.executable, "-c", CLUSTER],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            clusters.append(cluster)
            assert cluster.stdout is not None
            (place / "kept").mkdir()
            Disk(place / "kept", place / "image").reset()
            environment["RAY_ADDRESS"] = cluster.stdout.readline().strip()
            scenes[name] = MADE[name](place, environment)
        return scenes[name]

    yield scene
    for cluster in clusters:
        assert cluster.stdin is not None
        cluster.stdin.close()
        cluster.wait()


def a_compression(folder: Path, environment: dict[str, str]) -> Scene:
    data = write_dataset(folder / "data", docs=120, queries=60, dim=8, files=2)
    from tests.smec_core.model.test_model import make_model

    make_model().save(folder / "model")
    out = str(folder / "kept/vectors")

    def outcome() -> Any:
        name = Path(current(out)).name
        verify.run(VerifySettings(path=out))
        manifest = check_version(out, name)
        table = EmbeddingTable.open(current(out))
        rows = [(block.ids.to_pylist(), block.vectors_ND.tobytes()) for block in table.blocks(0, table.rows, 1000)]
        return manifest["rows"], rows

    command = ["compress", "--model", str(folder / "model"), "--input", str(data / "corpus"), "--output", out]
    return Scene(folder, [*command, "--dim", "4"], outcome, environment)


def a_training(folder: Path, environment: dict[str, str]) -> Scene:
    data = write_dataset(folder / "data", docs=120, queries=80, dim=8, files=2)
    out = folder / "kept/model"

    def outcome() -> Any:
        check_folder(out)
        return load(out).fingerprint

    command = ["train", "--data", str(data), "--dims", "4", "--out", str(out)]
    for setting in ("epochs=2", "batch_size=32", "negatives=8"):
        command += ["--set", setting]
    return Scene(folder, command, outcome, environment)


def a_release(folder: Path, environment: dict[str, str]) -> Scene:
    """The second release of a series, after which the first is removed."""
    series = Series(folder, folder / "kept")
    series.configure("publish", keep=1)
    command = ["retrain", "--config", str(series.config)]
    environment = environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    series.judge(0.5)
    first = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *command], cwd=folder, env=environment, text=True, capture_output=True
    )
    assert first.returncode == 0, first.stderr
    series.judge(1)

    def outcome() -> Any:
        fingerprint = series.check_whole()
        verify.run(VerifySettings(path=str(series.output / series.version)))
        database = sqlite3.connect(folder / "mlflow.db")
        champion = database.execute(
            "SELECT value FROM registered_model_aliases AS alias JOIN model_version_tags AS tag "
            "ON tag.name = alias.name AND tag.version = alias.version "
            "WHERE alias = 'champion' AND key = 'smec.model_fingerprint'"
        ).fetchall()
        database.close()
        return fingerprint, champion, len(list(series.storage.glob("*/model")))

    return Scene(folder, command, outcome, environment)


MADE = {"compress": a_compression, "train": a_training, "retrain": a_release}
STEPS = {"compress": 10, "train": 41, "retrain": 63}


@pytest.mark.parametrize(
    ("name", "point"),
    [
        *((name, point) for name, points in FAST.items() for point in points),
        *(pytest.param(name, point, marks=pytest.mark.slow) for name, steps in STEPS.items() for point in range(steps)),
    ],
)
def test_a_rerun_ends_as_an_undisturbed_run(
    stage: Callable[[str], Scene], tmp_path: Path, name: str, point: int
) -> None:
    scene = stage(name)
    assert len(scene.steps) == STEPS[name], "\n".join(scene.steps)
    scene.set_up()
    killed = scene.run(point % len(scene.steps))
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    scene.disk.after_a_power_cut(tmp_path / "after a power cut")

    again = scene.run(-1)
    assert again.returncode == 0, again.stdout
    assert scene.outcome() == scene.end

    scene.set_up(tmp_path / "after a power cut")
    again = scene.run(-1)
    assert again.returncode == 0, again.stdout
    assert scene.outcome() == scene.end
