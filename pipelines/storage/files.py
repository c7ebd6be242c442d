"""Small files on any file system, read whole."""

import json
from typing import Any

import pyarrow.fs as pafs


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
