"""The lease on a run: real processes that take it, are killed with it, and lose it, on a disk and on an S3 server."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import lease
from pipelines.storage.files import swap
from pipelines.storage.lease import LEASE, TTL_SECONDS, Holder, Lease, find_silent, holder_of
from pipelines.storage.run_folder import RunFolder
from smec_core.errors import InputError, LeaseError

pytestmark = pytest.mark.server

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE_SECONDS = 60  # until something has hung, on a busy machine

# Takes the lease as soon as a line comes in, says "held" or "refused", and releases at the next line.
# With a host's name it is a process of that machine, as far as anyone can see.
TAKING = """
import socket, sys, time
from pipelines.storage import lease
from pipelines.storage.run_folder import RunFolder
from smec_core.errors import LeaseError

storage, lease.TTL_SECONDS, lease.RENEW_SECONDS, host = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
lease.WATCH_SECONDS = 0.05
if host:
    socket.gethostname = lambda: host
run_folder = RunFolder(storage, "nightly")
run_folder.create()
print("ready", flush=True)
for line in sys.stdin:
    try:
        with lease.Lease(run_folder, on_lost=lambda: None):
            print("held", flush=True)
            sys.stdin.readline()
        print("released", flush=True)
    except LeaseError:
        print("refused", flush=True)
"""


class Process:
    """A process that runs TAKING."""

    def __init__(self, storage: str, host: str, ttl: float, renew: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKING, storage, str(ttl), str(renew), host],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert self.read() == "ready"

    def write(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def take(self) -> str:
        self.write()
        return self.read()

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


Start = Callable[..., Process]


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on the disk; on the S3 server too for the tests marked ON_BOTH."""
    if getattr(request, "param", "disk") == "disk":
        return str(tmp_path / "storage")
    s3: Callable[[str], str] = request.getfixturevalue("s3")
    return s3("runs")


ON_BOTH = pytest.mark.parametrize("storage", ["disk", "s3"], indirect=True)


@pytest.fixture
def run_folder(storage: str) -> RunFolder:
    folder = RunFolder(storage, "nightly")
    folder.create()
    return folder


@pytest.fixture
def start(storage: str) -> Iterator[Start]:
    """Starts processes, as of another machine where a host is named; ends them with the test."""
    started: list[Process] = []

    def one(host: str = "", ttl: float = 30, renew: float = 5) -> Process:
        started.append(Process(storage, host, ttl, renew))
        return started[-1]

    yield one
    for process in started:
        process.end()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that expires soon."""
    monkeypatch.setattr(lease, "TTL_SECONDS", 2.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.1)


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that never expires: whoever waits for that hangs."""
    monkeypatch.setattr(lease, "TTL_SECONDS", 1e6)


def ignore() -> None:
    pass


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@ON_BOTH
def test_a_live_process_here_is_refused_at_once_and_released_means_free(
    run_folder: RunFolder, start: Start, lasting: None
) -> None:
    holder = start()
    assert holder.take() == "held"
    expected = rf"^run nightly is being trained by process {holder.process.pid} on \S+ since \d{{4}}-\S+; wait for it, "
    with pytest.raises(LeaseError, match=expected + rf"stop it \(kill {holder.process.pid}\), or choose"):
        Lease(run_folder, ignore).__enter__()
    assert holder.take() == "released"
    assert run_folder.read(LEASE) is None
    with Lease(run_folder, ignore) as mine:
        assert not mine.lost
    assert run_folder.read(LEASE) is None


def test_a_second_training_of_the_same_process_is_refused(run_folder: RunFolder) -> None:
    with Lease(run_folder, ignore) as mine:
        with pytest.raises(LeaseError, match=f"process {os.getpid()} on "), Lease(run_folder, ignore):
            pass
        mine.check()


@ON_BOTH
def test_what_a_killed_process_held_is_taken_over_at_once(run_folder: RunFolder, start: Start, lasting: None) -> None:
    holder = start()
    assert holder.take() == "held"
    # not waited for, so it stays in the process table, dead
    holder.kill()
    with Lease(run_folder, ignore):
        assert run_folder.read(LEASE)["pid"] == os.getpid()


