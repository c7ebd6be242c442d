"""Wraps object stores so that every failed call names the object and says whether another try may help."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.errors import StoreError, StoreUnreachable, one_line

# what AWS, Google and Azure clients say where the cause may pass
PASSING = re.compile(
    r"NETWORK_CONNECTION|INTERNAL|UNAVAILABLE|SLOW_DOWN|THROTTL|TIME_?OUT|curlCode|HTTP status 5\d\d", re.IGNORECASE
)


@contextmanager
def _told(path: str, doing: str) -> Iterator[None]:
    """Turns what an object store raises into errors that name the object; a missing file stays a FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, StoreError, StoreUnreachable):
        raise
    except (OSError, pa.ArrowException) as error:
        reason = one_line(error)
        # names of objects, which may hold any word, stand in quotes
        if PASSING.search(re.sub(r"'[^']*'", "", reason)):
            raise StoreUnreachable(f"{path}: cannot be {doing} now ({reason}); run again") from error
        raise StoreError(f"{path}: cannot be {doing} ({reason}); check the address and what its role may do") from error


class ToldErrors(pafs.FileSystemHandler):
    """Passes every call on to a file system of pyarrow; bytes are read and written without passing through here."""

    def __init__(self, filesystem: pafs.FileSystem, path: str = "", shown: str = "") -> None:
        """Wraps one.

        Args:
            filesystem: of pyarrow.
            path: on it.
            shown: the URI of that path, as it may be shown.
        """
        self.filesystem = filesystem
        self._bucket = path.partition("/")[0]
        rest = path.removeprefix(self._bucket).rstrip("/")
        self._shown_bucket = shown.rstrip("/").removesuffix(rest) or self._bucket

    def shown(self, path: str) -> str:
        """The URI of a path on it: `s3://bucket/folder` for `bucket/folder`."""
        bucket, slash, rest = path.partition("/")
        return f"{self._shown_bucket}{slash}{rest}" if bucket == self._bucket else path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToldErrors) and bool(self.filesystem == other.filesystem)

    def get_type_name(self) -> str:
        """As pyarrow calls the store: s3, gcs, abfs."""
        return str(self.filesystem.type_name)

    def normalize_path(self, path: str) -> str:
        """The path as the store has it."""
        with _told(self.shown(path), "read"):
            return str(self.filesystem.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """What is known of some objects."""
        with _told(", ".join(map(self.shown, paths)), "read"):
            found: list[pafs.FileInfo] = self.filesystem.get_file_info(paths)
            return found

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """What lies in a folder."""
        with _told(self.shown(selector.base_dir), "listed"):
            found: list[pafs.FileInfo] = self.filesystem.get_file_info(selector)
            return found

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """An object to be read from its start."""
        with _told(self.shown(path), "read"):
            return self.filesystem.open_input_stream(path, compression=None)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """An object to be read anywhere."""
        with _told(self.shown(path), "read"):
            return self.filesystem.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """A new object."""
        with _told(self.shown(path), "written"):
            return self.filesystem.open_output_stream(path, compression=None, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """An object to be added to, where the store can do so."""
        with _told(self.shown(path), "written"):
            return self.filesystem.open_append_stream(path, compression=None, metadata=metadata)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Makes a folder."""
        self._write(path, self.filesystem.create_dir, path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        """Removes a folder with all that is in it."""
        self._write(path, self.filesystem.delete_dir, path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Removes all that is in a folder."""
        self._write(path, self.filesystem.delete_dir_contents, path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        """Removes all that there is."""
        self._write("/", self.filesystem.delete_dir_contents, "/", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        """Removes an object."""
        self._write(path, self.filesystem.delete_file, path)

    def move(self, source: str, target: str) -> None:
        """Gives an object another name."""
        self._write(target, self.filesystem.move, source, target)

    def copy_file(self, source: str, target: str) -> None:
        """Copies an object within the store."""
        self._write(target, self.filesystem.copy_file, source, target)

    def _write(self, path: str, action: Callable[..., object], *arguments: Any, **options: Any) -> None:
        with _told(self.shown(path), "written"):
            action(*arguments, **options)
