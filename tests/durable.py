"""Kills a command before one of its durable steps, and shows the disk as a power cut would leave it.

    python -m tests.durable POINT COMMAND...     runs `smec COMMAND`; -1: to its end, and prints its steps

A step is a sync of a file or folder under the watched one, by the command's own process. What a program has not synced
is not there after a power cut: a file that was not is empty, and a name that its folder was not synced with is missing.
Real file systems mostly keep more; what holds here holds on all of them.
"""

import json
import os
import shutil
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import Any

WATCHED, IMAGE = "SMEC_TEST_WATCHED", "SMEC_TEST_IMAGE"
STEP = "step: "
_fsync, _mkdir = os.fsync, os.mkdir


class Disk:
    """What is durable of a folder, kept in another one of the same file system.

    Files are kept by hard links: no inode comes back for another file, and no file is changed once it is synced.
    """

    def __init__(self, watched: Path, image: Path) -> None:
        self._watched, self._files, self._folders = watched, image / "files", image / "folders"

    def reset(self) -> None:
        """All that is there is durable."""
        for folder in (self._files, self._folders):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for path in (self._watched, *self._watched.rglob("*")):
            self.sync(path)

    def sync(self, path: Path) -> None:
        """A file's bytes or a folder's names are durable from now on."""
        if not path.is_relative_to(self._watched):
            return
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            kept = self._files / str(found.st_ino)
            if not kept.exists():
                os.link(path, kept)
        elif stat.S_ISDIR(found.st_mode):
            names = {}
            for entry in os.scandir(path):
                names[entry.name] = [entry.inode(), entry.is_dir()]
            new = self._folders / f"{found.st_ino}.{os.getpid()}-{threading.get_ident()}"
            new.write_text(json.dumps(names))
            os.replace(new, self._folders / str(found.st_ino))

    def made(self, path: Path) -> None:
        """A new folder has no names yet, whatever another one of its inode had."""
        if path.is_relative_to(self._watched):
            (self._folders / str(path.stat().st_ino)).unlink(missing_ok=True)

    def after_a_power_cut(self, target: Path) -> None:
        """Writes what is left into a new folder."""
        self._rebuild(self._watched.stat().st_ino, target)

    def _rebuild(self, inode: int, target: Path) -> None:
        target.mkdir()
        kept = self._folders / str(inode)
        names: dict[str, list[Any]] = json.loads(kept.read_text()) if kept.exists() else {}
        for name, (number, is_folder) in names.items():
            if is_folder:
                self._rebuild(number, target / name)
            elif (file := self._files / str(number)).exists():
                shutil.copy(file, target / name)
            else:
                (target / name).touch()


def watch(point: int | None = None) -> list[str]:
    """Notes all syncs of this process; kills it before the one of a number. Gives the list that they are put on."""
    steps: list[str] = []
    if WATCHED not in os.environ:
        return steps
    disk, watched = Disk(Path(os.environ[WATCHED]), Path(os.environ[IMAGE])), Path(os.environ[WATCHED])

    def fsync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        # a lease is renewed whenever it is time
        if point is not None and path.is_relative_to(watched) and threading.current_thread().name != "lease":
            if len(steps) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            steps.append(str(path.relative_to(watched)))
        _fsync(handle)
        disk.sync(path)

    def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        _mkdir(path, *arguments, **options)
        disk.made(Path(os.fsdecode(path)).absolute())

    os.fsync, os.mkdir = fsync, mkdir  # type: ignore[assignment]
    return steps


def main(point: int, command: list[str]) -> int:
    """Runs a command of smec in this process."""
    from pipelines.cli.main import app as smec

    # sitecustomize has watched it already, without a point
    os.fsync, os.mkdir = _fsync, _mkdir
    steps = watch(point)
    sys.argv = ["smec", *command]
    try:
        smec()
    except SystemExit as ended:
        if ended.code:
            return int(str(ended.code))
    print("".join(f"{STEP}{step}\n" for step in steps))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