def test_another_process_with_the_number_of_a_dead_one_does_not_hold_its_lease(
    run_folder: RunFolder, lasting: None
) -> None:
    dead = Holder.this_process()._replace(pid_started=1)
    run_folder.write(LEASE, dead._asdict())
    with Lease(run_folder, ignore):
        pass


def test_a_stopped_process_here_keeps_its_lease(run_folder: RunFolder, start: Start, short: None) -> None:
    holder = start(ttl=2, renew=0.2)
    assert holder.take() == "held"
    holder.process.send_signal(signal.SIGSTOP)
    before = run_folder.read(LEASE)
    time.sleep(3)
    assert run_folder.read(LEASE) == before
    with pytest.raises(LeaseError):
        Lease(run_folder, ignore).__enter__()


@ON_BOTH
def test_a_live_process_of_another_machine_is_refused_when_it_renews(
    run_folder: RunFolder, start: Start, capfd: pytest.CaptureFixture[str], lasting: None
) -> None:
    holder = start(host="elsewhere", renew=1)
    assert holder.take() == "held"
    expected = rf"by process {holder.process.pid} on elsewhere since \S+; .* \(its lease is renewed until \d{{4}}-\S+\)"
    with pytest.raises(LeaseError, match=expected):
        Lease(run_folder, ignore).__enter__()
    assert capfd.readouterr().err.count("run nightly is held by process") == 1
    assert holder.take() == "released"


@ON_BOTH
def test_a_dead_process_of_another_machine_is_waited_for_and_then_replaced(
    run_folder: RunFolder, start: Start, short: None
) -> None:
    holder = start(host="elsewhere", ttl=2, renew=0.2)
    assert holder.take() == "held"
    holder.kill()
    began = time.monotonic()
    with Lease(run_folder, ignore):
        assert time.monotonic() - began > 2


