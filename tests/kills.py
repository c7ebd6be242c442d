"""Trainings in processes of their own, watched by what they leave behind, and the killing of what belongs to them."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import mlflow
import pyarrow.fs as pafs

from pipelines.storage.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 300  # until something has hung, on a busy machine
WORKER = "ray::RayTrainWorker"
# hold nothing of a run, and go on asking for the rest of Ray for a minute
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def take_interrupts() -> None:
    """As at a terminal: a shell's background jobs ignore Ctrl-C, those of nohup SIGHUP, and hand that on."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Process(NamedTuple):
    """A process of this machine; the time it started tells it from a later one with the same number."""

    pid: int
    started: str
    title: str

    def is_alive(self) -> bool:
        return self in _processes()


def descendants(pid: int) -> list[Process]:
    """All processes that a process started, and those that they started."""
    found, parents = [], {pid}
    children = _processes()
    while parents:
        new = [process for process, parent in children.items() if parent in parents]
        parents = {process.pid for process in new}
        found += new
    return found


def workers(pid: int) -> list[Process]:
    """The Ray Train workers among them, in order of their start."""
    return sorted((p for p in descendants(pid) if p.title.startswith(WORKER)), key=lambda p: (int(p.started), p.pid))


def _processes() -> dict[Process, int]:
    """All processes and their parents; a zombie is none."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, parent, *fields = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found[Process(int(folder.name), fields[17], title)] = int(parent)
    return found


def shared_memory(processes: Iterable[Process]) -> set[Path]:
    """Files under a name in /dev/shm that some processes map or hold open."""
    found = set()
    for process in processes:
        folder = Path("/proc") / str(process.pid)
        try:
            mapped = [line.split(maxsplit=5)[5] for line in (folder / "maps").read_text().splitlines() if "/" in line]
            opened = [os.readlink(link) for link in (folder / "fd").iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found |= {Path(path) for path in mapped + opened if path.startswith("/dev/shm/")}
    return {path for path in found if path.exists()}


class Seen(NamedTuple):
    """The newest checkpoint of a run, and the step of the last record in it."""

    path: str
    step: int


def newest(run_folder: RunFolder, but: frozenset[str] = frozenset()) -> Seen | None:
    """What an onlooker sees of a run's progress; None where there is none that can be read."""
    for path in sorted(checkpoints(run_folder) - but, reverse=True):
        try:
            with run_folder.filesystem.open_input_stream(f"{path}/history.jsonl") as source:
                return Seen(path, int(json.loads(source.read().splitlines()[-1])["step"]))
        except (OSError, ValueError, IndexError):
            # being written, or removed meanwhile
            continue
    return None


def checkpoints(run_folder: RunFolder) -> frozenset[str]:
    """Paths of all checkpoints that a run has, whole or not."""
    selector = pafs.FileSelector(run_folder.path, recursive=True, allow_not_found=True)
    try:
        found = run_folder.filesystem.get_file_info(selector)
    except FileNotFoundError:
        # a folder in it was removed while it was listed
        return frozenset()
    paths = {info.path.partition("/checkpoint_")[::2] for info in found if "/checkpoint_" in info.path}
    return frozenset(f"{start}/checkpoint_{name.partition('/')[0]}" for start, name in paths)


def wait_for_step(run_folder: RunFolder, step: int, goes_on: Callable[[], bool], but: frozenset[str]) -> int:
    """Waits until a checkpoint that is none of `but` is of this step or a later one; the step that it is of."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        seen = newest(run_folder, but)
        if seen is not None and seen.step >= step:
            return seen.step
        assert goes_on(), f"the training ended before step {step}"
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in {PATIENCE_SECONDS} s")


class Training:
    """`smec train` as a process, with a Ray of its own unless it is told of one."""

    def __init__(self, arguments: list[str], output: Path, environment: dict[str, str] | None = None) -> None:
        self.output = output
        with output.open("w") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "train", *arguments],
                cwd=REPOSITORY,
                env=os.environ | (environment or {}),
                stdout=sink,
                stderr=subprocess.STDOUT,
                preexec_fn=take_interrupts,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def goes_on(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def resumed_at(self) -> list[int]:
        """Steps at which it said that it went on."""
        return resumed_at(self.said)

    @property
    def mlflow_run(self) -> str:
        [line] = [line for line in self.said.splitlines() if line.startswith("MLflow run ")]
        return line.split()[2]

    def finish(self) -> None:
        """Waits for its good end."""
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.said

    def kill(self) -> float:
        """Kills it by SIGKILL, and waits until its processes have ended of their own, which must leave nothing behind.

        Returns:
            How long that took, in seconds.
        """
        started = descendants(self.pid)
        files = shared_memory(started)
        assert any(process.title.startswith(WORKER) for process in started)
        self.process.kill()
        self.process.wait()
        killed = time.monotonic()
        left = [process for process in started if process.title not in AGENTS]
        while left and time.monotonic() < killed + 60:
            time.sleep(0.1)
            left = [process for process in left if process.is_alive()]
        for process in started:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        assert not left, f"left behind: {left}"
        assert not {path for path in files if path.exists()}
        return time.monotonic() - killed

    def end(self) -> None:
        """Kills it and whatever it started."""
        for process in descendants(self.pid):
            os.kill(process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def resumed_at(said: str) -> list[int]:
    """Steps at which a training said that it went on."""
    return [
        int(line.removeprefix("resumed at step ").partition(":")[0])
        for line in said.splitlines()
        if line.startswith("resumed at step ")
    ]


def history(model: Path) -> list[dict[str, object]]:
    """The figures of a model's training without those that say how long something took."""
    records = [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in record.items() if not k.startswith("seconds/") and k != "rows_per_s"} for record in records
    ]


def assert_complete_in_mlflow(run_id: str, model: Path) -> int:
    """MLflow's run holds each figure of each step of the history, once; how many."""
    expected = sorted(
        (
            f"stages/{record['pass']}/{record['stage']}/{record['projection']}/{name.replace('@', '_at_')}",
            record["step"],
        )
        for line in (model / "history.jsonl").read_text().splitlines()
        for record in [json.loads(line)]
        for name, value in record.items()
        if not isinstance(value, str) and name not in ("stage", "epoch", "step")
    )
    database = sqlite3.connect(mlflow.get_tracking_uri().removeprefix("sqlite:///"))
    try:
        rows = database.execute("SELECT key, step FROM metrics WHERE run_uuid = ?", [run_id])
        found = sorted(
            (key, step) for key, step in rows if key.startswith(("stages/first/", "stages/refit/", "stages/warm/"))
        )
    finally:
        database.close()
    assert found == expected
    return len(found)
