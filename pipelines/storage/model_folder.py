"""Folders that are replaced as a whole: the new one is written beside the old and then takes its name, in one step."""

import ctypes
import errno
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from pipelines.storage.files import make_folder, sync
from smec_core.checksums import SUMS
from smec_core.data.uri import HALF_A_URI
from smec_core.errors import InputError
from smec_core.temporary import remove_left_behind, temporary_folder

MODEL_FILES = {
    "adapter.safetensors",
    "seen.safetensors",
    "config.json",
    "metrics.json",
    "history.jsonl",
    "README.md",
    SUMS,
}
NEW = ".new"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_local_path(value: str) -> str:
    """A path as it is.

    Raises:
        ValueError: it is a URI.
    """
    if "://" in value or HALF_A_URI.match(value):
        raise ValueError("must be a path, not a URI")
    return value


LocalPath = Annotated[str, AfterValidator(check_local_path)]
"""A file or folder on the machine where the job is started."""


def check_replaceable(folder: Path) -> None:
    """Refuses a path where no model can be put: it holds anything else, all of which would be replaced, or is closed.

    Raises:
        InputError: it is a file, a folder with other things in it, a mount point or where we are, or nothing can be
            written beside it.
    """
    try:
        folder = folder.resolve()
    except RuntimeError as error:
        raise InputError(f"out: {folder} is a link to itself; name another") from error
    if Path.cwd().is_relative_to(folder):
        raise InputError(f"out: {folder} holds the working directory; name another")
    if os.path.ismount(folder):
        raise InputError(f"out: {folder} is a mount point, which nothing can replace; name a folder in it")
    # pathlib's own tests raise where a folder may not be looked into
    beside = next(place for place in folder.parents if os.path.exists(place))
    if not beside.is_dir() or not os.access(beside, os.W_OK | os.X_OK):
        why = "may not be written to" if beside.is_dir() else "is a file"
        raise InputError(f"out: {folder} cannot be made, {beside} {why}; name another")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"out: {folder} is a file; nothing of it is overwritten, name a folder")
    if others := {path.name for path in folder.iterdir()} - MODEL_FILES:
        raise InputError(
            f"out: {folder} is not a model folder, it holds {min(others)}; nothing of it is overwritten, name another"
        )


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder beside `folder`, then puts it in its place; a reader meets the old or the new one, whole.

    Args:
        folder: where it goes, also through a link; what was there is removed.
        write: fills the new folder.
    """
    folder = folder.resolve()
    make_folder(folder.parent)
    remove_left_behind(folder.parent, f".{glob.escape(folder.name)}.*{NEW}")
    with temporary_folder(folder.parent, f".{folder.name}.", NEW) as new:
        # only its owner can read it
        new.chmod(0o755)
        write(new)
        sync_tree(new)
        put_in_place(new, folder)


def put_in_place(new: Path, place: Path) -> None:
    """Renames a synced file or folder to `place` in one step; a folder that was there is called `new` afterwards."""
    if place.is_dir():
        _exchange(new, place)
    else:
        os.rename(new, place)
    sync(place.parent)


def sync_tree(folder: Path) -> None:
    """Waits until all files of a folder, and their names, would outlast a power cut."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _exchange(one: Path, other: Path) -> None:
    """Lets two folders change their names in one step; where a file system cannot, in three."""
    error = _renameat2(one, other)
    if error in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        # another ending: it is never taken for a leftover
        aside = one.with_name(f"{one.name}.old")
        os.rename(other, aside)
        try:
            os.rename(one, other)
        except OSError:
            os.rename(aside, other)
            raise
        os.rename(aside, one)
    elif error:
        raise OSError(error, os.strerror(error), str(other))


def _renameat2(one: Path, other: Path) -> int:
    """Error number of Linux's exchange of two names, which Python does not offer; 0 where it is done."""
    library = ctypes.CDLL(None, use_errno=True)
    try:
        failed = library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    except AttributeError:
        return errno.ENOSYS
    return ctypes.get_errno() if failed else 0
