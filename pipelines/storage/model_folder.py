"""Folders that are replaced as a whole: the new one is written beside the old and then renamed into its place."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from smec_core.data.uri import HALF_A_URI
from smec_core.errors import InputError

MODEL_FILES = {"adapter.safetensors", "config.json", "metrics.json", "history.jsonl", "README.md"}


def check_local_path(value: str) -> str:
    """A path as it is.

    Raises:
        ValueError: it is a URI.
    """
    if "://" in value or HALF_A_URI.match(value):
        raise ValueError("must be a path, not a URI")
    return value


LocalPath = Annotated[str, AfterValidator(check_local_path)]
"""A file or folder on the machine where the job is started."""


def check_replaceable(folder: Path) -> None:
    """Refuses a path where no model can be put: it holds anything else, all of which would be replaced, or is closed.

    Raises:
        InputError: it is a file, a folder with other things in it, a mount point or where we are, or nothing can be
            written beside it.
    """
    try:
        folder = folder.resolve()
    except RuntimeError as error:
        raise InputError(f"out: {folder} is a link to itself; name another") from error
    if Path.cwd().is_relative_to(folder):
        raise InputError(f"out: {folder} holds the working directory; name another")
    if os.path.ismount(folder):
        raise InputError(f"out: {folder} is a mount point, which nothing can replace; name a folder in it")
    # pathlib's own tests raise where a folder may not be looked into
    beside = next(place for place in folder.parents if os.path.exists(place))
    if not beside.is_dir() or not os.access(beside, os.W_OK | os.X_OK):
        why = "may not be written to" if beside.is_dir() else "is a file"
        raise InputError(f"out: {folder} cannot be made, {beside} {why}; name another")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"out: {folder} is a file; nothing of it is overwritten, name a folder")
    if others := {path.name for path in folder.iterdir()} - MODEL_FILES:
        raise InputError(
            f"out: {folder} is not a model folder, it holds {min(others)}; nothing of it is overwritten, name another"
        )


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder beside `folder`, then puts it in its place.

    A reader never meets half a folder. Between two renames, for an instant, it may meet none.

    Args:
        folder: where it goes, also through a link; what was there is removed.
        write: fills the new folder.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # mkdtemp makes folders that only their owner can read
        new.chmod(0o755)
        write(new)
        put_in_place(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def put_in_place(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; what was there comes back if that fails, and is removed if not."""
    old = new.with_name(f"{new.name}.old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
