"""Replacing a model folder so that a reader finds the old one or the new one, never half of either."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from smec_core.errors import InputError


def check_replaceable(folder: Path) -> None:
    """Refuses a path that holds anything but a model.

    Raises:
        InputError: it is a file, or a folder with other things in it.
    """
    if (
        not folder.exists()
        or (folder / "adapter.safetensors").exists()
        or (folder.is_dir() and not any(folder.iterdir()))
    ):
        return
    raise InputError(f"out: {folder} exists and is not a model folder; nothing of it is overwritten, name another")


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder beside `folder`, then puts it in its place.

    Args:
        folder: where it goes; what was there is removed.
        write: fills the new folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # mkdtemp makes folders that only their owner can read
        new.chmod(0o755)
        write(new)
        if folder.exists():
            old = new.with_name(f"{new.name}.old")
            os.rename(folder, old)
            os.rename(new, folder)
            shutil.rmtree(old)
        else:
            os.rename(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
