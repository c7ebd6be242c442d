"""Files on any file system: they appear whole and synced, and are replaced only where they are what was seen.

new_file, write_record     a file appears under its name when it is whole, and a power cut does not take it back
copy_file                  so does a copy
swap                       replaces a small file only where it still is what the caller has seen
"""

import ctypes
import fcntl
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.storage import objects
from smec_core.checksums import READ_BYTES
from smec_core.data.records import as_record, read_bytes
from smec_core.data.uri import open_filesystem
from smec_core.folders import make_folder, sync

LOCK = ".lock"
TEMPORARY = ".tmp"


def write_record(filesystem: pafs.FileSystem, path: str, content: dict[str, Any]) -> None:
    """Writes or replaces a record; a reader meets the old or the new one, never half of it."""
    data = as_record(content)
    with new_file(filesystem, path) as sink:
        sink.write(data)


@contextmanager
def new_file(filesystem: pafs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """Opens a file that appears under its name only when it is whole and synced, replacing one that was there.

    A local file is written beside it and renamed; an object store shows an object when its upload is complete, which it
    never is where something fails meanwhile, or a signal comes.
    """
    if not isinstance(filesystem, pafs.LocalFileSystem):
        # in a thread, which no signal interrupts: an upload that is dropped is completed, with what there is of it
        with ThreadPoolExecutor(1) as pool:
            sink = pool.submit(_begin_upload, filesystem, path).result()
        yield sink
        sink.close()
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(sink))
        return
    # unique, because a worker of a killed run may still be writing the same file
    target = f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
    make_folder(Path(path).parent)
    try:
        with filesystem.open_output_stream(target) as sink:
            yield sink
        sync(target)
        os.replace(target, path)
        sync(Path(path).parent)
    except BaseException:
        Path(target).unlink(missing_ok=True)
        raise


def _begin_upload(filesystem: pafs.FileSystem, path: str) -> pa.NativeFile:
    """An upload that only `close` completes, not its end as an object: PyArrow has no way to give one up."""
    sink = filesystem.open_output_stream(path)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(sink))
    return sink


def copy_file(filesystem: pafs.FileSystem, source: str, target: str) -> None:
    """Copies a file within a file system; the copy appears as a new file does. An object store copies by itself."""
    if not isinstance(filesystem, pafs.LocalFileSystem):
        # none copies objects of any size: S3 those up to 5 GiB
        with suppress(OSError):
            filesystem.copy_file(source, target)
            return
    with filesystem.open_input_stream(source, compression=None) as content, new_file(filesystem, target) as sink:
        # not by NativeFile.upload, which keeps errors of the sink to itself
        shutil.copyfileobj(content, sink, READ_BYTES)


def create_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """Makes a folder where there is none; on an object store there need be none."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        make_folder(Path(path))
    else:
        filesystem.create_dir(path)


def remove_file(filesystem: pafs.FileSystem, path: str) -> None:
    """Removes a file, where it is there, so that a power cut does not bring it back."""
    with suppress(FileNotFoundError):
        filesystem.delete_file(path)
        if isinstance(filesystem, pafs.LocalFileSystem):
            sync(Path(path).parent)


def move_file(filesystem: pafs.FileSystem, path: str, to: str) -> None:
    """Gives a file another name in its folder, so that a power cut does not bring the old one back."""
    filesystem.move(path, to)
    if isinstance(filesystem, pafs.LocalFileSystem):
        sync(Path(path).parent)


def remove_folder(filesystem: pafs.FileSystem, path: str, last: str = "") -> None:
    """Removes a folder with all that is in it, where it is there, so that a power cut does not bring it back.

    Args:
        filesystem: where it is.
        path: of it.
        last: the file that goes last: it tells what the folder is where a kill leaves a part of it.
    """
    for name in sizes_of(filesystem, path).keys() - {last} if last else ():
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{name}")
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)
        if isinstance(filesystem, pafs.LocalFileSystem):
            sync(Path(path).parent)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps the processes of a local file system out of each other's way; the kernel lets go of the dead."""
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def swap(uri: str, seen: bytes | None, content: bytes | None) -> bool:
    """Replaces a small file only where it still is what the caller has seen.

    Args:
        uri: path or URI of the file.
        seen: its bytes; None where there was no file.
        content: what it is to hold; None removes it.

    Returns:
        Whether it was replaced; not where another process was faster.
    """
    filesystem, path = open_filesystem(uri)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return objects.swap(uri, path, seen, content)
    if seen is None and content is not None:
        return _create(Path(path), content)
    with alone(Path(path).parent):
        if read_bytes(filesystem, path) != seen:
            return False
        if content is None:
            remove_file(filesystem, path)
        else:
            with new_file(filesystem, path) as sink:
                sink.write(content)
    return True


def _create(path: Path, content: bytes) -> bool:
    """Writes a local file where there is none; of two processes one does."""
    make_folder(path.parent)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        new.write_bytes(content)
        sync(new)
        try:
            os.link(new, path)
        except FileExistsError:
            return False
        except OSError:
            # a file system without hard links
            with alone(path.parent):
                if path.exists():
                    return False
                os.rename(new, path)
        sync(path.parent)
    finally:
        new.unlink(missing_ok=True)
    return True


def sizes_of(filesystem: pafs.FileSystem, folder: str) -> dict[str, int]:
    """Bytes of all files in a folder and below, by their path in it."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return {posixpath.relpath(info.path, folder): info.size for info in infos if info.type == pafs.FileType.File}
