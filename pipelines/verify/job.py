"""`smec verify`: compares everything that is stored below a folder with its checksums, byte by byte."""

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs

from pipelines.console import say, warn
from pipelines.storage.files import SUM, parse_record, read_bytes
from pipelines.storage.manifest import DONE, describe
from pipelines.storage.publish import CURRENT, current
from pipelines.storage.run_folder import FINISHED, MODEL
from pipelines.verify.settings import VerifySettings
from smec_core.checksums import SUMS, read_sums
from smec_core.data.uri import join_uri, open_filesystem, public_uri
from smec_core.errors import DamagedError, InputError, one_line

RESTORE = "restore it from a copy, or make it again"


def run(settings: VerifySettings) -> dict[str, Any]:
    """Reads all files that have checksums.

    Returns:
        files: how many were compared.

    Raises:
        DamagedError: a file is not what was written; each is reported first.
        InputError: nothing there has checksums.
    """
    filesystem, root = open_filesystem(settings.path.rstrip("/"))
    infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    compared: set[str] = set()
    damaged: list[InputError] = []
    for path in sorted(info.path for info in infos if info.type == pafs.FileType.File):
        try:
            for other, digest in _told_by(filesystem, path):
                compared.add(other)
                if digest and (differs := _problem(filesystem, other, digest)):
                    damaged.append(DamagedError(other, f"{differs} in {posixpath.basename(path)}", RESTORE))
            if posixpath.basename(path) == CURRENT:
                compared.add(path)
                folder = posixpath.relpath(posixpath.dirname(path), root)
                current(settings.path if folder == "." else join_uri(settings.path, folder))
        except InputError as error:
            damaged.append(error)
        except (KeyError, TypeError) as error:
            damaged.append(DamagedError(path, f"is no record of smec ({one_line(error)})", "move it elsewhere"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)}); run again") from error
    for problem in damaged:
        warn(str(problem))
    public = public_uri(settings.path)
    if damaged:
        raise DamagedError(public, f"{len(damaged)} problems in {len(compared)} files, listed above", RESTORE)
    if not compared:
        raise InputError(f"{public}: nothing there has checksums; give a folder that smec has written")
    say(f"{public}: {len(compared)} files are as they were written")
    return {"files": len(compared)}


def _told_by(filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[str, str]]:
    """Files of which a file holds the checksums, and these; a record's own was compared then."""
    folder, name = posixpath.split(path)
    content = read_bytes(filesystem, path) if name == SUMS or name.endswith(".json") else None
    if name == SUMS:
        yield from ((f"{folder}/{other}", digest) for other, digest in read_sums(content or b"", path).items())
    # other programs write JSON, too: whatever has no checksum is not compared
    elif content is not None and f'"{SUM}"'.encode() in content:
        record = parse_record(content, path, RESTORE)
        yield path, ""
        place = folder.partition(f"/{DONE}")[0]
        place = f"{place}/{MODEL}" if name == FINISHED else place
        files = record.get("files", ())
        listed = files.items() if isinstance(files, dict) else ((file["name"], file) for file in files)
        yield from ((f"{place}/{other}", file[SUM]) for other, file in listed)


def _problem(filesystem: pafs.FileSystem, path: str, digest: str) -> str | None:
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return "is missing, but named"
    return None if describe(filesystem, path, path).sha256 == digest else "has another checksum than that"
