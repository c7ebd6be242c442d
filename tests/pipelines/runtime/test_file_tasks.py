"""Jobs of one task per file: what they print, and what becomes of them when workers die."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.runtime import file_tasks
from pipelines.runtime.cluster import RayFailure
from pipelines.runtime.file_tasks import record, run_file_tasks
from smec_core.data.stored_files import StoredFile
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from tests.builders import write_beir, write_dataset
from tests.kills import PATIENCE_SECONDS, REPOSITORY

pytestmark = pytest.mark.ray


class DyingWorker:
    """Writes an empty file a task; at some tasks its process is killed, as by the kernel, the first times it comes."""

    def __init__(self, folder: Path, deaths: dict[str, int]) -> None:
        self.folder = folder
        self.deaths = deaths

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        name = task["name"]
        if not (self.folder / name).exists():
            yield record(rows=1)
            tried = len(list(self.folder.glob(f"{name}.tried*")))
            if tried < self.deaths.get(name, 0):
                (self.folder / f"{name}.tried{tried}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            (self.folder / name).touch()
        yield record(done=StoredFile(name, 1, 0, ""))


def files(folder: Path, deaths: dict[str, int]) -> list[str]:
    tasks = [{"name": f"part-{number}"} for number in range(5)]
    found = run_file_tasks(DyingWorker, {"folder": folder, "deaths": deaths}, tasks, workers=2, gpus=0)
    return [done.name for _, done in found if done]


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_goes_on_when_workers_die(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sorted(files(tmp_path, {"part-1": 1})) == [f"part-{number}" for number in range(5)]
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert told == ["warning: a worker died (ActorDiedError); going on with the files that are not finished"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_kills_every_worker_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # each costs what Ray takes to see a death
    monkeypatch.setattr(file_tasks, "DEATHS_IN_A_ROW", 2)
    with pytest.raises(RayFailure, match="a Ray worker failed: ActorDiedError"):
        files(tmp_path, {"part-2": 1000})
    assert not (tmp_path / "part-2").exists()


def printed(*arguments: object) -> list[str]:
    """Lines that a command prints to people."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_compress_prints_its_own_lines_only(tmp_path: Path) -> None:
    import torch

    data = write_dataset(tmp_path / "data")
    dim = 32
    stage = FrozenStage(8, "linear", {"weight": torch.eye(dim), "logits": torch.zeros(dim)})
    Model([stage], dim, {"dims": [dim, 8]}, {}).save(tmp_path / "model")
    out = tmp_path / "out"
    lines = printed("compress", "--model", tmp_path / "model", "--input", data / "corpus", "--output", out, "--dim", 8)
    # on a busy machine also that it goes on
    own = [line for line in lines if not line.endswith(" s so far")]
    assert [line for line in own if not line.startswith("compressed ")] == []
    assert lines[-1].endswith(f"to 8 dims, 32 bytes a vector: {out}/v0001")


@pytest.mark.slow
def test_ingest_prints_its_own_lines_only(tmp_path: Path, encoder: Path) -> None:
    lines = printed("ingest", write_beir(tmp_path / "beir"), tmp_path / "data", "--encoder", encoder, "--workers", 1)
    # on a busy machine also that it goes on
    own = [line for line in lines if not line.endswith(" s so far")]
    assert [line for line in own if not line.startswith(("encoding ", "encoded "))] == []
    assert lines[-1] == f"encoded 3 documents and 2 queries, 384 dims: {tmp_path}/data"
