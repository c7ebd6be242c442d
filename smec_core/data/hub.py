"""Datasets and models on the Hugging Face Hub, read as any other file system.

hf://datasets/USER/NAME[@REVISION]/FOLDER is a folder of a dataset, hf://USER/NAME[@REVISION] a model.

A URI stands for the commit that its revision is at when it is opened, so that all that is read of it belongs together;
opened again, it may stand for a later one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.errors import InputError, SmecError, StoreError, StoreUnreachable, extra, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TIMEOUT_S = 30
FORMS = {"dataset": "hf://datasets/USER/NAME[@REVISION]/FOLDER", "model": "hf://USER/NAME[@REVISION]"}

_OTHERS = ("hf://spaces/", "hf://buckets/", "hf://kernels/")


def open_hub(uri: str) -> tuple[pafs.FileSystem, str]:
    """Opens a URI of one of these forms; the Hub is HF_ENDPOINT of the environment.

    Raises:
        InputError: another form, no such thing or revision, no access to it, or huggingface_hub is missing.
        StoreUnreachable: the Hub does not answer.
    """
    if uri.startswith(_OTHERS):
        raise InputError(f"{uri}: only datasets and models are read from the Hub: {', '.join(FORMS.values())}")
    api, token = hub_api(uri)
    kind = "dataset" if uri.startswith("hf://datasets/") else "model"
    files = HubFiles(api.endpoint, token)
    try:
        with told(uri):
            try:
                place = files.fs.resolve_path(uri)
            except (ValueError, NotImplementedError) as error:
                raise InputError(f"{uri}: is not of the form {FORMS[kind]} ({one_line(error)})") from error
            commit = api.repo_info(place.repo_id, revision=place.revision, repo_type=kind, timeout=_TIMEOUT_S).sha
    except FileNotFoundError as error:
        cure = "check the name" if token else "check the name, or set HF_TOKEN if it is private"
        cure += f"; a dataset is {FORMS['dataset']}" if kind == "model" else ""
        raise InputError(f"{uri}: the Hub has no such {kind}, or no such revision of it; {cure}") from error
    prefix = "datasets/" if kind == "dataset" else ""
    return pafs.PyFileSystem(files), f"{prefix}{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/")


def hub_api(uri: str) -> "tuple[HfApi, str | None]":
    """The Hub's client, and the token: HF_TOKEN of the environment, else that of `hf auth login`.

    Raises:
        InputError: huggingface_hub is missing.
    """
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError as error:
        raise InputError(f"{uri}: needs huggingface_hub: {extra('sources')}") from error
    token = get_token()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token or False), token


@contextmanager
def told(path: str) -> Iterator[None]:
    """Turns what the Hub's client raises into errors that name the file; a missing file stays what it is."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, SmecError):
        raise
    except Exception as error:
        # of its HTTP library, which differs between versions, some are no OSError
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None or status == 429 or status >= 500:
            raise StoreUnreachable(f"{path}: the Hub cannot serve it now ({one_line(error)}); run again") from error
        raise StoreError(f"{path}: the Hub refuses it ({one_line(error)}); check the name and HF_TOKEN") from error


class HubFiles(pafs.FSSpecHandler):
    """Files of the Hub, which are only read; it travels to other processes with its token, as those of S3 do."""

    def __init__(self, endpoint: str | None, token: str | None) -> None:
        from huggingface_hub import HfFileSystem

        self.endpoint, self.token = endpoint, token
        # of its own: the caches of one that is shared outlive a change
        super().__init__(HfFileSystem(endpoint=endpoint, token=token or False, skip_instance_cache=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return HubFiles, (self.endpoint, self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HubFiles) and (self.endpoint, self.token) == (other.endpoint, other.token)

    def get_type_name(self) -> str:
        """The name of the file system."""
        return "hf"

    def shown(self, path: str) -> str:
        """The URI of a path on it."""
        return f"hf://{path}"

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """What is known of some files."""
        with told(", ".join(map(self.shown, paths))):
            found: list[pafs.FileInfo] = super().get_file_info(paths)
            return found

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """What lies in a folder."""
        folder, depth = selector.base_dir, None if selector.recursive else 1
        with told(self.shown(folder)):
            try:
                # FSSpecHandler's own takes a Hub that fails for a folder that is not there
                if self.fs.info(folder)["type"] != "directory":
                    raise NotADirectoryError(folder)
            except FileNotFoundError:
                if selector.allow_not_found:
                    return []
                raise
            names = self.fs.find(folder, maxdepth=depth, withdirs=True)
            return self.get_file_info([name for name in names if name != folder])

    def stamp_of_file(self, path: str) -> str:
        """Hash of a file's content, as git has it."""
        with told(self.shown(path)):
            return str(self.fs.info(path)["blob_id"])

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """A file to be read from its start."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A file to be read anywhere."""
        with told(self.shown(path)):
            if self.fs.info(path)["type"] != "file":
                raise FileNotFoundError(path)
            return pa.PythonFile(_ToldFile(self.fs.open(path, mode="rb"), self.shown(path)), mode="r")

    def _refuse(self, path: str, *unused: Any, **unused_too: Any) -> NoReturn:
        raise StoreError(f"{self.shown(path)}: the Hub is only read; write to another place")

    create_dir = delete_dir = delete_dir_contents = delete_file = move = copy_file = _refuse
    open_output_stream = open_append_stream = _refuse

    def delete_root_dir_contents(self) -> NoReturn:
        """Refused, as all that writes."""
        self._refuse("/")


class _ToldFile:
    """A file whose failed reads name it."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        with told(self._path):
            return bytes(self._file.read(size))
