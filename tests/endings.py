"""Commands of smec in processes of their own that get signals, and what they leave behind: processes, folders."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.kills import PATIENCE_SECONDS, REPOSITORY, take_interrupts

_PR_SET_CHILD_SUBREAPER = 36


class Ended(NamedTuple):
    """How a command has ended: its exit code, what it said on both streams, and what is left of it."""

    code: int
    said: str
    printed: str
    processes: list[str]
    temporary: list[str]

    @property
    def last_lines(self) -> list[str]:
        """What it said of its end."""
        return [line for line in self.said.splitlines() if line.startswith("smec: ")]

    def check(self, name: str) -> None:
        """It ended by a signal as it should."""
        code = 128 + signal.Signals[name]
        assert self.code == code, (self.code, self.said)
        [line] = self.last_lines
        assert line.startswith(f"smec: ended by {name}; "), line
        for word in ("Traceback", "***", "Exception ignored", "Aborted"):
            assert word not in self.said, self.said
        self.check_left()

    def check_left(self) -> None:
        """It has left nothing behind."""
        assert (self.processes, self.temporary) == ([], [])


class Command:
    """A command that runs, with a temporary folder of its own; whatever it starts becomes a child of the tests."""

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        temporary: Path,
        environment: Mapping[str, str] | None = None,
        own_group: bool = False,
        starts_as: Callable[[], None] = take_interrupts,
    ) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.temporary = temporary
        self._before = {process.pid for process in psutil.Process().children(recursive=True)}
        self._said, self._printed = folder / "said", folder / "printed"
        with self._said.open("w") as said, self._printed.open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smec_core", *words],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)} | dict(environment or {}),
                stdout=printed,
                stderr=said,
                preexec_fn=starts_as,
                start_new_session=own_group,
            )

    def wait_until(self, is_there: Callable[[], bool]) -> bool:
        """Waits for something; whether it came before the command ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if is_there():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        raise AssertionError(f"not in {PATIENCE_SECONDS} s; it has said: {self.said}")

    def takes_signals(self) -> bool:
        """Whether it has come so far that signals are its own to handle."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        return bool(blocked >> (signal.SIGTERM - 1) & 1)

    @property
    def said(self) -> str:
        return self._said.read_text()

    def send(self, name: str) -> None:
        """Sends a signal; not where it has ended."""
        self.process.send_signal(signal.Signals[name])

    def send_group(self, name: str) -> None:
        """Sends a signal to all of its group, as a terminal does."""
        os.killpg(self.process.pid, signal.Signals[name])

    def end(self) -> Ended:
        """Waits for its end, and ends what is left of it."""
        code = self.process.wait(PATIENCE_SECONDS)
        left = self.left()
        titles = [title for _, title in left]
        for process, _ in left:
            process.kill()
        found = [str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*")]
        return Ended(code, self.said, self._printed.read_text(), titles, found)

    def left(self) -> list[tuple[psutil.Process, str]]:
        """Its processes, whoever is their parent now."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if process.pid in self._before:
                    continue
                if process.status() == psutil.STATUS_ZOMBIE:
                    if process.pid != self.process.pid and process.ppid() == os.getpid():
                        os.waitpid(process.pid, os.WNOHANG)
                    continue
                found.append((process, " ".join(process.cmdline())))
            except (psutil.Error, ChildProcessError):
                continue
        return found


@contextmanager
def started(
    words: Sequence[str],
    folder: Path,
    temporary: Path,
    environment: Mapping[str, str] | None = None,
    own_group: bool = False,
    starts_as: Callable[[], None] = take_interrupts,
) -> Iterator[Command]:
    """A command that is ended in any case."""
    command = Command(words, folder, temporary, environment, own_group, starts_as)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
        for process, _ in command.left():
            process.kill()
