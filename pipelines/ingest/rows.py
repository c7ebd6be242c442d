"""What the readers of text share: a folder, a position in its files, and one text."""

from typing import NamedTuple

import pyarrow.fs as pafs

from smec_core.errors import InputError


class Place(NamedTuple):
    """A folder on a file system."""

    filesystem: pafs.FileSystem
    path: str

    def join(self, name: str) -> str:
        """Path of something in the folder."""
        return f"{self.path}/{name}"


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
