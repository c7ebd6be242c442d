"""Where judgements go: DATA/qrels, which appears as a whole, and replaces nothing but what an earlier run made.

    DATA/qrels/{train,dev,test}.parquet
    DATA/qrels/_judge.json         what made them, with a checksum of each; written last
    DATA/qrels/_unfinished.json    on object stores, which cannot rename, while they are written: no job reads them then

On a local disk the folder is written beside its place, and then takes its name in one step.
"""

import posixpath
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.storage.files import new_file, remove_file, write_record
from pipelines.storage.manifest import first_damaged
from smec_core.data.records import read_record
from smec_core.data.stored_files import StoredFile, describe, files_of
from smec_core.data.tables import QRELS, UNFINISHED, find_manifest, find_qrels
from smec_core.data.uri import join_uri, open_filesystem, public_uri, without_slash
from smec_core.errors import InputError, StoreUnreachable, one_line
from smec_core.folders import replace_folder

RECORD = "_judge.json"
JOB = "judge"
FORMAT = 1


class QrelsFolder:
    """The judgements of a dataset.

    Attributes:
        uri: their folder, as it may be shown.
    """

    def __init__(self, data: str) -> None:
        self.uri = public_uri(join_uri(data, QRELS))
        self._filesystem, self._root = open_filesystem(without_slash(data))
        self._folder = posixpath.join(self._root, QRELS)

    def made(self, plan: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of an earlier run of the same plan, whose files are all there and unchanged; None without."""
        record = self._read_record()
        if record is None or self._unfinished() or record.get("plan") != plan or self._strange(record):
            return None
        return None if first_damaged(self._filesystem, self._folder, files_of(record)) else record

    def check_replaceable(self, replace: bool) -> None:
        """Refuses judgements that no earlier run made, or that were changed since.

        Args:
            replace: whether these may be replaced, too; what cannot be told may not.

        Raises:
            InputError: such judgements are there.
        """
        self._judgements()
        if replace:
            return
        advice = "nothing of it is replaced; move it away, or give --replace"
        if self._unfinished():
            return
        record = self._read_record()
        if strange := self._strange(record):
            raise InputError(f"{strange}: was not made by smec judge; {advice}")
        if record is None:
            return
        if problem := first_damaged(self._filesystem, self._folder, files_of(record)):
            raise InputError(f"{problem.path}: {problem.problem} since smec judge made it; {advice}")

    def write(self, tables: Mapping[str, pa.Table], head: Mapping[str, Any]) -> None:
        """Puts judgements in their place, instead of all that are there.

        Args:
            tables: by split.
            head: what the record says beside the files.

        Raises:
            InputError: they cannot be written there.
        """
        head = {"format": FORMAT, "job": JOB, **head}
        try:
            self._release_from_manifest()
            if isinstance(self._filesystem, pafs.LocalFileSystem):
                replace_folder(Path(self._folder), lambda folder: self._fill(folder, tables, head))
            else:
                self._replace_objects(tables, head)
        except StoreUnreachable:
            raise
        except OSError as error:
            problem = one_line(error)
            raise InputError(f"{self.uri}: cannot be written to ({problem}); make room, or ask for access") from error

    def _fill(self, folder: Path, tables: Mapping[str, pa.Table], head: Mapping[str, Any]) -> None:
        """Writes a new folder, with the notes of the old one."""
        old = {Path(path) for path in self._judgements()} | {Path(self._folder) / RECORD}
        for path in Path(self._folder).iterdir() if Path(self._folder).is_dir() else ():
            if not any(path == one or path in one.parents for one in old):
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder / path.name)
        files = [_write(self._filesystem, str(folder), split, table) for split, table in tables.items()]
        write_record(self._filesystem, str(folder / RECORD), _record(head, files))

    def _replace_objects(self, tables: Mapping[str, pa.Table], head: Mapping[str, Any]) -> None:
        """Replaces one object after another; who reads them meanwhile is told."""
        mark = posixpath.join(self._folder, UNFINISHED)
        write_record(self._filesystem, mark, {"job": JOB})
        for path in [*self._judgements(), posixpath.join(self._folder, RECORD)]:
            remove_file(self._filesystem, path)
        files = [_write(self._filesystem, self._folder, split, table) for split, table in tables.items()]
        write_record(self._filesystem, posixpath.join(self._folder, RECORD), _record(head, files))
        remove_file(self._filesystem, mark)

    def _judgements(self) -> list[str]:
        """Files that are read as judgements now."""
        found = find_qrels(self._filesystem, self._root, unfinished=True)
        return [path for table in found.values() for path in table.paths]

    def _strange(self, record: Mapping[str, Any] | None) -> str | None:
        """The first judgements that a record does not list."""
        listed = {posixpath.join(self._folder, file.name) for file in files_of(record)} if record else set()
        return next((path for path in self._judgements() if path not in listed), None)

    def _read_record(self) -> dict[str, Any] | None:
        path = posixpath.join(self._folder, RECORD)
        record = read_record(self._filesystem, path, f"remove {self.uri}, or give --replace")
        return record if record and record.get("job") == JOB else None

    def _unfinished(self) -> bool:
        found = self._filesystem.get_file_info(posixpath.join(self._folder, UNFINISHED))
        return bool(found.type == pafs.FileType.File)

    def _release_from_manifest(self) -> None:
        """Takes judgements that are replaced from the manifest of `smec ingest`, which has their checksums."""
        path = find_manifest(self._filesystem, self._root)
        manifest = read_record(self._filesystem, path) if path else None
        if path is None or not manifest or not isinstance(manifest.get("files"), list):
            return
        kept = [file for file in manifest["files"] if not str(file.get("name", "")).startswith(f"{QRELS}/")]
        if kept != manifest["files"]:
            write_record(self._filesystem, path, {**manifest, "files": kept})


def _record(head: Mapping[str, Any], files: list[StoredFile]) -> dict[str, Any]:
    return {**head, "files": [file._asdict() for file in files]}


def _write(filesystem: pafs.FileSystem, folder: str, split: str, table: pa.Table) -> StoredFile:
    name = f"{split}.parquet"
    with new_file(filesystem, f"{folder}/{name}") as sink:
        pq.write_table(table, sink)
    return describe(filesystem, f"{folder}/{name}", name, len(table))
