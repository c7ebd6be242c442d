"""What lies in a folder of any file system: sorted, without hidden names, and with errors that name the folder."""

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs as pafs

from smec_core.data.uri import shown_path
from smec_core.errors import InputError, SmecError, one_line


@contextmanager
def asking(filesystem: pafs.FileSystem, path: str) -> Iterator[None]:
    """Turns what a local file system raises into an InputError, as object stores do by themselves."""
    try:
        yield
    except SmecError:
        raise
    except OSError as error:
        raise InputError(f"{shown_path(filesystem, path)}: cannot be read ({one_line(error)})") from error


def entries(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """What lies in a folder, sorted, but for hidden names; nothing where there is no such folder.

    Raises:
        InputError: the folder cannot be listed, or has a broken link.
    """
    return not_hidden(listed(filesystem, folder))


def not_hidden(infos: list[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """Those that do not have a hidden name."""
    return [info for info in infos if not is_hidden(info.base_name)]


def listed(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """What lies in a folder, sorted, also under hidden names; nothing where there is no such folder.

    Raises:
        InputError: the folder cannot be listed, or has a broken link.
    """
    with asking(filesystem, folder):
        infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        if isinstance(filesystem, pafs.LocalFileSystem) and os.path.isdir(folder):
            # pyarrow skips broken links
            for path in sorted(posixpath.join(folder, name) for name in os.listdir(folder) if not is_hidden(name)):
                if os.path.islink(path) and not os.path.exists(path):
                    raise InputError(f"{path}: is a broken link; fix or remove it")
    return sorted(infos, key=lambda info: str(info.path))


def files_below(filesystem: pafs.FileSystem, folder: str) -> Iterator[pafs.FileInfo]:
    """Files of a folder, and then those of its subfolders."""
    infos = entries(filesystem, folder)
    yield from (info for info in infos if info.type == pafs.FileType.File)
    for info in infos:
        if info.type == pafs.FileType.Directory:
            yield from files_below(filesystem, info.path)


def is_hidden(name: str) -> bool:
    """Whether readers pass over a name, as Spark and Hive do."""
    # the last is on every ext4 volume
    return name.startswith((".", "_")) or name == "lost+found"
