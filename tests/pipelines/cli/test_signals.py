"""Signals to real commands, and kills: one line, the exit code, and nothing that is left; also of readers that go."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from smec_core.model.model import Model
from smec_core.temporary import PREFIX
from tests.builders import write_dataset
from tests.endings import Command, started
from tests.kills import REPOSITORY

TRAIN = ["--dims", "8,4", "--set", "checkpoint_every=5", "--set", "epochs=200", "--set", "patience=200"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("signals") / "data")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder whose path has room for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


def train(dataset: Path) -> list[str]:
    return ["train", "--data", str(dataset), "--out", "model", *TRAIN]


def store(folder: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


def has_steps(command: Command) -> bool:
    return "share the steps from here on" in command.said


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_at_once_is_one_line(name: str, dataset: Path, tmp_path: Path, temporary: Path) -> None:
    with started(["check", str(dataset)], tmp_path, temporary) as command:
        assert command.wait_until(command.takes_signals)
        command.send(name)
        command.send(name)
        command.end().check(name)


def as_by_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_signal_that_was_ignored_at_the_start_stays_so(dataset: Path, tmp_path: Path, temporary: Path) -> None:
    with started(["check", str(dataset)], tmp_path, temporary, starts_as=as_by_nohup) as command:
        assert command.wait_until(command.takes_signals)
        command.send("SIGHUP")
        ended = command.end()
    assert (ended.code, ended.last_lines) == (0, [])
    ended.check_left()


@pytest.mark.ray
@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_what_a_terminal_sends_ends_a_training(name: str, dataset: Path, tmp_path: Path, temporary: Path) -> None:
    # to Ray's processes, too
    with started(train(dataset), tmp_path, temporary, store(tmp_path), own_group=True) as command:
        assert command.wait_until(lambda: has_steps(command)), command.said
        command.send_group(name)
        ended = command.end()
    ended.check(name)
    assert not list(tmp_path.rglob("lease.json"))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("KILLED",)]


@pytest.mark.ray
@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_what_a_terminal_sends_ends_a_compression(name: str, dataset: Path, tmp_path: Path, temporary: Path) -> None:
    Model([], 32, {"dims": [32, 8]}, {}).save(tmp_path / "model")
    words = ["compress", "--model", "model", "--input", f"{dataset}/corpus", "--output", "out", "--dim", "8"]
    with started(words, tmp_path, temporary, own_group=True) as command:
        # Ray's start has begun
        assert command.wait_until(lambda: bool(list(temporary.glob(f"{PREFIX}*/session_2*"))))
        command.send_group(name)
        ended = command.end()
    ended.check(name)
    assert not (tmp_path / "out/CURRENT").exists()


@pytest.mark.ray
def test_what_a_kill_leaves_is_gone_with_the_next_start(dataset: Path, tmp_path: Path, temporary: Path) -> None:
    with started(train(dataset), tmp_path, temporary, store(tmp_path)) as command:
        assert command.wait_until(lambda: has_steps(command)), command.said
        reader = subprocess.Popen(["tail", "-f", next(temporary.glob(f"{PREFIX}*/session_2*/logs/raylet.out"))])
        command.process.kill()
        command.process.wait()
        assert len(list(temporary.iterdir())) > 1
        agents = [process for process, title in command.left() if title.startswith("ray::")]
        assert agents, "the agents have ended by themselves: nothing is left to end"
        with started(["check", str(dataset)], tmp_path, temporary) as after:
            assert after.process.wait() == 0, after.said
        assert list(temporary.iterdir()) == []
        psutil.wait_procs(agents, 5)
        assert not [title for _, title in command.left() if title.startswith("ray::")]
        assert reader.poll() is None, "somebody who reads a log was killed"
        reader.kill()
        reader.wait()


SCRIPT = """
import sys, time
from pipelines import signals
signals.install()
signals.then("it goes on")
signals.allow(2.0)
signals.begin(lambda text: print(text, file=sys.stderr, flush=True))
{body}
"""
STUCK = """
try:
    print("up", flush=True)
    time.sleep(100)
finally:
    time.sleep(100)
"""
DROPPED = """
class Dropping:
    def __del__(self):
        print("up", flush=True)
        time.sleep(1)
def drop():
    try:
        Dropping()
        time.sleep(100)
    except BaseException:
        pass
try:
    drop()
    time.sleep(100)
except KeyboardInterrupt:
    signals.end(0)
"""
SERVED = """
import signal
def own(*_):
    print("own", flush=True)
    raise SystemExit(7)
signal.signal(signal.SIGTERM, own)
print("up", flush=True)
time.sleep(100)
"""
DONE = """
import atexit
atexit.register(lambda: (print("up", flush=True), time.sleep(1)))
signals.end(3)
"""
INSIDE = """
import signal
before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
from pipelines.data.check import run
from pipelines.data.settings import CheckSettings
run(CheckSettings(data=sys.argv[1]))
assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


def script(code: str, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("body", "signals", "code", "said"),
    [
        pytest.param(STUCK, 3, 143, ["ended by SIGTERM; it goes on", "the third signal"], id="the third"),
        pytest.param(STUCK, 2, 143, ["ended by SIGTERM; it goes on", "clean-up took longer than 2 s"], id="time"),
        pytest.param(DROPPED, 1, 143, ["ended by SIGTERM; it goes on"], id="dropped"),
        pytest.param(SERVED, 1, 7, [], id="a handler of a job's own"),
        pytest.param(DONE, 2, 3, [], id="after the job is done"),
    ],
)
def test_how_clean_up_ends(body: str, signals: int, code: int, said: list[str]) -> None:
    with script(SCRIPT.format(body=body)) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        _, errors = process.communicate()
    assert process.returncode == code, errors
    assert len(errors.splitlines()) == len(said), errors
    assert all(text in line for text, line in zip(said, errors.splitlines(), strict=True))


def test_what_a_thread_interrupts_ends_also_where_ctrl_c_is_ignored() -> None:
    ignored = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    body = "import threading\nthreading.Timer(0.1, signals.interrupt).start()\ntime.sleep(100)\n"
    with script(ignored + SCRIPT.format(body=body)) as process:
        _, errors = process.communicate()
    assert errors.endswith("KeyboardInterrupt\n"), errors


def test_a_job_that_is_called_leaves_signals_alone(dataset: Path) -> None:
    with script(f"import sys\n{INSIDE}", str(dataset)) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.parametrize("closed", ["| true", "2>&1 | true", "2>&-", ">&-", ">&- 2>&- <&-"])
def test_whoever_reads_may_go(closed: str, dataset: Path, tmp_path: Path) -> None:
    smec = f"{sys.executable} -m pipelines.cli check {dataset} --json {tmp_path}/figures.json"
    done = subprocess.run(
        ["bash", "-c", f"{smec} {closed}; exit ${{PIPESTATUS[0]}}"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") or ("2>" not in closed and done.returncode == 0), done.stderr
    assert (tmp_path / "figures.json").exists()
