"""Files on any file system: written in one step, small ones read whole, and their sizes and checksums."""

import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

READ_BYTES = 8 << 20


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a file is there."""
    return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def read_text(filesystem: pafs.FileSystem, path: str) -> str:
    """A file's text; empty where there is no such file.

    It is whole also while others replace the file, if none of its contents comes back within the time of a read.
    """
    if not exists(filesystem, path):
        return ""
    try:
        while True:
            with filesystem.open_input_stream(path, compression=None) as source:
                content, version = source.read(), source.metadata()
            # An object store gives size and ETag first and the bytes afterwards: of a file that is replaced in between,
            # these are cut short, or end in whatever lay in memory
            with filesystem.open_input_stream(path, compression=None) as source:
                if source.metadata() == version:
                    return str(content.decode())
    except FileNotFoundError:
        # removed meanwhile
        return ""


def read_json(filesystem: pafs.FileSystem, path: str) -> Any:
    """A file's content; None where there is no such file."""
    text = read_text(filesystem, path)
    return json.loads(text) if text else None


def write_json(filesystem: pafs.FileSystem, path: str, content: Any) -> None:
    """Writes or replaces a small file; a reader meets the old or the new one, never half of it."""
    with new_file(filesystem, path) as sink:
        sink.write(json.dumps(content, indent=1).encode())


@contextmanager
def new_file(filesystem: pafs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """Opens a file that appears under its name only when it is whole, replacing one that was there.

    A local file is written beside it and renamed; an object store shows an object when its upload is complete.
    """
    local = isinstance(filesystem, pafs.LocalFileSystem)
    # unique, because a worker of a killed run may still be writing the same file
    target = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if local else path
    if local:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        with filesystem.open_output_stream(target) as sink:
            yield sink
        if local:
            os.replace(target, path)
    except BaseException:
        if local:
            Path(target).unlink(missing_ok=True)
        raise


def sha256_of(file: Path) -> str:
    """Checksum (hex) of a local file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sizes_of(filesystem: pafs.FileSystem, folder: str) -> dict[str, int]:
    """Bytes of all files in a folder and below, by their path in it."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return {posixpath.relpath(info.path, folder): info.size for info in infos if info.type == pafs.FileType.File}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
