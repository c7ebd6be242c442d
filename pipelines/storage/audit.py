"""What of a finished version, or of a run's model, is not what was written: all of it, and nothing is changed."""

import posixpath
from collections.abc import Collection, Iterator
from typing import NamedTuple

import pyarrow.fs as pafs

from pipelines.storage.files import TEMPORARY, sizes_of
from pipelines.storage.manifest import DONE, damaged
from pipelines.storage.run_folder import FINISHED, MODEL, RunFolder
from smec_core.data.records import UNREADABLE, checksum_of, exists
from smec_core.data.stored_files import StoredFile, files_of
from smec_core.data.tables import MANIFEST, find_manifest
from smec_core.data.uri import join_uri, open_filesystem, public_uri
from smec_core.data.versions import PLAN, PUBLISH, manifest_of
from smec_core.errors import DamagedError, InputError, StoreError
from smec_core.model.files import load

ELSEWHERE = "move it elsewhere, or remove it"


class Problem(NamedTuple):
    """Something that is not what was written.

    Attributes:
        path: of the file or folder, as it is shown.
        problem: what it is.
        cure: what a person can do.
        is_replaceable: whether a whole one can be put in its place without losing anything: not where there is a file
            of somebody else's, or one that may be whole and cannot be read.
    """

    path: str
    problem: str
    cure: str
    is_replaceable: bool

    @classmethod
    def of(cls, error: DamagedError, cure: str = "") -> "Problem":
        """That which an error tells of."""
        if error.problem.startswith("cannot be read"):
            return cls(error.path, error.problem, UNREADABLE, False)
        return cls(error.path, error.problem, cure or error.cure, True)


def version_problems(out: str, name: str, checksum: str = "", deep: bool = False) -> Iterator[Problem]:
    """What is wrong with a finished version.

    Args:
        out: the published folder.
        name: of the version.
        checksum: of its manifest, where that is known.
        deep: whether all bytes are read; else those of files only whose size or stamp has changed.
    """
    filesystem, root = open_filesystem(out)
    folder, public = f"{root.rstrip('/')}/{name}", public_uri(join_uri(out, name))
    try:
        manifest = manifest_of(filesystem, folder) if find_manifest(filesystem, folder) else None
        files = [] if manifest is None else files_of(manifest, f"{public}/{MANIFEST}")
    except DamagedError as error:
        yield Problem.of(error, PUBLISH)
        return
    # a copy of another one is none
    if manifest is None or manifest["version"] != name:
        gone = filesystem.get_file_info(folder).type == pafs.FileType.NotFound
        yield Problem(public, "is missing" if gone else "is no finished version", PUBLISH, True)
        return
    if checksum and checksum_of(manifest) != checksum:
        # it may say anything, also that it is what another run would write
        cure = "restore it from a copy, or remove it: then the version is made again"
        yield Problem(f"{public}/{MANIFEST}", "is not the one that was written for this release", cure, False)
    for problem in damaged(filesystem, folder, files, deep):
        yield Problem.of(problem, PUBLISH)
    listed = {MANIFEST, PLAN, *(file.name for file in files)}
    for stray in strays(filesystem, folder, listed):
        why = f"is not named in {MANIFEST}" + (", but would be read" if stray.endswith(".parquet") else "")
        yield Problem(f"{public}/{stray}", why, ELSEWHERE, False)


def model_problems(run_folder: RunFolder, fingerprint: str) -> Iterator[Problem]:
    """What is wrong with the model of a finished run; all of its bytes are read.

    Args:
        run_folder: of the run.
        fingerprint: of the model.
    """
    public, cure = public_uri(run_folder.uri), "restore it from a copy"
    filesystem, folder = run_folder.filesystem, f"{run_folder.path}/{MODEL}"
    try:
        finished = run_folder.read(FINISHED, {"files"}, cure)
        if finished is None:
            gone = not exists(filesystem, f"{folder}/config.json")
            yield Problem(f"{public}/{MODEL if gone else FINISHED}", "is missing", cure, True)
            return
        files = [StoredFile(file["name"], 0, file["bytes"], file["sha256"]) for file in finished["files"]]
    except DamagedError as error:
        yield Problem.of(error)
        return
    except (KeyError, TypeError):
        yield Problem(f"{public}/{FINISHED}", "lists no files", cure, True)
        return
    differ = [Problem.of(error, cure) for error in damaged(filesystem, folder, files)]
    yield from differ
    for stray in strays(filesystem, folder, {file.name for file in files}):
        yield Problem(f"{public}/{MODEL}/{stray}", f"is not named in {FINISHED}", ELSEWHERE, False)
    if differ:
        return
    try:
        if load(run_folder.model_uri).fingerprint != fingerprint:
            yield Problem(f"{public}/{MODEL}", "is another model than the one that was released", cure, True)
    except StoreError:
        raise
    except DamagedError as error:
        yield Problem.of(error, cure)
    except InputError as error:
        yield Problem(f"{public}/{MODEL}", str(error), cure, True)


def strays(filesystem: pafs.FileSystem, folder: str, listed: Collection[str]) -> list[str]:
    """Files in a folder that nothing of ours has put there: not those that a kill leaves, nor hidden ones."""
    found = sizes_of(filesystem, folder).keys() - set(listed)
    names = {path: posixpath.basename(path) for path in found if not path.startswith(f"{DONE}/")}
    return sorted(path for path, name in names.items() if not name.startswith(".") and not name.endswith(TEMPORARY))
