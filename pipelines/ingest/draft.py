"""A dataset that is being written: it appears when it is whole, and a run goes on with what a killed one has left.

OUT.partial/plan.json       what decides the dataset's bytes
OUT.partial/lease.json      who writes it now (pipelines/storage/lease.py)
OUT.partial/data/           on local file systems the dataset, until it is renamed to OUT
OUT/                        on object stores, which cannot rename, the dataset; with its manifest, written last,
it is finished
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipelines.ingest.readers import Place
from pipelines.storage.files import first_line, read_json, sizes_of, write_json
from pipelines.storage.publish import PLAN
from pipelines.storage.run_folder import RunFolder
from smec_core.data.tables import MANIFEST, find_manifest
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.errors import InputError, SmecError, StoreUnreachable, one_line

JOB = "ingest"


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
        return manifest

    def check_free(self) -> None:
        """Refuses an output that no ingest has written, before anything is read.

        Raises:
            InputError: something is there.
        """
        there = self._output.filesystem.get_file_info(self._output.path).type != pafs.FileType.NotFound
        unfinished = not self._is_local and self.state.read_json(PLAN) is not None
        if there and not unfinished and self._read_manifest() is None:
            raise InputError(f"{self.uri}: exists already; choose another folder, or remove it first")
        selector = pafs.FileSelector(self.state.path, allow_not_found=True)
        names = {info.base_name for info in self.state.filesystem.get_file_info(selector)}
        known = {PLAN, "lease.json", "lease.lock"} | ({"data"} if PLAN in names else set())
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
            Names of the files that an earlier run of the same plan has left, whole or not.

        Raises:
            InputError: files of another plan are there, which starting anew would lose, or it cannot be written to.
        """
        try:
            names = sorted(sizes_of(*self.target))
            before = self._read_plan() or {}
            changed = [key for key in plan if before.get(key) != plan[key]]
            if changed and any(name.endswith(".parquet") for name in names):
                both = "" if self._is_local else f" and {self.uri}"
                raise InputError(
                    f"{public_uri(self.state.uri)}: holds an unfinished dataset of another {_listed(changed)}; "
                    f"give the same again to go on with it, or remove it{both} to start anew"
                )
            if changed:
                self.state.write_json(PLAN, plan)
        except StoreUnreachable:
            raise
        except OSError as error:
            raise InputError(f"{self.uri}: cannot be written to ({first_line(error)})") from error
        return names

    def publish(self, manifest: dict[str, Any]) -> None:
        """Makes the dataset visible, once all files of its manifest are there.

        Raises:
            SmecError: a file is missing, or is not the one that was described.
        """
        filesystem = self.target.filesystem
        sizes, listed = sizes_of(*self.target), {file["name"]: file["bytes"] for file in manifest["files"]}
        for name, size in listed.items():
            if sizes.get(name) != size:
                raise SmecError(f"{self.target.join(name)}: was changed or removed after it was written; run again")
        for stray in sizes.keys() - listed:
            filesystem.delete_file(self.target.join(stray))
        write_json(filesystem, self.target.join(MANIFEST), manifest)
        if self._is_local:
            try:
                os.rename(self.target.path, self._output.path)
            except OSError as error:
                raise SmecError(f"{self.uri}: cannot be put there ({one_line(error)}); run again") from error

    def clean(self) -> None:
        """Removes the folder beside the output, once that is finished."""
        # another process may do the same
        with suppress(OSError):
            self.state.filesystem.delete_dir(self.state.path)

    def _read_plan(self) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] | None = self.state.read_json(PLAN)
        except ValueError as error:
            folder = public_uri(self.state.uri)
            raise InputError(f"{folder}/{PLAN}: is damaged ({one_line(error)}); remove {folder}") from error
        return plan

    def _read_manifest(self) -> dict[str, Any] | None:
        """The manifest of the output where an ingest has finished it."""
        path = find_manifest(self._output.filesystem, self._output.path)
        try:
            manifest = read_json(self._output.filesystem, path) if path else None
        except ValueError:
            return None
        return manifest if isinstance(manifest, dict) and manifest.get("job") == JOB else None


def digest_of(plan: dict[str, Any]) -> str:
    """Hash of a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _listed(keys: list[str]) -> str:
    return ", ".join(key.removesuffix("_fingerprint") for key in keys)
