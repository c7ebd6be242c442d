"""What the processes of a job hold in memory, sampled from /proc while it runs."""

import os
import subprocess
import time
from pathlib import Path

SAMPLE_SECONDS, LOOK_SECONDS = 0.01, 0.5
KINDS = {"anonymous": "RssAnon", "shared": "RssShmem", "mapped": "RssFile"}


def descendants(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, open_ends = [], [pid]
    while open_ends:
        found.append(open_ends.pop())
        open_ends.extend(parents.get(found[-1], []))
    return found


def peak_mib(job: subprocess.Popen[str], actor: str, every: float = SAMPLE_SECONDS) -> dict[str, dict[str, float]]:
    """Waits for a job; gives its peak memory of each kind, in MiB.

    Args:
        job: a running process.
        actor: how the titles of the actors begin that count.
        every: seconds between two looks.

    Returns:
        Of the job's process (`driver`), of the largest `actor`, and of all that the job runs together (`all`, where
        shared and mapped pages count in every process that has them).
    """
    peak = {name: dict.fromkeys(KINDS, 0.0) for name in ("driver", "actor", "all")}
    processes: list[int] = []
    looked = 0.0
    while job.poll() is None:
        if time.monotonic() - looked > LOOK_SECONDS:
            processes, looked = descendants(job.pid), time.monotonic()
        total = dict.fromkeys(KINDS, 0.0)
        for pid in processes:
            title, held = memory_of(pid)
            name = "driver" if pid == job.pid else "actor" if title.startswith(actor) else None
            for kind, mib in held.items():
                total[kind] += mib
                if name:
                    peak[name][kind] = max(peak[name][kind], mib)
        for kind, mib in total.items():
            peak["all"][kind] = max(peak["all"][kind], mib)
        time.sleep(every)
    return peak


def memory_of(pid: int) -> tuple[str, dict[str, float]]:
    """Title of a process, and MiB of each kind that it holds; nothing of one that has ended."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        title = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "", {}
    return title, {kind: float(lines.get(name, "0 kB").split()[0]) / 1024 for kind, name in KINDS.items()}


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process and all that it started, directly or not, and that still run, have used."""
    ticks = 0
    for one in descendants(pid):
        try:
            stat = Path(f"/proc/{one}/stat").read_text()
        except OSError:
            continue
        ticks += sum(map(int, stat.rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")
