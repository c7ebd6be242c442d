"""Published folders: finished versions beside each other, and a small file that names the one in force.

How they are written; `smec_core.data.versions` is how they are read.

    OUT/v0001/**.parquet, _manifest.json   a finished version; nothing in it changes any more
    OUT/v0002/**.parquet, plan.json        unfinished: a run is writing it, or was killed; never pointed at
    OUT/v0002/_done/*.json                 what its tasks have finished
    OUT/CURRENT                            "v0001" and, in its second line, the checksum of that version's manifest

The plan has no underscore: a reader that is given an unfinished version by mistake meets it and stops.

Object stores cannot rename, so what makes a version valid is its manifest, and what puts it in force is CURRENT: two
small files that are each written in one piece, in this order, after all others. The manifest holds the checksums of all
files and of itself, and CURRENT that of the manifest: what is altered anywhere is found.
"""

import datetime
import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipelines.storage.apart import check_no_file
from pipelines.storage.files import create_folder, move_file, new_file, remove_folder, swap
from pipelines.storage.manifest import DONE, first_damaged, seal, tidy
from smec_core.data.folders import entries
from smec_core.data.records import as_record, checksum_of, read_record
from smec_core.data.stored_files import StoredFile, files_of
from smec_core.data.tables import MANIFEST, find_manifest
from smec_core.data.uri import join_uri, public_uri
from smec_core.data.versions import (
    CURRENT,
    PLAN,
    PUBLISH,
    VERSION,
    InForce,
    finished_manifest,
    in_force,
    is_finished,
    manifest_of,
    manifest_of_version,
    open_folder,
    versions_in,
)
from smec_core.errors import DamagedError, InputError, SmecError, StoreUnreachable, first_line
from smec_core.folders import NEW, sync
from smec_core.temporary import let_go, make_folder, remove_left_behind

FORMAT = 2
BESIDE_PLAN = ("format", "version", "created", "rows", "quarantined", "inputs", "files")
"""What the manifest of a version says beside its plan."""


def check_output(out: str, key: str = "output") -> None:
    """Refuses a place where nothing can be published: a file, or a folder of other things, whose readers would mix up.

    Args:
        out: the place.
        key: the setting that names it.

    Raises:
        InputError: it is one, or lies below a file; a folder that has versions may hold other things, too.
    """
    check_no_file(key, out)
    filesystem, root = open_folder(out)
    names = {info.base_name for info in entries(filesystem, root)}
    if names and CURRENT not in names and not any(map(VERSION.fullmatch, names)):
        raise InputError(
            f"{key}: {public_uri(out)} is no published folder, it holds {min(names)}; nothing is published there, "
            "name another"
        )


def check_version(out: str, name: str) -> dict[str, Any]:
    """The manifest of a finished version, all of whose files are what was written.

    Args:
        out: the published folder.
        name: of the version.

    Raises:
        DamagedError: a file is not what was written, or there is no such version.
    """
    manifest = manifest_of_version(out, name)
    filesystem, root = open_folder(out)
    files = files_of(manifest, public_uri(join_uri(out, f"{name}/{MANIFEST}")))
    if problem := first_damaged(filesystem, f"{root}/{name}", files):
        raise DamagedError(problem.path, problem.problem, PUBLISH)
    return manifest


def checksum_of_version(out: str, name: str) -> str:
    """Checksum of a finished version's manifest."""
    filesystem, root = open_folder(out)
    return checksum_of(manifest_of(filesystem, f"{root}/{name}") or {})


def promote(out: str, name: str, seen: InForce) -> bool:
    """Points CURRENT at a finished version; leaves it alone where it does so already.

    Args:
        out: the published folder.
        name: of the version.
        seen: what `in_force` gave before the work on that version began, or was decided on.

    Returns:
        Whether CURRENT was changed.

    Raises:
        InputError: there is no such version, or it is not finished.
        SmecError: another process put a version in force meanwhile, which stays so.
    """
    filesystem, root = open_folder(out)
    if not is_finished(filesystem, root, name):
        raise InputError(f"{public_uri(out)}: there is no finished version {name!r}")
    manifest = manifest_of(filesystem, f"{root}/{name}")
    content = f"{name}\n{checksum_of(manifest or {})}\n".encode()
    if seen.content == content:
        return False
    if not swap(join_uri(out, CURRENT), seen.content, content) and (now := in_force(out)).name != name:
        raise SmecError(
            f"{public_uri(out)}: another process put {now.name or 'nothing'} in force meanwhile, and that stays; "
            f"{name} is whole, run again to put it in force"
        )
    return True


