"""What a folder of large files holds, by its manifest: each file with size, checksum and stamp.

damaged, first_damaged           which of its files are not what was written
finish_task, finished_task       what the tasks of a folder that is being written have finished
seal                             the manifest, written last, makes the folder a finished one
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.fs as pafs

from pipelines.console import RowProgress
from pipelines.storage.files import remove_file, remove_folder, sizes_of, swap, write_record
from smec_core.data.records import as_record, read_record
from smec_core.data.stored_files import StoredFile, files_of, problem_of
from smec_core.data.tables import MANIFEST
from smec_core.data.uri import join_uri, open_filesystem, public_uri, shown_path
from smec_core.errors import DamagedError, SmecError

DONE = "_done"


def damaged(
    filesystem: pafs.FileSystem, folder: str, files: Sequence[StoredFile], deep: bool = False
) -> Iterator[DamagedError]:
    """Each of a folder's files that is not what was written, as an error without a cure of its own."""
    pool, progress = ThreadPoolExecutor(8), RowProgress("looked at", sum(file.bytes for file in files), "bytes")
    try:
        problems = pool.map(lambda file: problem_of(filesystem, folder, file, deep), files)
        for file, problem in zip(files, problems, strict=True):
            progress.add(file.bytes)
            if problem:
                yield DamagedError(shown_path(filesystem, f"{folder}/{file.name}"), problem)
    finally:
        pool.shutdown(cancel_futures=True)


def first_damaged(filesystem: pafs.FileSystem, folder: str, files: Sequence[StoredFile]) -> DamagedError | None:
    """The first of these; None where all files are what was written."""
    return next(damaged(filesystem, folder, files), None)


def finish_task(
    filesystem: pafs.FileSystem, folder: str, task: str, files: Sequence[StoredFile], plan: str = ""
) -> None:
    """Notes in a folder that is being written what files a task of its plan has finished."""
    content = {"plan": plan, "files": [file._asdict() for file in files]}
    write_record(filesystem, f"{folder}/{DONE}/{task}.json", content)


def finished_task(filesystem: pafs.FileSystem, folder: str, task: str, plan: str = "") -> list[StoredFile] | None:
    """The files of a task that an earlier, killed run has finished; None where one of them is not what it wrote."""
    try:
        content = read_record(filesystem, f"{folder}/{DONE}/{task}.json")
    except DamagedError:
        return None
    if content is None or content["plan"] != plan:
        return None
    files = files_of(content)
    return None if first_damaged(filesystem, folder, files) else files


def seal(uri: str, manifest: Mapping[str, Any], files: Sequence[StoredFile]) -> dict[str, Any]:
    """Writes the manifest, which makes a folder a finished one, and removes what it does not list.

    Args:
        uri: of the folder.
        manifest: what it says beside the files.
        files: all files of the folder.

    Returns:
        The manifest.

    Raises:
        SmecError: a listed file is missing, or is not the one that was described; or another process has sealed it.
    """
    filesystem, folder = open_filesystem(uri)
    folder = folder.rstrip("/")
    if problem := first_damaged(filesystem, folder, files):
        raise SmecError(f"{problem.path}: {problem.problem}; it was changed after it was written; run again")
    manifest = {**manifest, "files": [file._asdict() for file in files]}
    if not swap(join_uri(uri, MANIFEST), None, as_record(manifest)):
        raise SmecError(f"{public_uri(uri)}: another run finished it meanwhile; run again")
    tidy(filesystem, folder, files)
    return manifest


def tidy(filesystem: pafs.FileSystem, folder: str, files: Sequence[StoredFile]) -> None:
    """Removes from a finished folder what its manifest does not list; the last to go tells that it was done."""
    for stray in sizes_of(filesystem, folder).keys() - {MANIFEST, *(file.name for file in files)}:
        if not stray.startswith(f"{DONE}/"):
            remove_file(filesystem, f"{folder}/{stray}")
    remove_folder(filesystem, f"{folder}/{DONE}")
