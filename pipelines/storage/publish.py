"""Published folders: finished versions beside each other, and a small file that names the one in force.

    OUT/v0001/**.parquet, _manifest.json   a finished version; nothing in it changes any more
    OUT/v0002/**.parquet, plan.json        unfinished: a run is writing it, or was killed; never pointed at
    OUT/CURRENT                            "v0001": the version in force, written last

The plan has no underscore: a reader that is given an unfinished version by mistake meets it and stops.

Object stores cannot rename, so what makes a version valid is its manifest, and what puts it in force is CURRENT: two
small files that are each written in one piece, in this order, after all others.
"""

import datetime
import errno
import hashlib
import json
import os
import posixpath
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from pipelines.storage.files import READ_BYTES, exists, first_line, new_file, read_json, read_text, sizes_of, write_json
from smec_core.data.tables import MANIFEST, find_manifest
from smec_core.data.uri import join_uri, open_filesystem, public_uri
from smec_core.errors import InputError, SmecError, StoreUnreachable

CURRENT = "CURRENT"
PLAN = "plan.json"
VERSION = re.compile(r"v(\d{4,})")


class PublishedFile(NamedTuple):
    """A file of a version as its manifest lists it: its path there, and the sha256 (hex) of its bytes."""

    name: str
    rows: int
    bytes: int
    sha256: str


def describe_file(filesystem: pafs.FileSystem, path: str, rows: int) -> PublishedFile:
    """Reads a finished file back for its size and checksum."""
    digest, size = hashlib.sha256(), 0
    with filesystem.open_input_stream(path) as source:
        while piece := source.read(READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return PublishedFile(posixpath.basename(path), rows, size, digest.hexdigest())


def is_published(out: str) -> bool:
    """Whether a path or URI is a published folder that has a version in force."""
    filesystem, root = _open(out)
    return exists(filesystem, f"{root}/{CURRENT}")


def current(out: str) -> str:
    """Path or URI of the version in force of a published folder.

    Raises:
        InputError: nothing was published there, or CURRENT names a version that is not finished.
    """
    filesystem, root = _open(out)
    name = read_text(filesystem, f"{root}/{CURRENT}").strip()
    if not name:
        raise InputError(f"{public_uri(out)}: no version is published there (no file {CURRENT})")
    if not _is_finished(filesystem, root, name):
        raise InputError(f"{public_uri(out)}: {CURRENT} names {name!r}, which is no finished version; publish again")
    return join_uri(out, name)


def manifest_of(filesystem: pafs.FileSystem, folder: str) -> dict[str, Any] | None:
    """The manifest of a published version, None for a folder that is none.

    Raises:
        InputError: the version is not finished, or its manifest cannot be read.
    """
    path = find_manifest(filesystem, folder)
    if path is None:
        if exists(filesystem, f"{folder}/{PLAN}"):
            raise InputError(f"{folder}: a version that is not finished (no {MANIFEST}); give one that is published")
        return None
    try:
        manifest = read_json(filesystem, path)
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); publish the version again") from error
    if not isinstance(manifest, dict) or not {"model", "model_fingerprint"} <= manifest.keys():
        raise InputError(f"{path}: is not a manifest of smec compress; give a folder with the Parquet files only")
    return manifest


def promote(out: str, name: str) -> None:
    """Points CURRENT at a finished version; leaves it alone where it does so already.

    Raises:
        InputError: there is no such version, or it is not finished.
    """
    filesystem, root = _open(out)
    if not _is_finished(filesystem, root, name):
        raise InputError(f"{public_uri(out)}: there is no finished version {name!r}")
    if read_text(filesystem, f"{root}/{CURRENT}").strip() != name:
        with new_file(filesystem, f"{root}/{CURRENT}") as sink:
            sink.write(f"{name}\n".encode())


