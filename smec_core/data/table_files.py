"""Files of tables, of any kind: opened, and told from what they were before."""

import hashlib
import json
import os
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from smec_core.data.hub import HubFiles
from smec_core.data.lance_files import Fragment, is_fragment
from smec_core.data.parquet_files import ParquetRows

TableFile = ParquetRows | Fragment


def open_rows(filesystem: pafs.FileSystem, path: str) -> TableFile:
    """Opens a file of a table.

    Raises:
        InputError: it is not what it should be.
        SmecError: it cannot be read now.
    """
    return Fragment(filesystem, path) if is_fragment(path) else ParquetRows(filesystem, path)


def stored_files(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """The files that a file of a table consists of: itself, or those of a fragment."""
    return Fragment(filesystem, path).files if is_fragment(path) else [path]


def stamp_of_file(filesystem: pafs.FileSystem, path: str) -> str:
    """What changes whenever a file is written anew, without reading it: inode and time of change, ETag, or git's hash.

    Unlike the time of modification, no program sets these; they change with a file's owner, permissions and hard links,
    too. Empty where the file system has no such thing.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        found = os.stat(path)
        return f"{found.st_ino}-{found.st_ctime_ns}"
    if isinstance(filesystem, pafs.PyFileSystem) and isinstance(filesystem.handler, HubFiles):
        return filesystem.handler.stamp_of_file(path)
    with filesystem.open_input_stream(path, compression=None) as source:
        told = {key.lower(): value for key, value in (source.metadata() or {}).items()}
    return bytes(told.get("etag", b"")).decode()


class FileState(NamedTuple):
    """A file as it is now; a number as its stamp is its time of modification, where the file system has no stamps."""

    name: str
    bytes: int
    stamp: str | int


def states_of(filesystem: pafs.FileSystem, paths: Sequence[str]) -> list[FileState]:
    """The states of some files of tables; no rows are read."""
    with ThreadPoolExecutor(8) as pool:
        names = [path for path in paths if is_fragment(path)]
        fragments = dict(zip(names, pool.map(partial(Fragment, filesystem), names), strict=True))
        stored = [file for path in paths for file in (fragments[path].files if path in fragments else [path])]
        infos = filesystem.get_file_info(stored)
        stamps = list(pool.map(partial(stamp_of_file, filesystem), stored))
    found = iter(
        [
            FileState(info.base_name, info.size, stamp or info.mtime_ns)
            for info, stamp in zip(infos, stamps, strict=True)
        ]
    )
    states = []
    for path in paths:
        if path not in fragments:
            states.append(next(found))
            continue
        own = list(islice(found, len(fragments[path].files)))
        told = stamp_of([*own, fragments[path].described])
        states.append(FileState(posixpath.basename(path), sum(state.bytes for state in own), told))
    return states


def stamp_of(states: Sequence[Any]) -> str:
    """Hash (hex) that changes when one of some files does."""
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()
