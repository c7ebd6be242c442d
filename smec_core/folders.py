"""Local folders that are replaced as a whole: the new one is written beside the old, then takes its name at once."""

import ctypes
import errno
import glob
import os
import shutil
import stat
from collections.abc import Callable, Set
from pathlib import Path

from smec_core.temporary import remove_left_behind, temporary_folder

NEW = ".new"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def sync(path: str | Path) -> None:
    """Waits until a local file's bytes, or a folder's names, would outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some mounts cannot sync folders, and do so by themselves
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a local folder, and those above it, synced."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


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


def replace_files(folder: Path, names: Set[str], write: Callable[[Path], object]) -> None:
    """Replaces files of a folder by others, all at once, and leaves what else is in it.

    A folder that cannot be replaced itself (where nothing can be written beside it, a mount point, one with the working
    directory in it) gets its files one after the other.

    Args:
        folder: where they go; it is made where there is none.
        names: files that are replaced, or removed.
        write: writes those that are there afterwards into an empty folder.
    """
    folder = folder.resolve()

    def fill(new: Path) -> None:
        write(new)
        if folder.exists():
            new.chmod(stat.S_IMODE(folder.stat().st_mode))
            for other in folder.iterdir():
                if other.name not in names:
                    _link(other, new / other.name)

    make_folder(folder.parent)
    is_fixed = os.path.ismount(folder) or Path.cwd().is_relative_to(folder)
    if not is_fixed and os.access(folder.parent, os.W_OK | os.X_OK):
        replace_folder(folder, fill)
        return
    with temporary_folder(folder, f".{folder.name}.", NEW) as new:
        write(new)
        sync_tree(new)
        for gone in names - {path.name for path in new.iterdir()}:
            (folder / gone).unlink(missing_ok=True)
        for path in sorted(new.iterdir()):
            os.replace(path, folder / path.name)
        sync(folder)


def _link(path: Path, to: Path) -> None:
    """Gives a file, or all in a folder, a second name."""
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, to, symlinks=True, copy_function=_link_file)
    else:
        _link_file(path, to)


def _link_file(path: str | Path, to: str | Path) -> None:
    try:
        os.link(path, to, follow_symlinks=False)
    except OSError:
        # a file system without hard links, or a file of somebody else's
        shutil.copy2(path, to, follow_symlinks=False)


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
        # links are a part of their folder
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
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