@pytest.mark.parametrize("until", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_another_machines_clock_decides_nothing(run_folder: RunFolder, short: None, until: str) -> None:
    run_folder.write(LEASE, Holder.this_process()._replace(host="elsewhere", until=until)._asdict())
    began = time.monotonic()
    with Lease(run_folder, ignore):
        assert time.monotonic() - began > 2


def test_a_container_of_this_host_is_another_machine(run_folder: RunFolder, short: None) -> None:
    container = Holder.this_process()._replace(pid_namespace="pid:[1]", pid=1, pid_started=1)
    run_folder.write(LEASE, container._asdict())
    began = time.monotonic()
    with Lease(run_folder, ignore):
        assert time.monotonic() - began > 2


def test_a_process_that_proc_hides_is_watched_like_one_of_another_machine(
    run_folder: RunFolder, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    run_folder.write(LEASE, Holder.this_process()._replace(pid=2**22 + 1)._asdict())
    assert holder_of(run_folder) is None
    monkeypatch.setattr(os, "kill", refuse)
    found = holder_of(run_folder)
    assert found is not None, "another user's, which /proc does not show with hidepid"
    began = time.monotonic()
    assert find_silent({"run": (run_folder, found)}, began) == {"run"}
    with Lease(run_folder, ignore):
        assert time.monotonic() - began > 4


def test_a_lease_released_meanwhile_is_taken_without_waiting_further(
    run_folder: RunFolder, start: Start, lasting: None
) -> None:
    holder = start(host="elsewhere")
    assert holder.take() == "held"
    threading.Timer(2, holder.write).start()
    with Lease(run_folder, ignore):
        pass


@ON_BOTH
def test_who_loses_the_lease_hears_of_it_and_leaves_the_others_alone(
    run_folder: RunFolder, start: Start, short: None
) -> None:
    told = threading.Event()
    other = Holder.this_process()._replace(token="another", host="elsewhere", pid=77)
    expected = r"^run nightly: its lease in \S+ was taken over by process 77 on elsewhere, "
    with pytest.raises(LeaseError, match=expected), Lease(run_folder, told.set) as mine:
        mine.check()
        run_folder.write(LEASE, other._asdict())
        assert told.wait(PATIENCE_SECONDS)
        assert mine.lost
        raise RuntimeError("what went wrong because of it")
    assert run_folder.read(LEASE) == other._asdict()


@ON_BOTH
def test_a_lease_that_was_removed_is_lost(run_folder: RunFolder, short: None) -> None:
    with pytest.raises(LeaseError, match="was taken over, because"), Lease(run_folder, ignore) as mine:
        run_folder.filesystem.delete_file(f"{run_folder.path}/{LEASE}")
        wait_until(lambda: mine.lost)
        mine.check()
    assert run_folder.read(LEASE) is None


def test_it_is_renewed_while_it_is_held(run_folder: RunFolder, short: None) -> None:
    with Lease(run_folder, ignore) as mine:
        first = run_folder.read(LEASE)
        wait_until(lambda: run_folder.read(LEASE)["until"] > first["until"])
        assert not mine.lost


def test_storage_that_is_away_for_a_while_does_not_cost_the_lease(tmp_path: Path, short: None) -> None:
    run_folder = RunFolder(str(tmp_path), "nightly")
    run_folder.create()
    with Lease(run_folder, ignore) as mine:
        os.rename(run_folder.path, f"{run_folder.path}.away")
        time.sleep(1)
        os.rename(f"{run_folder.path}.away", run_folder.path)
        first = run_folder.read(LEASE)
        wait_until(lambda: run_folder.read(LEASE)["until"] > first["until"])
        mine.check()


def test_a_holder_whose_storage_stays_away_stops_before_another_may_take_over(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lease.HOLD_SECONDS < TTL_SECONDS
    monkeypatch.setattr(lease, "HOLD_SECONDS", 1.0)
    run_folder = RunFolder(str(tmp_path), "nightly")
    run_folder.create()
    stopped = threading.Event()
    why = "may be taken over: for 1 s this process had not renewed it in time"
    with pytest.raises(LeaseError, match=why), Lease(run_folder, stopped.set) as mine:
        os.rename(run_folder.path, f"{run_folder.path}.away")
        assert stopped.wait(PATIENCE_SECONDS)
        os.rename(f"{run_folder.path}.away", run_folder.path)
        mine.check()


def test_a_write_to_storage_that_hangs_does_not_keep_the_holder_from_stopping(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HOLD_SECONDS", 0.5)
    run_folder = RunFolder(str(tmp_path), "nightly")
    run_folder.create()
    stopped, comes_back = threading.Event(), threading.Event()
    with pytest.raises(LeaseError), Lease(run_folder, stopped.set) as mine:

        def hang(*arguments: Any) -> bool:
            comes_back.wait(PATIENCE_SECONDS)
            return swap(*arguments)

        monkeypatch.setattr("pipelines.storage.lease.swap", hang)
        assert stopped.wait(PATIENCE_SECONDS)
        comes_back.set()
        mine.check()


def test_a_file_that_is_no_lease_is_named(run_folder: RunFolder) -> None:
    run_folder.write(LEASE, {"format": 2})
    with pytest.raises(InputError, match=r"nightly/lease.json: is no lease; remove it when"):
        Lease(run_folder, ignore).__enter__()


@pytest.mark.parametrize(("storage", "rounds"), [("disk", 25), ("s3", 4)], indirect=["storage"])
def test_of_processes_that_race_exactly_one_wins(rounds: int, run_folder: RunFolder, start: Start) -> None:
    racers = [start() for _ in range(3)]
    left_behind = Holder.this_process()._replace(pid_started=1)
    for number in range(rounds):
        # by turns for a free lease and for one that a dead process left
        if number % 2:
            run_folder.write(LEASE, left_behind._asdict())
        for racer in racers:
            racer.write()
        outcomes = [racer.read() for racer in racers]
        assert sorted(outcomes) == ["held", "refused", "refused"]
        winner = racers[outcomes.index("held")]
        assert run_folder.read(LEASE)["pid"] == winner.process.pid
        assert winner.take() == "released"
        assert run_folder.read(LEASE) is None
