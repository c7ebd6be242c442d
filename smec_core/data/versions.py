"""Published folders as readers see them: finished versions, and CURRENT, which names the one in force.

    OUT/v0001/**.parquet, _manifest.json   a finished version; nothing in it changes any more
    OUT/CURRENT                            "v0001" and, in its second line, the checksum of that version's manifest

`pipelines/storage/publish.py` writes them.
"""

import re
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from smec_core.data.records import checksum_of, exists, read_bytes, read_record
from smec_core.data.tables import MANIFEST, find_manifest
from smec_core.data.uri import join_uri, open_filesystem, public_uri, shown_path, without_slash
from smec_core.errors import DamagedError, InputError

CURRENT = "CURRENT"
PLAN = "plan.json"
"""Lies in a version that is not finished."""
VERSION = re.compile(r"v(\d{4,})")
_CURRENT = re.compile(r"(v\d{4,})\n?(?:([0-9a-f]{64})\n)?")
PUBLISH = "publish again"
COPY_AGAIN = f"copy the folder again, {CURRENT} last, or publish again"


class InForce(NamedTuple):
    """What CURRENT says.

    Attributes:
        content: its bytes, which a promotion must still find there; None where there is no such file.
        name: the version that it names; empty where there is none.
        checksum: of that version's manifest; empty in folders of earlier versions.
    """

    content: bytes | None
    name: str = ""
    checksum: str = ""


def in_force(out: str) -> InForce:
    """Reads CURRENT of a published folder; of one that is damaged only the content is given."""
    filesystem, root = open_folder(out)
    content = read_bytes(filesystem, f"{root}/{CURRENT}")
    match = _CURRENT.fullmatch((content or b"").decode(errors="replace"))
    return InForce(content, match[1], match[2] or "") if match else InForce(content)


def is_published(out: str) -> bool:
    """Whether a path or URI is a published folder that has a version in force."""
    filesystem, root = open_folder(out)
    return exists(filesystem, f"{root}/{CURRENT}")


def current(out: str) -> str:
    """Path or URI of the version in force of a published folder; raises what `manifest_in_force` does."""
    return join_uri(out, manifest_in_force(out)["version"])


def manifest_in_force(out: str) -> dict[str, Any]:
    """The manifest of the version in force of a published folder.

    Raises:
        InputError: nothing was published there, or CURRENT or the manifest that it names is not what was written.
    """
    filesystem, root = open_folder(out)
    found = in_force(out)
    if found.content is None:
        raise InputError(f"{public_uri(out)}: no version is published there (no file {CURRENT})")
    public = public_uri(join_uri(out, CURRENT))
    if not found.name:
        raise DamagedError(public, "names no version", PUBLISH)
    manifest = finished_manifest(filesystem, root, found.name)
    if manifest is None:
        raise DamagedError(public, f"names {found.name!r}, which is no finished version", PUBLISH)
    if found.checksum and found.checksum != checksum_of(manifest):
        raise DamagedError(public, f"is not what was written for {found.name}", PUBLISH)
    return manifest


def manifest_of(filesystem: pafs.FileSystem, folder: str) -> dict[str, Any] | None:
    """The manifest of a published version, None for a folder that is none.

    Raises:
        InputError: the version is not finished, or its manifest is not what was written.
    """
    path = find_manifest(filesystem, folder)
    place = shown_path(filesystem, path or folder)
    if path is None:
        if exists(filesystem, f"{folder}/{PLAN}"):
            raise InputError(f"{place}: a version that is not finished (no {MANIFEST}); give one that is published")
        return None
    manifest = read_record(filesystem, path, "publish the version again")
    if manifest is None or not {"model", "model_fingerprint", "version", "files"} <= manifest.keys():
        raise DamagedError(place, "is not a manifest of smec compress", "give a folder with the Parquet files only")
    return manifest


def open_folder(out: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a published folder, and its path there."""
    filesystem, root = open_filesystem(out)
    return filesystem, without_slash(root)


def is_finished(filesystem: pafs.FileSystem, root: str, name: str) -> bool:
    """Whether a published folder has a finished version of a name."""
    return bool(VERSION.fullmatch(name)) and find_manifest(filesystem, f"{root}/{name}") is not None


def finished_manifest(filesystem: pafs.FileSystem, root: str, name: str) -> dict[str, Any] | None:
    """The manifest of a finished version, None where there is none of that name; a copy of another one is none.

    Raises:
        InputError: its manifest is not what was written.
    """
    manifest = manifest_of(filesystem, f"{root}/{name}") if is_finished(filesystem, root, name) else None
    return manifest if manifest is not None and manifest["version"] == name else None


def stored_dims(manifest: dict[str, Any]) -> tuple[int, ...]:
    """Of which dims a version holds vectors, the largest first."""
    return tuple(map(int, manifest["folders"])) or (manifest["dim"],)


def manifest_of_version(out: str, name: str) -> dict[str, Any]:
    """The manifest of a finished version.

    Args:
        out: the published folder.
        name: of the version.

    Raises:
        DamagedError: there is no such version, or its manifest is not what was written.
    """
    filesystem, root = open_folder(out)
    manifest = finished_manifest(filesystem, root, name)
    if manifest is None:
        raise DamagedError(public_uri(join_uri(out, name)), "is no finished version", PUBLISH)
    return manifest


def versions_in(filesystem: pafs.FileSystem, root: str) -> list[str]:
    """Names of all versions of a published folder, finished or not, oldest first."""
    if filesystem.get_file_info(root).type != pafs.FileType.Directory:
        return []
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(root))]
    return sorted((name for name in names if VERSION.fullmatch(name)), key=lambda name: int(name[1:]))


def manifest_to_read(out: str, name: str | None = None) -> dict[str, Any]:
    """The manifest of a version, or of the one in force, for those who read a folder that others have written.

    Args:
        out: the published folder.
        name: of the version; None for the one in force.

    Raises:
        InputError: what `manifest_in_force` and `manifest_of_version` raise, with what helps a reader.
    """
    try:
        return manifest_in_force(out) if name is None else manifest_of_version(out, name)
    except DamagedError as error:
        if name is not None and name not in (there := versions_in(*open_folder(out))):
            cure = f"give one that is there: {', '.join(there)}" if there else "no version is there"
            raise InputError(f"{public_uri(out)}: there is no version {name}; {cure}") from error
        raise DamagedError(error.path, error.problem, COPY_AGAIN) from error
    except InputError as error:
        raise InputError(f"{error}; {_cure(out)}") from error


def _cure(out: str) -> str:
    """What to do where a folder has no CURRENT."""
    filesystem, root = open_folder(out)
    if find_manifest(filesystem, root) is not None:
        return (
            f"it is a version itself: give the folder that holds it, {public_uri(out).rstrip('/').rpartition('/')[0]}"
        )
    if versions_in(filesystem, root):
        return f"it holds versions, so copy {CURRENT}, too, or publish again"
    return "give the folder that `smec compress --output` or publish.output of `smec retrain` named"
