"""Small files on any file system, read whole."""

import json
from typing import Any

import pyarrow.fs as pafs


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a file is there."""
    return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def read_text(filesystem: pafs.FileSystem, path: str) -> str:
    """A file's text; empty where there is no such file."""
    if not exists(filesystem, path):
        return ""
    try:
        with filesystem.open_input_stream(path, compression=None) as source:
            return str(source.read().decode())
    except FileNotFoundError:
        # removed meanwhile
        return ""


def read_json(filesystem: pafs.FileSystem, path: str) -> Any:
    """A file's content; None where there is no such file."""
    text = read_text(filesystem, path)
    return json.loads(text) if text else None