def finished_version(out: str, plan: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Path or URI and manifest of the version in force, or of the newest one, where this plan made it and it is whole.

    The newest may not be in force: a run was killed before it came to that.
    """
    filesystem, root = _open(out)
    for name in (read_text(filesystem, f"{root}/{CURRENT}").strip(), *_versions(filesystem, root)[-1:]):
        if not _is_finished(filesystem, root, name):
            continue
        try:
            manifest = manifest_of(filesystem, f"{root}/{name}")
        except InputError:
            # damaged: this run writes it again
            continue
        if manifest is None or not holds(manifest, plan):
            continue
        sizes = sizes_of(filesystem, f"{root}/{name}")
        if all(sizes.get(file["name"]) == file["bytes"] for file in manifest["files"]):
            return join_uri(out, name), manifest
    return None


def plans(out: str) -> dict[str, dict[str, Any]]:
    """The plan of each version, finished or not, by its name."""
    filesystem, root = _open(out)
    found: dict[str, dict[str, Any]] = {}
    for name in _versions(filesystem, root):
        for path in (f"{root}/{name}/{PLAN}", find_manifest(filesystem, f"{root}/{name}")):
            # one that is damaged tells nothing
            with suppress(ValueError):
                found[name] = (read_json(filesystem, path) if path else None) or found.get(name, {})
    return found


def remove_version(out: str, name: str) -> None:
    """Removes a version that is not in force; killed in the middle it leaves none that passes for finished."""
    filesystem, root = _open(out)
    folder = f"{root}/{name}"
    while (manifest := find_manifest(filesystem, folder)) is not None:
        filesystem.delete_file(manifest)
    if filesystem.get_file_info(folder).type == pafs.FileType.Directory:
        filesystem.delete_dir(folder)


def holds(manifest: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Whether a version was made by this plan."""
    return all(manifest.get(key) == value for key, value in json.loads(json.dumps(plan)).items())


class Draft:
    """A version that is being written. Readers see it once it is finished and promoted."""

    def __init__(self, out: str, filesystem: pafs.FileSystem, root: str, name: str, plan: dict[str, Any]) -> None:
        self.filesystem = filesystem
        self.folder = f"{root}/{name}"
        self.name = name
        self.uri = join_uri(out, name)
        self._plan = plan

    @classmethod
    def open(cls, out: str, plan: dict[str, Any]) -> "Draft":
        """Takes up the unfinished version with the same plan, or else begins the next one.

        Unfinished versions of other plans stay as they are: another run may be writing them.

        Args:
            out: the published folder, made if it is not there.
            plan: JSON-able facts that decide every file of the version; they open its manifest, too.

        Raises:
            InputError: the folder cannot be written to.
        """
        filesystem, root = _open(out)
        text = json.dumps(plan, indent=1)
        plan = json.loads(text)
        try:
            filesystem.create_dir(root)
            names = _versions(filesystem, root)
            for name in reversed(names):
                folder = f"{root}/{name}"
                if find_manifest(filesystem, folder) is None and read_json(filesystem, f"{folder}/{PLAN}") == plan:
                    return cls(out, filesystem, root, name, plan)
            name = _claim(filesystem, root, 1 + int(names[-1][1:]) if names else 1, text)
        except StoreUnreachable:
            raise
        except OSError as error:
            raise InputError(f"{public_uri(out)}: cannot be written to ({first_line(error)})") from error
        return cls(out, filesystem, root, name, plan)

    def finish(self, files: Sequence[PublishedFile], counts: Mapping[str, int]) -> dict[str, Any]:
        """Writes the manifest, which makes it a version, and removes what the manifest does not list.

        Args:
            files: all files of the version.
            counts: row counts for the manifest.

        Returns:
            The manifest.

        Raises:
            SmecError: a listed file is missing, or another run has taken the folder over.
        """
        if read_json(self.filesystem, f"{self.folder}/{PLAN}") != self._plan:
            raise SmecError(
                f"{public_uri(self.uri)}: another run published or replaced this version meanwhile; run again"
            )
        sizes = sizes_of(self.filesystem, self.folder)
        for file in files:
            if sizes.get(file.name) != file.bytes:
                raise SmecError(
                    f"{public_uri(self.uri)}/{file.name}: was changed or removed after it was written; run again"
                )
        manifest = {
            "format": 1,
            "version": self.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **self._plan,
            **counts,
            "files": [file._asdict() for file in files],
        }
        write_json(self.filesystem, f"{self.folder}/{MANIFEST}", manifest)
        for stray in sizes.keys() - {file.name for file in files}:
            self.filesystem.delete_file(f"{self.folder}/{stray}")
        return manifest

    def discard(self) -> None:
        """Removes the version, unless another run has published it; for runs that cannot be taken up again."""
        if read_json(self.filesystem, f"{self.folder}/{PLAN}") == self._plan:
            # a worker may have written a file meanwhile; an unfinished version that stays is never pointed at
            with suppress(OSError):
                self.filesystem.delete_dir(self.folder)


def _open(out: str) -> tuple[pafs.FileSystem, str]:
    filesystem, root = open_filesystem(out)
    return filesystem, root.rstrip("/")


def _is_finished(filesystem: pafs.FileSystem, root: str, name: str) -> bool:
    return bool(VERSION.fullmatch(name)) and find_manifest(filesystem, f"{root}/{name}") is not None


def _versions(filesystem: pafs.FileSystem, root: str) -> list[str]:
    """Names of all versions, finished or not, oldest first."""
    if filesystem.get_file_info(root).type != pafs.FileType.Directory:
        return []
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(root))]
    return sorted((name for name in names if VERSION.fullmatch(name)), key=lambda name: int(name[1:]))


def _claim(filesystem: pafs.FileSystem, root: str, number: int, plan: str) -> str:
    """Makes the folder of a version, which appears with its plan in it; of two runs each gets its own."""
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with new_file(filesystem, f"{root}/v{number:04d}/{PLAN}") as sink:
            sink.write(plan.encode())
        return f"v{number:04d}"
    made = Path(root, f".{uuid.uuid4().hex[:8]}.new")
    made.mkdir()
    (made / PLAN).write_text(plan)
    while True:
        try:
            os.rename(made, f"{root}/v{number:04d}")
            return f"v{number:04d}"
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            number += 1
