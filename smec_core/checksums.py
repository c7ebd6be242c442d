"""Checksums that a folder holds of its own files, and what tells that they are not what was written.

SHA256SUMS is as `sha256sum` writes it: `sha256sum -c SHA256SUMS` checks the folder without this project.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from smec_core.errors import DamagedError

SUMS = "SHA256SUMS"
READ_BYTES = 8 << 20
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)\n")


def sha256_of(file: Path) -> str:
    """Checksum (hex) of a local file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Writes SHA256SUMS of some files of a folder."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))


def read_sums(content: bytes, path: str) -> dict[str, str]:
    """Checksum (hex) of each file that a SHA256SUMS names.

    Args:
        content: of the file.
        path: of the file, for messages.

    Raises:
        DamagedError: it is no such file.
    """
    try:
        text = content.decode()
    except ValueError:
        text = ""
    sums = {name: digest for digest, name in _LINE.findall(text)}
    if not sums or "".join(f"{digest}  {name}\n" for name, digest in sums.items()) != text:
        raise DamagedError(path, "is damaged")
    return sums


def check_content(content: bytes, sums: dict[str, str], path: str) -> None:
    """Compares what was read of a file with the sum under its name.

    Raises:
        DamagedError: it is not what was written.
    """
    if hashlib.sha256(content).hexdigest() != sums.get(path.rpartition("/")[2]):
        raise DamagedError(path, f"is not as it was written: its checksum is not that of {SUMS}")


def check_folder(folder: Path) -> None:
    """Compares all files that a local folder has sums of; a folder without SHA256SUMS has nothing to compare.

    Raises:
        DamagedError: a file is missing, or is not what was written.
    """
    sums_file = folder / SUMS
    if not sums_file.exists():
        return
    for name, digest in read_sums(sums_file.read_bytes(), str(sums_file)).items():
        if not (folder / name).exists():
            raise DamagedError(f"{folder / name}", "is missing")
        if sha256_of(folder / name) != digest:
            raise DamagedError(f"{folder / name}", f"is not as it was written: its checksum is not that of {SUMS}")
