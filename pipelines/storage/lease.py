"""The lease on a run's folder: of several trainings of one name, or ingests into one dataset, one at a time.

    STORAGE/NAME/lease.json     who holds it; rewritten every RENEW_SECONDS, removed at the end
    STORAGE/NAME/lease.lock     on local file systems: held for the instant in which lease.json is read and written

A process that is killed leaves its lease behind. On its own machine the next one sees that the process is gone and
takes the lease over at once. From another machine that cannot be seen, nor can clocks be compared, so there a lease
counts as left behind when it is not renewed while one watches for TTL_SECONDS.

On local file systems (and those mounted with locks, as NFS 4 is) the lease is exclusive. PyArrow offers no conditional
write to object stores: there a process writes the lease, waits until whoever saw it free at the same time has written
too, and has it if its own is the one that stayed. What slips through is found at the next renewal, by `lost`.
"""

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

from pipelines.console import say
from pipelines.storage.run_folder import RunFolder
from smec_core.data.uri import join_uri, public_uri
from smec_core.errors import InputError, LeaseError, StoreUnreachable, one_line

TTL_SECONDS = 30.0
RENEW_SECONDS = 5.0
WATCH_SECONDS = 1.0
SETTLE_SECONDS = 1.0
LEASE = "lease.json"
LOCK = "lease.lock"


class Holder(NamedTuple):
    """Who holds a lease: a process, and since when. Times are ISO 8601, by the holder's clock."""

    token: str
    host: str
    boot_id: str
    pid_namespace: str
    """Containers can share a host's name and boot, and still not see each other's processes."""
    pid: int
    pid_started: int | None
    """Clock ticks from boot to the start of the process: tells it from a later one with the same number."""
    since: str
    until: str
    """The lease is renewed before this time, for those who read it; nothing is decided by it."""

    @classmethod
    def this_process(cls) -> "Holder":
        """A new lease of this process."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid_namespace=os.readlink("/proc/self/ns/pid"),
            pid=os.getpid(),
            pid_started=_started(os.getpid()),
            since=_time(),
            until=_time(TTL_SECONDS),
        )

    def is_on_machine_of(self, other: "Holder") -> bool:
        """Whether the two see the same processes."""
        return (self.host, self.boot_id, self.pid_namespace) == (other.host, other.boot_id, other.pid_namespace)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to train a run, or to write a dataset, held while a `with` block lasts.

    Attributes:
        lost: whether another process took it over. The block must then end without writing anything more.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        on_lost: Callable[[], object],
        what: str | None = None,
        doing: str = "trained",
        other: str = "--name",
    ) -> None:
        """Prepares the lease; entering takes it.

        Args:
            run_folder: the run, its folder made.
            on_lost: called once, from another thread, when the lease is found lost.
            what: what is held, in messages; by default the run.
            doing: what its holder does with it, in messages.
            other: what the user can choose another of, in messages.
        """
        self._run_folder, self._on_lost = run_folder, on_lost
        self._what, self._doing, self._other = what or f"run {run_folder.name}", doing, other
        self._me = Holder.this_process()
        self._taken_by: Holder | None = None
        self._lost, self._released = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        """See the class."""
        return self._lost.is_set()

    def check(self) -> None:
        """Raises LeaseError when the lease is lost; call it before you write something that must not be wrong."""
        if self.lost:
            by = f" by {self._taken_by}" if self._taken_by else ""
            raise LeaseError(
                f"{self._what}: its lease in {public_uri(self._run_folder.uri)} was taken over{by}, "
                "because this process had not renewed it in time; this process stops, the other one goes on"
            )

    def __enter__(self) -> Self:
        try:
            self._take()
        except StoreUnreachable:
            raise
        except OSError as error:
            public = public_uri(self._run_folder.uri)
            raise InputError(f"storage: {public} cannot be written to ({one_line(error)})") from error
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._released.set()
        self._thread.join()
        if error is not None:
            # whatever ended the block, the reason is that another process works in this folder
            self.check()
        with suppress(OSError), self._alone():
            if self._is_mine(self._read()):
                self._run_folder.filesystem.delete_file(f"{self._run_folder.path}/{LEASE}")

    def _take(self) -> None:
        """Returns when the lease is ours, and raises LeaseError when it will not be soon."""
        watched: Holder | None = None
        watched_since = 0.0
        while True:
            with self._alone():
                found = self._read()
                is_here = found is not None and found.is_on_machine_of(self._me)
                if found is None:
                    is_free = True
                elif is_here:
                    is_free = _started(found.pid) != found.pid_started
                else:
                    is_free = found == watched and time.monotonic() - watched_since > TTL_SECONDS
                if is_free:
                    self._write()
            if found is None or is_free:
                if self._run_folder.local_path is None:
                    time.sleep(SETTLE_SECONDS)
                    if not self._is_mine(self._read()):
                        continue
                return
            if watched is not None and (is_here or found != watched):
                stop = f"(kill {found.pid})" if is_here else f"there (its lease is renewed until {found.until})"
                raise LeaseError(
                    f"{self._what} is being {self._doing} by {found} since {found.since}; "
                    f"wait for it, stop it {stop}, or choose another {self._other}"
                )
            if watched is None:
                # one that is here, too, is looked at twice: a process that was just killed takes a moment to be gone
                watched, watched_since = found, time.monotonic()
                if not is_here:
                    say(
                        f"{self._what} is held by {found}; "
                        f"watching for up to {TTL_SECONDS:.0f} s whether that one is still alive"
                    )
            time.sleep(WATCH_SECONDS)

    def _is_mine(self, found: Holder | None) -> bool:
        return found is not None and found.token == self._me.token

    def _renew_until_released(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            try:
                with self._alone():
                    found = self._read()
                    if self._is_mine(found):
                        self._write()
                        continue
            except (OSError, InputError):
                # The storage is away. When it is back, this sees who holds the lease.
                continue
            self._taken_by = found
            self._lost.set()
            self._on_lost()
            return

    def _read(self) -> Holder | None:
        try:
            content: dict[str, Any] | None = self._run_folder.read_json(LEASE)
            return None if content is None else Holder(**content)
        except (ValueError, TypeError) as error:
            file = public_uri(join_uri(self._run_folder.uri, LEASE))
            raise InputError(f"{file}: is no lease; remove it when nothing trains this run any more") from error

    def _write(self) -> None:
        self._run_folder.write_json(LEASE, self._me._replace(until=_time(TTL_SECONDS))._asdict())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps the processes of a local file system out of each other's way; the kernel lets go of the dead."""
        folder = self._run_folder.local_path
        if folder is None:
            yield
            return
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _time(seconds_from_now: float = 0.0) -> str:
    # fractions, so that no two renewals look the same
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).isoformat(timespec="milliseconds")


def _started(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks from boot; None where it runs no more."""
    try:
        # the name, in parentheses, may hold anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # a zombie is dead; its parent has only not asked yet
    return None if state in "ZX" else int(fields[18])
