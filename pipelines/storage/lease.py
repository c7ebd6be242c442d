"""The lease on a run's folder: of several trainings of one name, or ingests into one dataset, one at a time.

    STORAGE/NAME/lease.json     who holds it; rewritten every RENEW_SECONDS, removed at the end

A process that is killed leaves its lease behind. On its own machine the next one sees that the process is gone and
takes the lease over at once. From another machine that cannot be seen, nor can clocks be compared, so there a lease
counts as left behind when it is not renewed while one watches for TTL_SECONDS. Its holder stops before that, when it
could not renew it for HOLD_SECONDS.

Every write replaces what its writer has seen and nothing else (`swap`), so the lease is exclusive on file systems with
locks and on object stores alike.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

from pipelines.console import say, telling
from pipelines.storage.files import TEMPORARY, swap
from pipelines.storage.run_folder import RunFolder
from smec_core.data.records import as_record, parse_record, read_bytes
from smec_core.data.uri import join_uri, public_uri
from smec_core.errors import DamagedError, InputError, LeaseError, StoreUnreachable, one_line

TTL_SECONDS = 60.0
HOLD_SECONDS = 45.0
RENEW_SECONDS = 5.0
WATCH_SECONDS = 1.0
LEFTOVER_SECONDS = 3600.0
LEASE = "lease.json"


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

    @property
    def last_sign(self) -> str:
        """When it last renewed the lease."""
        return (datetime.fromisoformat(self.until) - timedelta(seconds=TTL_SECONDS)).isoformat(timespec="seconds")

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
        self._uri = join_uri(run_folder.uri, LEASE)
        self._what, self._doing, self._other = what or f"run {run_folder.name}", doing, other
        self._me = Holder.this_process()
        self._written: bytes | None = None
        self._renewed = 0.0
        self._why_lost = ""
        self._lost, self._released = threading.Event(), threading.Event()
        # apart: a write to a storage that hangs must not keep the holder from seeing that its lease has expired
        self._threads = [
            threading.Thread(target=work, name="lease", daemon=True)
            for work in (self._renew_until_released, self._watch_until_released)
        ]

    @property
    def lost(self) -> bool:
        """See the class."""
        return self._lost.is_set()

    def check(self) -> None:
        """Raises LeaseError when the lease is lost; call it before you write something that must not be wrong."""
        self._look_at_time()
        if self.lost:
            raise LeaseError(
                f"{self._what}: its lease in {public_uri(self._run_folder.uri)} {self._why_lost}; this process stops"
            )

    def __enter__(self) -> Self:
        try:
            self._take()
        except StoreUnreachable:
            raise
        except OSError as error:
            public = public_uri(self._run_folder.uri)
            raise InputError(f"storage: {public} cannot be written to ({one_line(error)})") from error
        for thread in self._threads:
            thread.start()
        self._remove_leftovers()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._released.set()
        # where the storage hangs, its write ends with this process
        self._threads[0].join(RENEW_SECONDS)
        if error is not None:
            # whatever ended the block, the reason is that another process works in this folder
            self.check()
        with suppress(OSError, InputError):
            swap(self._uri, self._written, None)

    def _take(self) -> None:
        """Returns when the lease is ours, and raises LeaseError when it will not be soon."""
        watched: Holder | None = None
        watched_since = 0.0
        while True:
            content, found = self._read()
            runs = None if found is None else _runs(found, self._me)
            is_here = runs is not None
            if found is None:
                is_free = True
            elif is_here:
                is_free = not runs
            else:
                is_free = found == watched and time.monotonic() - watched_since > TTL_SECONDS
            if is_free or found is None:
                if self._write(content):
                    return
                continue
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
                        f"waiting up to {TTL_SECONDS:.0f} s to see whether it is still alive"
                    )
            time.sleep(WATCH_SECONDS)

    def _renew_until_released(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            # the storage may be away; until the lease has expired this tries again
            with suppress(OSError, InputError):
                if not self._write(self._written):
                    content, found = self._read()
                    # an answer that was lost on its way has written it all the same
                    if found is not None and found.token == self._me.token:
                        self._written = content
                        continue
                    self._lose(f"was taken over{f' by {found}' if found else ''}, because")
                    return

    def _watch_until_released(self) -> None:
        while not self._released.wait(WATCH_SECONDS):
            self._look_at_time()
            if self.lost:
                self._on_lost()
                return

    def _look_at_time(self) -> None:
        if time.monotonic() - self._renewed > HOLD_SECONDS:
            self._lose(f"may be taken over: for {HOLD_SECONDS:.0f} s")

    def _lose(self, why: str) -> None:
        if not self.lost:
            self._why_lost = f"{why} this process had not renewed it in time"
            self._lost.set()

    def _read(self) -> tuple[bytes | None, Holder | None]:
        return _read(self._run_folder)

    def _write(self, seen: bytes | None) -> bool:
        started = time.monotonic()
        content = as_record(self._me._replace(until=_time(TTL_SECONDS))._asdict())
        if not swap(self._uri, seen, content):
            return False
        self._written, self._renewed = content, started
        return True

    def _remove_leftovers(self) -> None:
        """Removes what killed processes have left half written in the folder, so long ago that none still writes."""
        folder = self._run_folder.local_path
        if folder is not None:
            for left in folder.glob(f"*{TEMPORARY}"):
                with suppress(OSError):
                    if time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
                        left.unlink()


def holder_of(run_folder: RunFolder) -> Holder | None:
    """Who holds the lease of a folder, for those who only look: also one of another machine that may be gone.

    Raises:
        DamagedError: what is there is no lease.
    """
    _, found = _read(run_folder)
    if found is None:
        return None
    return None if _runs(found, Holder.this_process()) is False else found


def find_silent(seen: Mapping[str, tuple[RunFolder, Holder]], since: float) -> set[str]:
    """Which holders do not renew their leases while one watches all of them for TTL_SECONDS.

    Of one on this machine it is known at once that it is not silent: a dead one is no holder.

    Args:
        seen: by any name, the folder whose lease it is, and the holder as `holder_of` gave it.
        since: when it gave the last of them, by `time.monotonic`.
    """
    me = Holder.this_process()
    watched = {name: one for name, one in seen.items() if _runs(one[1], me) is None}
    names = ", ".join(dict.fromkeys(str(holder) for _, holder in watched.values()))
    with telling(f"waiting up to {TTL_SECONDS:.0f} s to see whether what holds a lease is still alive: {names}"):
        while watched := {name: one for name, one in watched.items() if holder_of(one[0]) == one[1]}:
            if time.monotonic() - since > TTL_SECONDS:
                break
            time.sleep(WATCH_SECONDS)
    return set(watched)


def _read(run_folder: RunFolder) -> tuple[bytes | None, Holder | None]:
    content = read_bytes(run_folder.filesystem, f"{run_folder.path}/{LEASE}")
    if content is None:
        return None, None
    uri = join_uri(run_folder.uri, LEASE)
    try:
        return content, Holder(**parse_record(content, uri, ""))
    except (InputError, TypeError) as error:
        cure = "remove it when nothing trains this run any more"
        raise DamagedError(public_uri(uri), "is no lease", cure) from error


def _time(seconds_from_now: float = 0.0) -> str:
    # fractions, so that no two renewals look the same
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).isoformat(timespec="milliseconds")


def _runs(found: Holder, me: Holder) -> bool | None:
    """Whether a holder runs; None where that cannot be seen from here: on another machine, or hidden by /proc."""
    if not found.is_on_machine_of(me):
        return None
    try:
        return _started(found.pid) == found.pid_started
    except PermissionError:
        return None


def _started(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks from boot; None where it runs no more.

    Raises:
        PermissionError: it is another user's, and /proc does not show those (hidepid).
    """
    try:
        # the name, in parentheses, may hold anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
        return None
    # a zombie is dead; its parent has only not asked yet
    return None if state in "ZX" else int(fields[18])
