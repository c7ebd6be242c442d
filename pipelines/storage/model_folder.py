"""Where a model folder may be put, and what is in it."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from smec_core.checksums import SUMS
from smec_core.data.uri import HALF_A_URI
from smec_core.errors import InputError, one_line

MODEL_FILES = {
    "adapter.safetensors",
    "seen.safetensors",
    "config.json",
    "metrics.json",
    "history.jsonl",
    "README.md",
    SUMS,
}


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


def make_out(out: Path, key: str = "out", cure: str = "name another folder") -> None:
    """Makes a folder that a job writes to, before it begins to work.

    Args:
        out: the folder.
        key: the setting that names it.
        cure: what to do where it cannot be used.

    Raises:
        InputError: it cannot be made, or may not be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"{key}: {out} is a file; name a folder") from error
    except OSError as error:
        raise InputError(f"{key}: {out} cannot be made ({one_line(error)}); {cure}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"{key}: {out} may not be written to; {cure}")


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
