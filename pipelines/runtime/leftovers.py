"""What a Ray of ours leaves on this machine, where its driver could not end it: processes, and its folder.

Ray's daemons end with their driver (the kernel sees to it), and workers a moment later. Two agents go on: they tell the
dead cluster why they end, and wait for its answer. Each Ray that a job starts has a folder of its own, which is locked
while its driver lives (smec_core/temporary.py), and in which all of its processes have their logs open. By that they
are found.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from smec_core.temporary import left_behind

GONE_SECONDS = 5.0
ROUNDS = 3


def remove_left(base: Path) -> None:
    """Removes the folders of this user's dead processes, after whatever of a Ray still runs in them.

    Args:
        base: where they lie.
    """
    for folder in left_behind(base):
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def end_processes(folder: Path) -> None:
    """Kills the processes of the Ray whose folder it is, and waits until they are gone."""
    for _ in range(ROUNDS):
        # one may just have started another
        found = list(_processes_of(folder))
        if not found:
            return
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, GONE_SECONDS)


def _processes_of(folder: Path) -> Iterator[psutil.Process]:
    """Processes of this user that are Ray's, and have a file open in the folder, or were told of it."""
    spec = find_spec("ray")
    package = str(Path(str(spec.origin)).parent) if spec else "ray::"
    start = f"{folder}{os.sep}"
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.uids().effective != os.geteuid():
                continue
            words = process.cmdline()
            # a person may look at the logs
            if not any(word.startswith(("ray::", package)) for word in words[:3]):
                continue
            # the latter before it has opened a log
            if any(file.path.startswith(start) for file in process.open_files()) or start in " ".join(words):
                yield process
