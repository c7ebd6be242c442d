"""`smec verify`: compares everything that is stored below a folder with its checksums, byte by byte."""

import posixpath
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow.fs as pafs

from pipelines.console import RowProgress, say, warn
from pipelines.storage.manifest import DONE
from pipelines.storage.run_folder import FINISHED, MODEL
from pipelines.verify.settings import VerifySettings
from smec_core.checksums import SUMS, read_sums
from smec_core.data.records import SUM, parse_record, read_bytes, unreadable
from smec_core.data.stored_files import describe
from smec_core.data.tables import MANIFEST
from smec_core.data.uri import join_uri, open_filesystem, public_uri, shown_path
from smec_core.data.versions import CURRENT, VERSION, current
from smec_core.errors import DamagedError, InputError, StoreError, StoreUnreachable, one_line

RESTORE = "restore it from a copy, or make it again"
CONFIG, ADAPTER = "config.json", "adapter.safetensors"
RECORDS = (FINISHED, MANIFEST, "releases.json")
"""Names of ours: what is called so and is no record is damaged."""


def run(settings: VerifySettings) -> dict[str, Any]:
    """Reads all files that have checksums.

    Returns:
        files: how many were compared.
        not_compared: how many others are there, of which no checksum is kept.

    Raises:
        DamagedError: a file is not what was written; each is reported first.
        InputError: nothing there has checksums, or it is no folder.
        StoreUnreachable: the store does not answer; what was found damaged before is reported first.
    """
    filesystem, root = open_filesystem(settings.path.rstrip("/"))
    public, shown = public_uri(settings.path), partial(shown_path, filesystem)
    if filesystem.get_file_info(root).type == pafs.FileType.File:
        raise InputError(f"{public}: is a file; give the folder that it lies in")
    infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    if not infos:
        raise InputError(f"{public}: is not there, or empty; give a folder that smec has written")
    sizes = {info.path: info.size for info in infos if info.type == pafs.FileType.File}
    paths, progress = sorted(sizes), RowProgress("compared", sum(sizes.values()), "bytes")
    compared: set[str] = set()
    damaged: list[InputError] = []
    for path in paths:
        try:
            for other, digest in _told_by(filesystem, path, paths):
                compared.add(other)
                if digest and (problem := _problem(filesystem, other, digest, posixpath.basename(path))):
                    damaged.append(problem)
                progress.add(sizes.get(other, 0))
            if posixpath.basename(path) == CURRENT:
                compared.add(path)
                folder = posixpath.relpath(posixpath.dirname(path), root)
                current(settings.path if folder == "." else join_uri(settings.path, folder))
        except StoreUnreachable:
            _tell(damaged)
            raise
        except InputError as error:
            damaged.append(error)
        except (KeyError, TypeError) as error:
            damaged.append(DamagedError(shown(path), f"is no record of smec ({one_line(error)})", "move it elsewhere"))
        except OSError as error:
            damaged.append(unreadable(shown(path), error))
    _tell(damaged)
    others = len(set(paths) - compared)
    if damaged:
        raise DamagedError(public, f"problems: {len(damaged)}, listed above; files compared: {len(compared)}", RESTORE)
    if not compared:
        raise InputError(f"{public}: nothing there has checksums; give a folder that smec has written")
    rest = f"; of {others} no checksum is kept, so they were not compared" if others else ""
    say(f"{public}: {len(compared)} files are as they were written{rest}")
    return {"files": len(compared), "not_compared": others}


def _told_by(filesystem: pafs.FileSystem, path: str, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Files of which a file holds the checksums, and these; a record's own was compared then.

    Raises:
        DamagedError: a record cannot be read, the checksums of a model are gone, or a Parquet file is in none.
    """
    folder, name = posixpath.split(path)
    content = read_bytes(filesystem, path) if name == SUMS or name.endswith(".json") else None
    shown = shown_path(filesystem, path)
    if name == SUMS:
        yield from ((f"{folder}/{other}", digest) for other, digest in read_sums(content or b"", shown).items())
    elif name == CONFIG and f"{folder}/{SUMS}" not in paths and f"{folder}/{ADAPTER}" in paths:
        # models of the first edition have none
        if parse_record(content or b"", shown, RESTORE).get("format") != 1:
            raise DamagedError(shown_path(filesystem, f"{folder}/{SUMS}"), "is missing", RESTORE)
    elif content is not None and (f'"{SUM}"'.encode() in content or name in RECORDS):
        record = parse_record(content, shown, RESTORE)
        if f'"{SUM}"'.encode() not in content:
            # of the first edition; nor is what other programs write compared
            return
        yield path, ""
        place = folder.partition(f"/{DONE}")[0]
        place = f"{place}/{MODEL}" if name == FINISHED else place
        files = record.get("files", ())
        listed = files.items() if isinstance(files, dict) else ((file["name"], file) for file in files)
        sums = {f"{place}/{other}": file[SUM] for other, file in listed}
        yield from sums.items()
        # beside the files of a dataset there may be others
        if name == MANIFEST and VERSION.fullmatch(posixpath.basename(folder)):
            for other in paths:
                if other.startswith(f"{folder}/") and other.endswith(".parquet") and other not in sums:
                    stray = shown_path(filesystem, other)
                    raise DamagedError(stray, f"is not named in {MANIFEST}, but would be read", "move it elsewhere")


def _problem(filesystem: pafs.FileSystem, path: str, digest: str, told_by: str) -> InputError | None:
    shown = shown_path(filesystem, path)
    try:
        if filesystem.get_file_info(path).type != pafs.FileType.File:
            return DamagedError(shown, f"is missing, but named in {told_by}", RESTORE)
        if describe(filesystem, path, path).sha256 != digest:
            return DamagedError(shown, f"has another checksum than that in {told_by}", RESTORE)
    except StoreUnreachable:
        raise
    except StoreError as error:
        return error
    except OSError as error:
        return unreadable(shown, error)
    return None


def _tell(damaged: Sequence[InputError]) -> None:
    for problem in damaged:
        warn(str(problem))