def finished_version(out: str, plan: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Path or URI and manifest of the version in force, or of the newest one, where this plan made it and it is whole.

    The newest may not be in force: a run was killed before it came to that.
    """
    filesystem, root = open_folder(out)
    for name in dict.fromkeys((in_force(out).name, *versions_in(filesystem, root)[-1:])):
        # one that is damaged is written again by this run
        with suppress(DamagedError):
            found = finished_manifest(filesystem, root, name)
            if found is not None and plan_of(found) == json.loads(json.dumps(plan)):
                found = check_version(out, name)
                if filesystem.get_file_info(f"{root}/{name}/{DONE}").type == pafs.FileType.Directory:
                    # whoever has finished it was killed before it had put away what it worked with
                    tidy(filesystem, f"{root}/{name}", files_of(found))
                return join_uri(out, name), found
    return None


def plan_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The plan by which a finished version was made."""
    return {key: value for key, value in manifest.items() if key not in BESIDE_PLAN}


def plans(out: str) -> dict[str, dict[str, Any]]:
    """The plan of each version, finished or not, by its name."""
    filesystem, root = open_folder(out)
    found: dict[str, dict[str, Any]] = {}
    for name in versions_in(filesystem, root):
        for path in (f"{root}/{name}/{PLAN}", find_manifest(filesystem, f"{root}/{name}")):
            # one that is damaged tells nothing
            with suppress(DamagedError):
                found[name] = (read_record(filesystem, path) if path else None) or found.get(name, {})
    return found


def remove_version(out: str, name: str) -> None:
    """Removes a version that is not in force; killed in the middle it leaves none that passes for finished.

    Raises:
        SmecError: it is in force.
    """
    if in_force(out).name == name:
        raise SmecError(f"{public_uri(out)}: {name} is in force, so it is not removed; run again")
    filesystem, root = open_folder(out)
    folder = f"{root}/{name}"
    while (manifest := find_manifest(filesystem, folder)) is not None:
        # no manifest any more, but it still tells whose the folder is
        move_file(filesystem, manifest, f"{folder}/{PLAN}")
    remove_folder(filesystem, folder, PLAN)


class Draft:
    """A version that is being written. Readers see it once it is finished and promoted."""

    def __init__(self, out: str, name: str, plan: dict[str, Any]) -> None:
        self.filesystem, root = open_folder(out)
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
        filesystem, root = open_folder(out)
        plan = json.loads(json.dumps(plan))
        try:
            create_folder(filesystem, root)
            names = versions_in(filesystem, root)
            for name in reversed(names):
                draft = cls(out, name, plan)
                if find_manifest(filesystem, draft.folder) is None and draft.is_ours:
                    return draft
            return cls(out, _claim(out, 1 + int(names[-1][1:]) if names else 1, as_record(plan)), plan)
        except StoreUnreachable:
            raise
        except OSError as error:
            raise InputError(f"{public_uri(out)}: cannot be written to ({first_line(error)})") from error

    @property
    def is_ours(self) -> bool:
        """Whether it is unfinished and of this plan."""
        with suppress(DamagedError):
            return read_record(self.filesystem, f"{self.folder}/{PLAN}") == self._plan
        return False

    def finish(self, files: Sequence[StoredFile], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the manifest, which makes it a version, and removes what the manifest does not list.

        Args:
            files: all files of the version.
            facts: what the manifest says beside plan and files: row counts, and the input of each piece.

        Returns:
            The manifest.

        Raises:
            SmecError: a listed file is missing, or another run has taken the folder over.
        """
        if not self.is_ours:
            raise SmecError(
                f"{public_uri(self.uri)}: another run published or replaced this version meanwhile; run again"
            )
        head = {
            "format": FORMAT,
            "version": self.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **self._plan,
            **facts,
        }
        return seal(self.uri, head, files)

    def discard(self) -> None:
        """Removes the version, unless another run has published it; for runs that cannot be taken up again."""
        if find_manifest(self.filesystem, self.folder) is None and self.is_ours:
            # a worker may have written a file meanwhile; an unfinished version that stays is never pointed at
            with suppress(OSError):
                self.filesystem.delete_dir(self.folder)


def _claim(out: str, number: int, plan: bytes) -> str:
    """Makes the folder of a version, which appears with its plan in it; of two runs each gets its own."""
    filesystem, root = open_folder(out)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        while not swap(join_uri(out, f"v{number:04d}/{PLAN}"), None, plan):
            number += 1
        return f"v{number:04d}"
    remove_left_behind(Path(root), f".*{NEW}")
    made = make_folder(Path(root), ".", NEW, mode=0o777)
    with new_file(filesystem, f"{made}/{PLAN}") as sink:
        sink.write(plan)
    while True:
        try:
            os.rename(made, f"{root}/v{number:04d}")
            let_go(made)
            sync(root)
            return f"v{number:04d}"
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            number += 1
