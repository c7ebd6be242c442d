"""`smec verify`: compares everything that is stored below a folder with its checksums, byte by byte."""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from pipelines.console import RowProgress, say, warn
from pipelines.storage.manifest import DONE
from pipelines.storage.run_folder import FINISHED, MODEL
from pipelines.verify.settings import VerifySettings
from smec_core.checksums import SUMS, read_sums
from smec_core.data.records import SUM, exists, parse_record, read_bytes, unreadable
from smec_core.data.stored_files import describe
from smec_core.data.tables import MANIFEST
from smec_core.data.uri import join_uri, open_filesystem, public_uri, shown_path, without_slash
from smec_core.data.versions import CURRENT, VERSION, current
from smec_core.errors import DamagedError, InputError, StoreError, StoreUnreachable, one_line
from smec_core.folders import NEW

RESTORE = "restore it from a copy, or make it again"
CONFIG, ADAPTER = "config.json", "adapter.safetensors"
RECORDS = (FINISHED, MANIFEST, "releases.json")
"""Names of ours: what is called so and is no record is damaged."""
DRAFT = re.compile(rf"/\.[^/]+\.[0-9a-f]{{8}}{re.escape(NEW)}/")
"""In a path: a folder that is being written beside the one it replaces, or was when its job was killed."""
FILE_LIST = re.compile(r"\.start-\d+/checkpoint_[^/]+/files-\d+\.json$")
"""Ends the path of a checkpoint's list of files (pipelines/train/checkpoints.py)."""


def run(settings: VerifySettings) -> dict[str, Any]:
    """Reads all files that have checksums.

    Returns:
        files: how many were compared.
        not_compared: how many others are there, beside SHA256SUMS, of which no checksum is kept.
        unfinished: how many checkpoints and new folders are not whole, as a job leaves them that runs or was killed.

    Raises:
        DamagedError: a file is not what was written; each is reported first.
        InputError: nothing there has checksums, or it is no folder.
        StoreUnreachable: the store does not answer; what was found damaged before is reported first.
    """
    filesystem, root = open_filesystem(without_slash(settings.path))
    public = public_uri(settings.path)
    if filesystem.get_file_info(root).type == pafs.FileType.File:
        raise InputError(f"{public}: is a file; give the folder that it lies in")
    infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    if not infos:
        raise InputError(f"{public}: is not there, or empty; give a folder that smec has written")
    sizes = {info.path: info.size for info in infos if info.type == pafs.FileType.File}
    work = _Comparison(settings.path, filesystem, root, sizes)
    try:
        for path in work.paths:
            work.look_at(path)
    except StoreUnreachable:
        _tell(work.damaged)
        raise
    _tell(work.damaged)
    compared = len(work.compared)
    # the checksums themselves are what the others are compared with
    others = sum(posixpath.basename(path) != SUMS for path in set(work.paths) - work.compared)
    if work.damaged:
        raise DamagedError(public, f"problems: {len(work.damaged)}, listed above; files compared: {compared}", RESTORE)
    if not work.compared and not work.unfinished:
        raise InputError(f"{public}: nothing there has checksums; give a folder that smec has written")
    rest = f"; files without a checksum, which were not compared: {others}" if others else ""
    if work.unfinished:
        rest += f"; unfinished checkpoints and new folders, of a job that runs or was killed: {len(work.unfinished)}"
    say(f"{public}: {compared} files are as they were written{rest}")
    return {"files": compared, "not_compared": others, "unfinished": len(work.unfinished)}


