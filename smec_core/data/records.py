"""Records: small JSON files that hold their own sha256, so that a changed byte is found and the file is named."""

import hashlib
import json
from typing import Any

import pyarrow.fs as pafs

from smec_core.data.uri import shown_path
from smec_core.errors import DamagedError, one_line

SUM = "sha256"
"""Key of a record's checksum, over all of its other keys."""
UNREADABLE = "fix its rights or its disk, or restore it"


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a file is there."""
    return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def read_bytes(filesystem: pafs.FileSystem, path: str) -> bytes | None:
    """A small file's content; None where there is no such file.

    It is whole also while others replace the file, if none of its contents comes back within the time of a read.

    Raises:
        DamagedError: there is something of that name that cannot be read: no rights, no file, a bad disk.
    """
    try:
        while True:
            with filesystem.open_input_stream(path, compression=None) as source:
                content, version = source.read(), source.metadata()
            # An object store gives size and ETag first and the bytes afterwards: of a file that is replaced in between,
            # these are cut short, or end in whatever lay in memory
            with filesystem.open_input_stream(path, compression=None) as source:
                if source.metadata() == version:
                    return bytes(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        if not isinstance(filesystem, pafs.LocalFileSystem):
            # which may answer the next time
            raise
        raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> DamagedError:
    """What is said of a local file that is there and cannot be read."""
    return DamagedError(path, f"cannot be read ({one_line(error)})", UNREADABLE)


def checksum_of(content: dict[str, Any]) -> str:
    """Sha256 (hex) of JSON-able content, whatever the order of its keys."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def as_record(content: dict[str, Any]) -> bytes:
    """The bytes of a record: JSON that holds its own checksum."""
    return json.dumps({**content, SUM: checksum_of(content)}, indent=1).encode()


def parse_record(content: bytes, path: str, cure: str) -> dict[str, Any]:
    """A record's content without its checksum.

    Records of earlier versions have none; of them only the form is checked.

    Raises:
        DamagedError: it is not what was written.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"is damaged ({one_line(error)})", cure) from error
    if not isinstance(record, dict):
        raise DamagedError(path, "is damaged (no JSON object)", cure)
    found = record.pop(SUM, None)
    if found is not None and found != checksum_of(record):
        raise DamagedError(path, "is not as it was written: its checksum differs", cure)
    return record


def read_record(filesystem: pafs.FileSystem, path: str, cure: str = "restore it from a copy") -> dict[str, Any] | None:
    """The content of a record; None where there is no such file.

    Raises:
        DamagedError: it is not what was written; `cure` says what helps.
    """
    content = read_bytes(filesystem, path)
    return None if content is None else parse_record(content, shown_path(filesystem, path), cure)
