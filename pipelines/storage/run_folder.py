"""The folder STORAGE/NAME in which a training run keeps its state, on a file system or an object store.

    STORAGE/NAME/lease.json           the process that trains it now (pipelines/storage/lease.py)
    STORAGE/NAME/run.json             the settings and data of this run
    STORAGE/NAME/mlflow_run.json      the run in MLflow that a restart goes on in (pipelines/tracking/recorder.py)
    STORAGE/NAME/ray_run.json         the last run in Ray Train, of which a kill leaves something (train/driver.py)
    STORAGE/NAME/threads.json         CPUs of each worker, where the settings left that open (train/driver.py)
    STORAGE/NAME/model/*              the trained model
    STORAGE/NAME/finished.json        lists the files of model/; written last, so where it is the model is whole
    STORAGE/NAME/NAME.start-*/        while it trains, its checkpoints (pipelines/train/checkpoints.py)

where STORAGE is what the user names, and NAME the run.
"""

import hashlib
import json
import posixpath
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipelines.storage.apart import check_no_file
from pipelines.storage.files import create_folder, new_file, remove_file, remove_folder, write_record
from smec_core.checksums import READ_BYTES, sha256_of
from smec_core.data.records import UNREADABLE, exists, read_record
from smec_core.data.uri import join_uri, open_filesystem, public_uri, without_slash
from smec_core.errors import DamagedError, InputError, StoreUnreachable, one_line

MODEL = "model"
FINISHED = "finished.json"
IDENTITY_FILE = "run.json"
RESTORE = "restore it from a copy, or take another name for a new run"


class RunFolder:
    """The folder of one run.

    Attributes:
        name: the run's name.
        uri: absolute path or URI of the folder, with its options; show it through `public_uri`.
        filesystem: where it is.
        storage_path: on that file system, the folder that holds the folders of all runs.
        path: on that file system, this run's folder.

    Example:
        >>> run_folder = RunFolder("s3://bucket/runs?region=eu-west-1", "nightly")
        >>> run_folder.path
        'bucket/runs/nightly'
    """

    def __init__(self, storage: str, name: str) -> None:
        """Finds the folder; nothing is made yet.

        Args:
            storage: folder of all runs, a local path or a URI that pyarrow.fs opens.
            name: run name.

        Raises:
            InputError: no file system for this URI.
        """
        self.filesystem, root = open_filesystem(storage)
        # a process with another working directory finds it, too
        storage = storage if "://" in storage else root
        self._storage, self.name = storage, name
        self.uri = join_uri(storage, name)
        self.storage_path = without_slash(root)
        self.path = join_uri(self.storage_path, name)

    @property
    def local_path(self) -> Path | None:
        """The folder on a local or mounted file system; None on an object store."""
        return Path(self.path) if isinstance(self.filesystem, pafs.LocalFileSystem) else None

    @property
    def model_uri(self) -> str:
        """Path or URI of the finished model."""
        return join_uri(self.uri, MODEL)

    def sibling(self, name: str) -> "RunFolder":
        """The folder of another run in the same storage."""
        return RunFolder(self._storage, name)

    def create(self) -> None:
        """Makes the folder where it is missing.

        Raises:
            InputError: it cannot be made or written to.
        """
        try:
            create_folder(self.filesystem, self.path)
        except StoreUnreachable:
            raise
        except OSError as error:
            raise InputError(f"storage: {public_uri(self.uri)} cannot be written to ({one_line(error)})") from error

    def read(self, name: str, keys: Collection[str] = (), cure: str = RESTORE) -> Any:
        """The content of a record; None where there is no such file.

        Args:
            name: of the file.
            keys: that it must have.
            cure: what helps where it is damaged.

        Raises:
            DamagedError: it is not what was written.
        """
        public = public_uri(join_uri(self.uri, name))
        try:
            content = read_record(self.filesystem, f"{self.path}/{name}", cure)
        except DamagedError as error:
            raise DamagedError(public, error.problem, error.cure if error.cure == UNREADABLE else cure) from error
        if content is not None and (missing := set(keys) - content.keys()):
            raise DamagedError(public, f"has no key {min(missing)}", cure)
        return content

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Writes or replaces a record; a reader meets the old or the new one, never half of it."""
        write_record(self.filesystem, f"{self.path}/{name}", content)

    def claim(self, identity: Any) -> None:
        """Ties the folder to what decides its result; only the holder of its lease may call it.

        Raises:
            InputError: it is another's.
        """
        if self.read(IDENTITY_FILE) is None:
            self.write(IDENTITY_FILE, identity)
        self.check(identity)

    def check(self, identity: Any) -> None:
        """Refuses a folder that is tied to something else; ties it to nothing.

        Raises:
            InputError: it is another's.
        """
        if self.read(IDENTITY_FILE) not in (None, identity):
            raise InputError(
                f"name: {public_uri(self.uri)} was made with other settings or data; choose another --name"
            )

    @property
    def is_finished(self) -> bool:
        """Whether a whole model is stored here."""
        return exists(self.filesystem, f"{self.path}/{FINISHED}")

    def store_model(self, model_folder: Path) -> None:
        """Stores a local model folder and marks the run as finished; replaces what an earlier attempt has left."""
        remove_file(self.filesystem, f"{self.path}/{FINISHED}")
        stored = f"{self.path}/{MODEL}"
        remove_folder(self.filesystem, stored)
        create_folder(self.filesystem, stored)
        files = sorted(model_folder.iterdir())
        listed = [_describe(file) for file in files]
        for file in files:
            with file.open("rb") as source, new_file(self.filesystem, f"{stored}/{file.name}") as sink:
                shutil.copyfileobj(source, sink, READ_BYTES)
        self.write(FINISHED, {"format": 2, "files": listed})

    def remove(self) -> None:
        """Removes the folder with all that is in it; killed in the middle it leaves no run that passes for finished."""
        remove_file(self.filesystem, f"{self.path}/{FINISHED}")
        remove_folder(self.filesystem, self.path, IDENTITY_FILE)

    def fetch_model(self, folder: Path) -> None:
        """Copies the finished model into an empty local folder.

        Raises:
            DamagedError: a file is missing, or is not the one that was stored.
        """
        public = public_uri(self.uri)
        cure = f"restore it from a copy; to train again, remove {public}/{FINISHED}"
        finished = self.read(FINISHED, {"files"}, cure)
        if finished is None:
            raise DamagedError(f"{public}/{FINISHED}", "is missing", cure)
        for entry in finished["files"]:
            name, problem = entry["name"], None
            if posixpath.basename(name) != name:
                raise DamagedError(f"{public}/{FINISHED}", f"names {name!r}, which is no file of a model", cure)
            stored = f"{self.path}/{MODEL}/{name}"
            try:
                with (
                    self.filesystem.open_input_stream(stored, compression=None) as source,
                    (folder / name).open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, READ_BYTES)
                if _describe(folder / name) != entry:
                    problem = "was changed after the run had finished"
            except FileNotFoundError:
                problem = "was removed after the run had finished"
            if problem:
                raise DamagedError(f"{public}/{MODEL}/{name}", problem, cure)


def _describe(file: Path) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def digest(identity: dict[str, Any]) -> str:
    """A short name for what decides a result."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()


def check_storage(uri: str | None) -> None:
    """Refuses a place of runs that cannot be reached or is a file, before the data are read.

    Raises:
        InputError: it is none.
        SmecError: it cannot be read.
    """
    if uri is not None:
        check_no_file("storage", uri)
        RunFolder(uri, "smec").read(IDENTITY_FILE)
