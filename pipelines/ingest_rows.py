"""What the readers of text share: a folder, a position in its files, and one text."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.errors import InputError

QRELS_SCHEMA = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.int32())])
MAX_SCORE = 2**31 - 1


class Place(NamedTuple):
    """A folder on a file system."""

    filesystem: pafs.FileSystem
    path: str

    def join(self, name: str) -> str:
        """Path of something in the folder."""
        return f"{self.path}/{name}"

    def has_file(self, name: str) -> bool:
        """Whether a file is there."""
        return bool(self.filesystem.get_file_info(self.join(name)).type == pafs.FileType.File)

    def parquet_files(self, folder: str) -> list[str]:
        """Paths of the Parquet files in a folder of this one, sorted; none where there is no such folder."""
        # asked first: a selector refuses what is no folder
        if self.filesystem.get_file_info(self.join(folder)).type != pafs.FileType.Directory:
            return []
        infos = self.filesystem.get_file_info(pafs.FileSelector(self.join(folder)))
        files = [info for info in infos if info.type == pafs.FileType.File and info.extension == "parquet"]
        return sorted(info.path for info in files if not info.base_name.startswith((".", "_")))


class Position(NamedTuple):
    """Where a text lies: number of the file, where to begin reading in it (a byte or a row), rows before it."""

    file: int = 0
    offset: int = 0
    before: int = 0


START = Position()


class Text(NamedTuple):
    """One document or query: `text` is what is encoded, with the title first."""

    position: Position
    id: str
    text: str

    @classmethod
    def checked(cls, position: Position, where: str, key: str, title: str | None, text: str) -> "Text":
        """Joins title and text.

        Raises:
            InputError: id or text cannot be stored.
        """
        joined = f"{title or ''} {text}".strip()
        try:
            key.encode()
            joined.encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: holds half of a surrogate pair, which is no text; mend or remove it") from None
        return cls(position, key, joined)
