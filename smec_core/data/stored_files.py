"""Files as a manifest lists them, and whether they still are what was written."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from smec_core.checksums import READ_BYTES
from smec_core.data.records import unreadable
from smec_core.data.table_files import stamp_of_file
from smec_core.data.tables import MANIFEST
from smec_core.errors import DamagedError, one_line


class StoredFile(NamedTuple):
    """A file as a manifest lists it.

    Attributes:
        name: its path in the folder.
        rows: of a Parquet file.
        bytes: its size.
        sha256: (hex) of its bytes.
        stamp: what changes whenever it is written anew; empty where the file system has no such thing.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    stamp: str = ""


def describe(filesystem: pafs.FileSystem, path: str, name: str, rows: int = 0) -> StoredFile:
    """Reads a finished file back for its size and checksum."""
    # before it is read: what is written meanwhile changes the stamp
    stamp = stamp_of_file(filesystem, path)
    digest, size = hashlib.sha256(), 0
    with filesystem.open_input_stream(path, compression=None) as source:
        while piece := source.read(READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return StoredFile(name, rows, size, digest.hexdigest(), stamp)


def problem_of(filesystem: pafs.FileSystem, folder: str, file: StoredFile, deep: bool = False) -> str | None:
    """What is wrong with a file that a manifest lists; None where it is what was written.

    Its bytes are read only if size and stamp are not those that it was described with.

    Args:
        filesystem: where it is.
        folder: of the manifest.
        file: as it was described.
        deep: read its bytes in any case.
    """
    path = f"{folder}/{file.name}"
    try:
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            return "is missing"
        if info.size != file.bytes:
            return f"has {info.size:,} bytes instead of {file.bytes:,}"
        if not deep and file.stamp and stamp_of_file(filesystem, path) == file.stamp:
            return None
        if describe(filesystem, path, file.name).sha256 != file.sha256:
            return "is not as it was written: its checksum differs"
    except OSError as error:
        if not isinstance(filesystem, pafs.LocalFileSystem):
            raise
        return unreadable(path, error).problem
    return None


def files_of(manifest: Mapping[str, Any], place: str = MANIFEST) -> list[StoredFile]:
    """The files that a manifest lists; `place` is its own, as it is shown.

    Raises:
        DamagedError: it is none.
    """
    try:
        return [StoredFile(**file) for file in manifest["files"]]
    except (TypeError, KeyError) as error:
        raise DamagedError(place, f"lists no files ({one_line(error)})") from error
