"""Files that a new version takes over from the version in force: those made of input that has not changed since."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from pipelines.compress.actor import QUARANTINE, Job, Piece
from pipelines.console import RowProgress
from pipelines.runtime.file_tasks import record, report_errors, run_file_tasks
from pipelines.storage.files import copy_file
from pipelines.storage.manifest import finish_task, finished_task
from pipelines.storage.publish import FORMAT, plan_of
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.stored_files import StoredFile, describe, files_of
from smec_core.data.table_files import FileState
from smec_core.data.uri import open_filesystem, shown_path
from smec_core.data.versions import current, manifest_of
from smec_core.errors import InputError, SmecError, one_line


class Earlier(NamedTuple):
    """What of the version in force can be taken over.

    Attributes:
        version: its name; empty where there is nothing.
        folder: where it lies.
        files: the files of each piece, by the piece's name.
    """

    version: str = ""
    folder: str = ""
    files: Mapping[str, Sequence[StoredFile]] = {}


def inputs_of(table: EmbeddingTable, pieces: Sequence[Piece], states: Sequence[FileState]) -> dict[str, dict[str, Any]]:
    """For the manifest: which rows of which file a piece was made of, by its name, and how that file was then.

    Args:
        table: the input.
        pieces: of it.
        states: of its files, from before they were read.
    """
    found = {}
    # not the whole path: a dataset on the Hub has its commit in that
    folder = posixpath.commonpath([posixpath.dirname(part.path) for part in table.files])
    # names that are there twice tell of no file
    counts = Counter(state.name for state in states)
    known = {state.name: state for state in states if counts[state.name] == 1}
    for piece in pieces:
        part = table.files[piece.part]
        # a file that was added since makes the run fail at its end
        state = known.get(posixpath.basename(part.path), FileState("", 0, 0))
        rows = [piece.start - part.start, piece.stop - part.start]
        # a time of modification is no stamp: programs can set it
        stamp = state.stamp if isinstance(state.stamp, str) else ""
        found[piece.name] = {
            "file": part.path.removeprefix(f"{folder}/"),
            "rows": rows,
            "bytes": state.bytes,
            "stamp": stamp,
        }
    return found


def find_earlier(
    out: str, plan: Mapping[str, Any], inputs: Mapping[str, Any], job: Job, pieces: list[Piece]
) -> Earlier:
    """What a version that is to be made of some pieces can take over.

    Args:
        out: the published folder.
        plan: of the new version. That of the version in force must be the same but for the input's files.
        inputs: of the new version, by piece; see `inputs_of`.
        job: that makes it.
        pieces: of the input.
    """
    try:
        uri = current(out)
        filesystem, folder = open_filesystem(uri)
        manifest = manifest_of(filesystem, folder) or {}
        listed = {file.name: file for file in files_of(manifest)} if manifest.get("format") == FORMAT else {}
    except InputError:
        # nothing is in force, or it is damaged
        return Earlier()
    # manifests of earlier versions lack the inputs
    if plan_of(manifest) | {"input_fingerprint": ""} != {**plan, "input_fingerprint": ""} or "inputs" not in manifest:
        return Earlier()
    files = {}
    for piece in pieces:
        names = [*job.targets(piece).values()]
        is_same = inputs[piece.name]["stamp"] and manifest["inputs"].get(piece.name) == inputs[piece.name]
        if is_same and listed.keys() >= set(names):
            names.append(f"{QUARANTINE}/{piece.name}")
            files[piece.name] = [listed[name] for name in names if name in listed]
    return Earlier(manifest["version"], folder, files)


def take_over(earlier: Earlier, job: Job, workers: int) -> tuple[dict[str, StoredFile], int]:
    """Copies what can be taken over into the new version.

    Returns:
        The files by name, without those of pieces that are to be compressed anew, and how many rows of vectors they
        hold.
    """
    if not earlier.files:
        return {}, 0
    # the first file of a piece is of the largest dim: each row counts once
    rows = {files[0].name: files[0].rows for files in earlier.files.values()}
    tasks = [{"name": piece} for piece in earlier.files]
    arguments = {"earlier": earlier, "filesystem": job.filesystem, "folder": job.folder}
    taken: dict[str, StoredFile] = {}
    progress = RowProgress("took over", sum(rows.values()))
    for _, done in run_file_tasks(TakeOver, arguments, tasks, min(workers, len(tasks)), gpus=0):
        if done:
            taken[done.name] = done
            progress.add(rows.get(done.name, 0))
    return taken, progress.rows


class TakeOver:
    """Ray actor that copies a piece's files a call, and hands none back where one of them is not what was written."""

    def __init__(self, earlier: Earlier, filesystem: pafs.FileSystem, folder: str) -> None:
        self.earlier, self.filesystem, self.folder = earlier, filesystem, folder

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Takes the name of a piece as a dict, gives records as `run_file_tasks` reads them."""
        return report_errors(self._take(task["name"]), shown_path(self.filesystem, f"{self.folder}/{task['name']}"))

    def _take(self, piece: str) -> Iterator[dict[str, Any]]:
        # another name than that of a piece that was compressed: what a killed run took over is known to the next one
        task = f"{piece}.{self.earlier.version}"
        files = finished_task(self.filesystem, self.folder, task)
        if files is None:
            files = []
            for file in self.earlier.files[piece]:
                copied = self._copy(file)
                if isinstance(copied, str):
                    place = shown_path(self.filesystem, f"{self.earlier.folder}/{file.name}")
                    yield record(warning=f"{place}: {copied}; its rows are compressed anew")
                    return
                files.append(copied)
            finish_task(self.filesystem, self.folder, task, files)
        for file in files:
            yield record(done=file)

    def _copy(self, file: StoredFile) -> StoredFile | str:
        """Copies a file and reads the copy, which tells of both; what is wrong where it is not what was written."""
        target = f"{self.folder}/{file.name}"
        try:
            copy_file(self.filesystem, f"{self.earlier.folder}/{file.name}", target)
            copied = describe(self.filesystem, target, file.name, file.rows)
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            if isinstance(error, SmecError) and not isinstance(error, InputError):
                raise
            return f"cannot be copied ({one_line(error)})"
        if (copied.bytes, copied.sha256) != (file.bytes, file.sha256):
            return "is not as it was written: its checksum differs"
        return copied