@dataclass
class _Comparison:
    """Compares the files below a folder, while jobs may be writing there.

    Attributes:
        uri: the folder, as it was given.
        filesystem: where it is.
        root: its path there.
        sizes: bytes of its files, by path; those of drafts are taken out.
        compared: files that have been compared.
        unfinished: checkpoints and new folders that are not whole.
        damaged: what was found.
    """

    uri: str
    filesystem: pafs.FileSystem
    root: str
    sizes: dict[str, int]
    compared: set[str] = field(default_factory=set)
    unfinished: set[str] = field(default_factory=set)
    damaged: list[InputError] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in list(self.sizes):
            if match := DRAFT.search(path, len(self.root)):
                self.unfinished.add(path[: match.end()])
                del self.sizes[path]
        self.paths = sorted(self.sizes)
        self._progress = RowProgress("compared", sum(self.sizes.values()), "bytes")

    def look_at(self, path: str) -> None:
        """Compares what a file has checksums of: anew where it was replaced meanwhile, and not where it is gone."""
        name, before = posixpath.basename(path), len(self.damaged)
        if name not in (SUMS, CURRENT) and not name.endswith(".json"):
            return
        try:
            content = read_bytes(self.filesystem, path)
            while content is not None:
                self._compare(path, content)
                if len(self.damaged) == before or (again := read_bytes(self.filesystem, path)) == content:
                    break
                del self.damaged[before:]
                content = again
            if len(self.damaged) > before and _is_unfinished(self.filesystem, path, content or b""):
                del self.damaged[before:]
                self.unfinished.add(posixpath.dirname(path))
        except StoreUnreachable:
            raise
        except InputError as error:
            self.damaged.append(error)
        except OSError as error:
            self.damaged.append(unreadable(shown_path(self.filesystem, path), error))

    def _compare(self, path: str, content: bytes) -> None:
        folder, name = posixpath.split(path)
        shown = shown_path(self.filesystem, path)
        try:
            for other, digest in _told_by(self.filesystem, path, content, self.paths):
                self.compared.add(other)
                if digest and (problem := _problem(self.filesystem, other, digest, name)):
                    self.damaged.append(problem)
                self._progress.add(self.sizes.get(other, 0))
            if name == CURRENT:
                self.compared.add(path)
                inside = posixpath.relpath(folder, self.root)
                current(self.uri if inside == "." else join_uri(self.uri, inside))
        except StoreUnreachable:
            raise
        except InputError as error:
            self.damaged.append(error)
        except (KeyError, TypeError) as error:
            self.damaged.append(DamagedError(shown, f"is no record of smec ({one_line(error)})", "move it elsewhere"))
        except OSError as error:
            self.damaged.append(unreadable(shown, error))


def _told_by(filesystem: pafs.FileSystem, path: str, content: bytes, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Files of which a file holds the checksums, and these; a record's own was compared then.

    Raises:
        DamagedError: a record cannot be read, the checksums of a model are gone, or a Parquet file is in none.
    """
    folder, name = posixpath.split(path)
    shown = shown_path(filesystem, path)
    if name == SUMS:
        yield from ((f"{folder}/{other}", digest) for other, digest in read_sums(content, shown).items())
    elif name == CONFIG and f"{folder}/{SUMS}" not in paths and f"{folder}/{ADAPTER}" in paths:
        # models of the first edition have none; a model that is replaced may have them by now
        if not exists(filesystem, f"{folder}/{SUMS}") and parse_record(content, shown, RESTORE).get("format") != 1:
            raise DamagedError(shown_path(filesystem, f"{folder}/{SUMS}"), "is missing", RESTORE)
    elif name != CURRENT and (f'"{SUM}"'.encode() in content or name in RECORDS):
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
                is_data = other.startswith(f"{folder}/") and other.endswith(".parquet")
                if is_data and other not in sums and exists(filesystem, other):
                    stray = shown_path(filesystem, other)
                    raise DamagedError(stray, f"is not named in {MANIFEST}, but would be read", "move it elsewhere")


def _is_unfinished(filesystem: pafs.FileSystem, path: str, content: bytes) -> bool:
    """Whether a file lists a checkpoint that is not whole, or is itself cut short: no start goes on from that."""
    if not FILE_LIST.search(path):
        return False
    if not content.rstrip().endswith(b"}"):
        return True
    try:
        kept = parse_record(content, path, RESTORE)["files"].items()
        sizes = {f"{posixpath.dirname(path)}/{name}": file["bytes"] for name, file in kept}
        return any((filesystem.get_file_info(file).size or 0) < size for file, size in sizes.items())
    except (DamagedError, KeyError, TypeError, AttributeError):
        return False


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
