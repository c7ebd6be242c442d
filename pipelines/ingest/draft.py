"""A dataset that is being written: it appears when it is whole, and a run goes on with what a killed one has left.

OUT.partial/plan.json       what decides the dataset's bytes
OUT.partial/lease.json      who writes it now (pipelines/storage/lease.py)
OUT.partial/data/           on local file systems the dataset, until it is renamed to OUT
OUT/                        on object stores, which cannot rename, the dataset; with its manifest, written last,
it is finished
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipelines.ingest.readers import Place
from pipelines.storage.files import LOCK, remove_file, sizes_of
from pipelines.storage.lease import LEASE
from pipelines.storage.manifest import DONE, first_damaged, seal
from pipelines.storage.run_folder import RunFolder
from smec_core.data.records import read_record
from smec_core.data.stored_files import StoredFile, files_of
from smec_core.data.tables import find_manifest
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.data.versions import PLAN
from smec_core.errors import DamagedError, InputError, SmecError, StoreUnreachable, first_line, one_line
from smec_core.folders import put_in_place

JOB = "ingest"
FORMER_LOCK = "lease.lock"
"""What earlier versions have left in a folder that they were writing."""


class DatasetDraft:
    """The dataset of one output, and what is known of runs that wrote to it.

    Attributes:
        uri: the output, as it may be shown.
        state: the folder beside it.
        target: where shards are written.
    """

    def __init__(self, output: str) -> None:
        """Finds the folders; nothing is made yet.

        Raises:
            InputError: no folder that could have another beside it.
        """
        self.uri = public_uri(output)
        folder, mark, options = output.partition("?") if "://" in output else (str(Path(output).absolute()), "", "")
        parent, _, name = folder.rstrip("/").rpartition("/")
        if not name or parent.endswith(("/", ":")):
            raise InputError(f"{self.uri}: cannot be the dataset's folder; name one within it")
        filesystem, path = open_filesystem(output)
        self._output = Place(filesystem, path.rstrip("/"))
        self._is_local = isinstance(filesystem, pafs.LocalFileSystem)
        self.state = RunFolder(f"{parent or '/'}{mark}{options}", f"{name}.partial")
        self.target = Place(filesystem, f"{self.state.path}/data") if self._is_local else self._output
        self._target_uri = self.target.path if self._is_local else output

    def finished(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest of a finished dataset of this plan; None where nothing is finished.

        Raises:
            InputError: something else is there.
        """
        manifest = self._read_manifest()
        if manifest is None:
            return None
        changed = [key for key in plan if manifest.get(key) != plan[key]]
        if changed:
            raise InputError(
                f"{self.uri}: exists already, made with another {_listed(changed)}; choose another folder, or remove "
                "it first"
            )
        if problem := first_damaged(*self._output, files_of(manifest)):
            raise DamagedError(problem.path, problem.problem, f"remove {self.uri} and run again")
        return manifest

    def check_free(self) -> None:
        """Refuses an output that no ingest has written, before anything is read.

        Raises:
            InputError: something is there.
        """
        there = self._output.filesystem.get_file_info(self._output.path).type != pafs.FileType.NotFound
        unfinished = not self._is_local and self._read_plan() is not None
        if there and not unfinished and self._read_manifest() is None:
            raise InputError(f"{self.uri}: exists already; choose another folder, or remove it first")
        selector = pafs.FileSelector(self.state.path, allow_not_found=True)
        names = {info.base_name for info in self.state.filesystem.get_file_info(selector)}
        known = {PLAN, LEASE, LOCK, FORMER_LOCK} | ({"data"} if PLAN in names else set())
        if strange := sorted(name for name in names - known if not name.endswith(".tmp")):
            raise InputError(
                f"{public_uri(self.state.uri)}: is where the dataset is prepared, but holds {strange[0]}, which is not "
                "of smec ingest; move it away"
            )

    def create(self) -> None:
        """Makes the folder beside the output.

        Raises:
            InputError: it cannot be made.
        """
        try:
            self.state.create()
        except InputError as error:
            raise InputError(f"{self.uri}: cannot be written to ({first_line(error.__cause__ or error)})") from error

    def begin(self, plan: dict[str, Any]) -> list[str]:
        """Ties the draft to a plan; only for who holds its lease.

        Returns:
            Names of the files that an earlier run of the same plan has finished.

        Raises:
            InputError: files of another plan are there, which starting anew would lose, or it cannot be written to.
        """
        try:
            names = sizes_of(*self.target).keys()
            before = self._read_plan() or {}
            changed = [key for key in plan if before.get(key) != plan[key]]
            if changed and any(name.endswith(".parquet") for name in names):
                both = "" if self._is_local else f" and {self.uri}"
                raise InputError(
                    f"{public_uri(self.state.uri)}: holds an unfinished dataset of another {_listed(changed)}; "
                    f"give the same again to go on with it, or remove it{both} to start anew"
                )
            if changed:
                self.state.write(PLAN, plan)
        except StoreUnreachable:
            raise
        except OSError as error:
            raise InputError(f"{self.uri}: cannot be written to ({first_line(error)})") from error
        return sorted(name for name in names if f"{DONE}/{name}.json" in names)

    def sealed(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """Puts a dataset in its place that a killed run of this plan had finished before; its manifest, or None."""
        path = find_manifest(*self.target) if self._is_local else None
        manifest = read_record(self.target.filesystem, path) if path else None
        if manifest is None or any(manifest.get(key) != plan[key] for key in plan):
            return None
        if first_damaged(*self.target, files_of(manifest)):
            return None
        self._put_in_place()
        return manifest

    def publish(self, head: dict[str, Any], files: Sequence[StoredFile]) -> dict[str, Any]:
        """Makes the dataset visible, once all of its files are there.

        Returns:
            Its manifest.

        Raises:
            SmecError: a file is missing, or is not the one that was described.
        """
        if (earlier := find_manifest(*self.target)) is not None:
            # a run was killed before it had put the dataset in its place
            remove_file(self.target.filesystem, earlier)
        manifest = seal(self._target_uri, head, files)
        self._put_in_place()
        return manifest

    def _put_in_place(self) -> None:
        if self._is_local:
            try:
                put_in_place(Path(self.target.path), Path(self._output.path))
            except OSError as error:
                raise SmecError(f"{self.uri}: cannot be put there ({one_line(error)}); run again") from error

    def clean(self) -> None:
        """Removes the folder beside the output, once that is finished."""
        # another process may do the same
        with suppress(OSError):
            self.state.filesystem.delete_dir(self.state.path)

    def _read_plan(self) -> dict[str, Any] | None:
        plan: dict[str, Any] | None = self.state.read(PLAN, cure=f"remove {public_uri(self.state.uri)}")
        return plan

    def _read_manifest(self) -> dict[str, Any] | None:
        """The manifest of the output where an ingest has finished it."""
        path = find_manifest(*self._output)
        manifest = read_record(self._output.filesystem, path, f"remove {self.uri} and run again") if path else None
        return manifest if manifest and manifest.get("job") == JOB else None


def digest_of(plan: dict[str, Any]) -> str:
    """Hash of a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _listed(keys: list[str]) -> str:
    return ", ".join(key.removesuffix("_fingerprint") for key in keys)
