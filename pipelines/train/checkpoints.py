"""The checkpoints in a run's folder, and which of them a start of the training goes on from.

    STORAGE/NAME/NAME.start-2/                     what Ray Train keeps for the second start of this run
    STORAGE/NAME/NAME.start-2/checkpoint_TIME/     a checkpoint:
        *.safetensors                              the training (smec_core/training/checkpoint.py)
        history.jsonl                              all figures up to here
        files-RANK.json                            the files that this rank wrote, with their checksums, and how many
                                                   ranks write some

Ranks upload their files side by side while the training goes on, and Ray rewrites in place the file that names its
checkpoints, so a kill can leave half of either behind. So each start has a folder of its own, in which Ray finds
nothing: what a run goes on from is the newest checkpoint of which every file is here and as it was written, from
whatever start. When it has been read, it is taken along to the new folder, and all others are removed. What a left-over
process of a killed start may still write or remove is in that start's folder.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as pafs
from ray.train import Checkpoint
from safetensors import SafetensorError

from pipelines.console import say, warn
from pipelines.storage.files import create_folder
from pipelines.storage.run_folder import RunFolder
from smec_core.checksums import sha256_of
from smec_core.data.records import as_record, parse_record, read_record
from smec_core.data.uri import shown_path
from smec_core.errors import DamagedError, one_line
from smec_core.training import checkpoint as training
from smec_core.training.trained import TRAINED_FILE, Trained

RUN_AGAIN = "run again, which goes on from an earlier checkpoint"

_LIST = re.compile(r"files-(\d+)\.json")


class Start(NamedTuple):
    """A start of a run.

    Attributes:
        name: of its Ray Train run, and of its folder.
        checkpoint: what it goes on from.
        is_trained: whether that is the last checkpoint of a training.
    """

    name: str
    checkpoint: Checkpoint | None
    is_trained: bool


def write_file_list(folder: Path, rank: int, ranks: int, number: int) -> None:
    """Notes what one rank puts into a checkpoint; to be called when its files are in the folder.

    Args:
        folder: local folder of its files.
        rank: this rank.
        ranks: how many write to the checkpoint.
        number: the checkpoint's place among those of the run.
    """
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in folder.iterdir()}
    (folder / f"files-{rank}.json").write_bytes(as_record({"number": number, "ranks": ranks, "files": files}))


def open_checkpoint(folder: Path, public: str = "") -> int:
    """Compares all files of a checkpoint in a local folder with its lists.

    Args:
        folder: the checkpoint.
        public: how it is called in messages.

    Returns:
        Its place among those of the run.

    Raises:
        DamagedError: a file is not what was written.
    """
    number = 0
    for path in sorted(folder.glob("files-*.json")):
        content = parse_record(path.read_bytes(), f"{public}/{path.name}", RUN_AGAIN)
        if missing := {"number", "files"} - content.keys():
            raise DamagedError(f"{public}/{path.name}", f"has no key {min(missing)}", RUN_AGAIN)
        number = int(content["number"])
        for name, kept in content["files"].items():
            # earlier versions kept sizes alone
            if not isinstance(kept, int) and sha256_of(folder / name) != kept["sha256"]:
                raise DamagedError(f"{public}/{name}", "is not as it was written: its checksum differs", RUN_AGAIN)
    return number


def has_checkpoint(run_folder: RunFolder) -> bool:
    """Whether a start would go on from a whole checkpoint."""
    found = _all_checkpoints(run_folder, dict(_starts(run_folder)))
    return any(one.number is not None for one in found)


def begin_start(run_folder: RunFolder) -> Start:
    """Finds the newest whole checkpoint, removes all others, and names the next start."""
    filesystem = run_folder.filesystem
    starts = dict(_starts(run_folder))
    found = _all_checkpoints(run_folder, starts)
    whole = sorted((one for one in found if one.number is not None), key=lambda one: one.order, reverse=True)
    # what it goes on from is read before the others go
    newest = next((one for one in whole if _can_be_read(filesystem, one)), None)
    if newest is None and found:
        say("none of the checkpoints that were being written is whole; training starts again")
    name = f"{run_folder.name}.start-{max(starts, default=0) + 1}"
    checkpoint = None
    if newest is not None:
        checkpoint = Checkpoint(_take_along(run_folder, newest.path, name), filesystem)
    for path in starts.values():
        # what a killed start has left may still be writing there
        with suppress(OSError):
            filesystem.delete_dir(path)
    return Start(name, checkpoint, newest is not None and newest.is_trained)


def _can_be_read(filesystem: pafs.FileSystem, found: "_Found") -> bool:
    """Whether a checkpoint is what was written; one that is not is told of."""
    shown = shown_path(filesystem, found.path)
    try:
        with Checkpoint(found.path, filesystem).as_directory() as folder:
            open_checkpoint(Path(folder), shown)
            if found.is_trained:
                Trained.read(Path(folder))
            else:
                training.Checkpoint.read(Path(folder))
        return True
    except (DamagedError, SafetensorError, FileNotFoundError, ValueError, TypeError, KeyError) as error:
        # whatever else fails may pass: nothing is removed for it
        problem = error.problem if isinstance(error, DamagedError) else one_line(error)
        path = error.path if isinstance(error, DamagedError) else shown
        warn(f"{path}: {problem}; an earlier checkpoint is taken")
        return False


def _take_along(run_folder: RunFolder, path: str, name: str) -> str:
    """Brings a checkpoint into the folder of the next start, where nothing that a killed one has left removes it."""
    target = f"{run_folder.path}/{name}/{path.rpartition('/')[2]}"
    create_folder(run_folder.filesystem, f"{run_folder.path}/{name}")
    if run_folder.local_path is not None:
        run_folder.filesystem.move(path, target)
    else:
        pafs.copy_files(path, target, run_folder.filesystem, run_folder.filesystem)
    return target


def remove_checkpoints(run_folder: RunFolder) -> None:
    """Removes the checkpoints of all starts, which a finished run does not need."""
    for _, path in _starts(run_folder):
        with suppress(OSError):
            run_folder.filesystem.delete_dir(path)


class _Found(NamedTuple):
    start: int
    path: str
    number: int | None
    """Its place among the run's; None where it is not whole."""
    is_trained: bool

    @property
    def order(self) -> tuple[int, int, str]:
        return self.number or 0, self.start, self.path


