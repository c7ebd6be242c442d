"""A file system that notes how many bytes of which file are read, in whatever process."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from smec_core.data import uri as data_uri
from smec_core.data.object_store import ToldErrors

NOTES = "reads"


class _Noted:
    """An open file of which every read is noted."""

    def __init__(self, file: pa.NativeFile, path: str, notes: str) -> None:
        self._file, self._path, self._notes = file, path, notes
        self.closed = False

    def read(self, size: int | None = None) -> bytes:
        found: bytes = self._file.read(None if size is None or size < 0 else size)
        # one write of one line: processes do not mix theirs
        descriptor = os.open(self._notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{len(found)} {os.environ.get('RAY_RAYLET_PID', '-')} {self._path}\n".encode())
        os.close(descriptor)
        return found

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def size(self) -> int:
        return int(self._file.size())

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        pass


class NotedReads(ToldErrors):
    """Passes calls on to the local file system."""

    def __init__(self, notes: str) -> None:
        super().__init__(pafs.LocalFileSystem())
        self._notes = notes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NotedReads) and self._notes == other._notes

    def get_type_name(self) -> str:
        return "counted"

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Noted(super().open_input_file(path), path, self._notes), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Noted(super().open_input_file(path), path, self._notes), mode="r")


class Read(NamedTuple):
    """Bytes of a file that were read, and the process id of the raylet whose worker did so; empty elsewhere."""

    size: int
    raylet: str
    path: str


def noted_reads(folder: Path) -> list[Read]:
    """What has been noted in a folder."""
    notes = folder / NOTES
    found = [line.split(maxsplit=2) for line in notes.read_text().splitlines()] if notes.exists() else []
    return [Read(int(size), raylet.strip("-"), path) for size, raylet, path in found]


class Counter:
    """Makes `counted://` URIs of local paths, and says what of them was read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._notes = folder / NOTES

        def from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
            if not uri.startswith("counted://"):
                found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(uri)
                return found
            return pafs.PyFileSystem(NotedReads(str(self._notes))), uri.removeprefix("counted://")

        names: dict[str, Any] = {name: getattr(pafs, name) for name in dir(pafs) if not name.startswith("__")}
        shim = SimpleNamespace(**names | {"FileSystem": SimpleNamespace(from_uri=from_uri)})
        monkeypatch.setattr(data_uri, "pafs", shim)

    def reset(self) -> None:
        """Begins to count anew."""
        self._notes.unlink(missing_ok=True)

    def passes(self, folder: Path) -> float:
        """How often the bytes of a folder of files have been read."""
        read = sum(read.size for read in noted_reads(self._notes.parent) if read.path.startswith(f"{folder}/"))
        return read / sum(path.stat().st_size for path in folder.rglob("*.parquet"))
