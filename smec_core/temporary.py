"""Temporary folders that do not outlast their process, however it ends: each is locked while it is used.

    TMPDIR/smec~MMMMRRRR    M: this machine since it was started, R: by chance

The lock is on the folder itself (flock), so the kernel lets go of it when its process dies. Whoever finds a folder of
this user that nobody holds removes it.
"""

import atexit
import fcntl
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

PREFIX = "smec~"
"""Begins the names of all of them but of those that lie beside what they become."""
NAME_LENGTH = len(PREFIX) + 8
LEFT_SECONDS = 24 * 3600
"""Age of a folder that is left behind where its lock tells nothing: of another machine, or without locks."""
RENEW_SECONDS = 3600.0
"""How often a process makes its folders young again."""
TRIES = 1000
_NAME = re.compile(r"([0-9a-f]{4})[0-9a-f]{4}(\.\w+)?$")

# what this process holds, and the locks; None while the lock is being taken
_held: dict[Path, int | None] = {}
_base: Path | None = None
# of the parent
os.register_at_fork(after_in_child=_held.clear)


def base_folder() -> Path:
    """The temporary folder of this machine: that of TMPDIR as the process was given it.

    Raises:
        FileNotFoundError: there is none that can be written to.
    """
    return _base or Path(tempfile.gettempdir())


def make_folder(base: Path | None = None, prefix: str = PREFIX, suffix: str = "", mode: int = 0o700) -> Path:
    """Makes a folder and locks it; what is not removed before the process ends is then.

    Args:
        base: where; by default the temporary folder.
        prefix: begins its name.
        suffix: ends its name.
        mode: who may read it; by default this user alone.
    """
    base = (base or Path(tempfile.gettempdir())).absolute()
    for _ in range(TRIES):
        folder = base / f"{prefix}{_mark()}{os.urandom(2).hex()}{suffix}"
        if folder in _held:
            continue
        # before it is made: a signal may come at any time
        _held[folder] = None
        try:
            folder.mkdir(mode)
        except BaseException as error:
            del _held[folder]
            if isinstance(error, FileExistsError):
                continue
            raise
        if _lock_own(folder):
            _keep_young()
            return folder
        # another process has taken it for one that was left behind
        del _held[folder]
    raise FileExistsError(f"{base}: no name for a temporary folder is free")


def remove_folder(folder: Path) -> None:
    """Removes a folder of this process, as far as it can, and lets go of it."""
    shutil.rmtree(folder, ignore_errors=True)
    let_go(folder)


def let_go(folder: Path) -> None:
    """Gives back the lock of a folder of this process, which may have another name now."""
    lock = _held.pop(folder, None)
    if lock is not None:
        with suppress(OSError):
            os.close(lock)


@contextmanager
def temporary_folder(base: Path | None = None, prefix: str = PREFIX, suffix: str = "") -> Iterator[Path]:
    """A folder that is removed when the block ends; see `make_folder`."""
    folder = make_folder(base, prefix, suffix)
    try:
        yield folder
    finally:
        remove_folder(folder)


def keep_own_folder() -> None:
    """Lets all temporary files of this process, those of libraries and child processes too, lie in one such folder.

    Where none can be made, all stays as it is: whoever needs one says so.
    """
    global _base
    if _base is not None:
        return
    with suppress(OSError):
        base = Path(tempfile.gettempdir())
        own = make_folder(base)
        _base, tempfile.tempdir, os.environ["TMPDIR"] = base, str(own), str(own)


@atexit.register
def remove_own_folders() -> None:
    """Removes whatever this process has made and not removed."""
    for folder in list(_held):
        remove_folder(folder)


def left_behind(base: Path, pattern: str = f"{PREFIX}*") -> Iterator[Path]:
    """Folders of dead processes of this user, each locked until the next one is asked for.

    Args:
        base: where to look.
        pattern: of their names.
    """
    for folder in _found(base, pattern):
        lock = _lock_left(folder)
        if lock is not None:
            try:
                yield folder
            finally:
                os.close(lock)


def is_left_behind(folder: Path) -> bool:
    """Whether it is a folder of a dead process of this user."""
    lock = _lock_left(folder)
    if lock is not None:
        os.close(lock)
    return lock is not None


def remove_left_behind(base: Path, pattern: str = f"{PREFIX}*") -> None:
    """Removes the folders of dead processes of this user."""
    for folder in left_behind(base, pattern):
        shutil.rmtree(folder, ignore_errors=True)


def _found(base: Path, pattern: str) -> list[Path]:
    try:
        return list(base.glob(pattern))
    except OSError:
        return []


@cache
def _keep_young() -> None:
    """Lets a thread renew the age of this process's folders, by which others judge where locks tell them nothing."""

    def renew() -> None:
        while True:
            time.sleep(RENEW_SECONDS)
            for folder in list(_held):
                with suppress(OSError):
                    os.utime(folder)

    threading.Thread(target=renew, name="temporary folders", daemon=True).start()


# threads do not come along
os.register_at_fork(after_in_child=_keep_young.cache_clear)


@cache
def _mark() -> str:
    """Tells this machine, since it was started, from others with which it shares a disk, whose locks it cannot see."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        boot = os.uname().nodename.encode()
    return sha256(boot).hexdigest()[:4]


def _lock_own(folder: Path) -> bool:
    """Locks a folder that was just made; not where it is gone."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    _held[folder] = lock
    with suppress(OSError):
        # not on every file system; there it is age that tells
        fcntl.flock(lock, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.stat(folder), os.fstat(lock)):
            return True
    os.close(lock)
    return False


def _lock_left(folder: Path) -> int | None:
    """Locks a folder that nobody uses; None where that is not known."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        state = os.fstat(lock)
        is_old = time.time() - state.st_mtime > LEFT_SECONDS
        found = _NAME.search(folder.name)
        # one of another name was made by somebody else
        if found is not None and state.st_uid == os.geteuid() and folder not in _held:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_left = is_old or found[1] == _mark()
            except BlockingIOError:
                is_left = False
            except OSError:
                is_left = is_old
            if is_left:
                return lock
    except OSError:
        pass
    os.close(lock)
    return None