def _starts(run_folder: RunFolder) -> Iterator[tuple[int, str]]:
    pattern = re.compile(re.escape(run_folder.name) + r"\.start-(\d+)")
    for info in run_folder.filesystem.get_file_info(pafs.FileSelector(run_folder.path, allow_not_found=True)):
        match = pattern.fullmatch(info.base_name)
        if match and info.type == pafs.FileType.Directory:
            yield int(match[1]), info.path


def _all_checkpoints(run_folder: RunFolder, starts: Mapping[int, str]) -> list[_Found]:
    return [one for number, path in starts.items() for one in _checkpoints(run_folder.filesystem, number, path)]


def _checkpoints(filesystem: pafs.FileSystem, start: int, path: str) -> list[_Found]:
    sizes: dict[str, dict[str, int]] = {}
    for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
        folder, _, name = info.path.removeprefix(f"{path}/").partition("/")
        if info.type == pafs.FileType.Directory and not name:
            sizes.setdefault(folder, {})
        elif name:
            sizes.setdefault(folder, {})[name] = info.size
    return [
        _Found(start, f"{path}/{name}", _number(filesystem, f"{path}/{name}", files), TRAINED_FILE in files)
        for name, files in sizes.items()
    ]


def _number(filesystem: pafs.FileSystem, path: str, sizes: dict[str, int]) -> int | None:
    """The number of a checkpoint that has all files of all ranks."""
    lists = {}
    try:
        for name in sizes:
            if match := _LIST.fullmatch(name):
                lists[int(match[1])] = read_record(filesystem, f"{path}/{name}") or {}
        if 0 not in lists or len(lists) != lists[0]["ranks"]:
            return None
        kept = {name: one for content in lists.values() for name, one in content["files"].items()}
        is_whole = all(sizes.get(name) == (one if isinstance(one, int) else one["bytes"]) for name, one in kept.items())
        return int(lists[0]["number"]) if is_whole else None
    except (DamagedError, KeyError, TypeError):
        return None
