"""Reading a corpus into resident rows, by Ray Data and in one process, beside a plain loop of pyarrow, in one run.

    python -m benchmarks.ingest [--rows 200000,400000] [--dim 768] [--files 8] [--rounds 3] [--json FILE]

All end with one float32 matrix of unit rows. The plain loop reads the columns id and embedding with one thread,
normalises each batch and copies it into a matrix made before; it checks nothing. `local` is that of one process
(smec_core.training.local), `ray` is what a training worker does (pipelines.data.stream: the first GiB by itself, the
rest by Ray Data), with shared memory for the matrix; both check every row. Every job is a process of its own, in turn;
the files are in the page cache for all.

`whole` is the rate from the call to the last row: of `ray` with the start of one execution and of its readers, but
without Ray's own. `steady` is the rate from the first rows on. `core` is the whole rate by second of CPU of all of
the job's processes: two readers at once use two cores where the plain loop has one.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.timing import ONE_THREAD

os.environ |= ONE_THREAD

import numpy as np
import torch
from torch import Tensor

from benchmarks.generated import write_corpus
from benchmarks.processes import cpu_seconds
from smec_core.data.parquet import EmbeddingTable
from smec_core.distributed.resident import SHARED_MEMORY, Node, ResidentRows, Stream

ROW_GROUP_ROWS, BATCH_ROWS = 25_000, 8192
JOBS = ("plain", "local", "ray")


class Arrivals:
    """When the rows of a stream arrive."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.times: list[tuple[float, int]] = []

    def __call__(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Reads rows as the stream does."""
        for row_N, x_ND in self._stream(start, stop):
            self.times.append((time.perf_counter(), len(row_N)))
            yield row_N, x_ND


def plain(table: EmbeddingTable) -> list[tuple[float, int]]:
    """The loop to compare with; gives when the rows of each batch arrived."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    x_ND = np.empty((table.rows, table.dim), np.float32)
    ids, row, times = [], 0, []
    for part in table.files:
        with pq.ParquetFile(part.path, pre_buffer=False, buffer_size=8 << 20) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["id", "embedding"], use_threads=False):
                times.append((time.perf_counter(), len(batch)))
                ids.append(batch["id"])
                vectors_ND = batch["embedding"].flatten().to_numpy().reshape(-1, table.dim)
                norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
                np.divide(vectors_ND, norm_N1, out=x_ND[row : row + len(batch)])
                row += len(batch)
    return times


def local(table: EmbeddingTable) -> list[tuple[float, int]]:
    from smec_core.training.local import local_stream

    return _filled(table, local_stream(table), Node())


def by_ray(table: EmbeddingTable) -> list[tuple[float, int]]:
    from pipelines.data.stream import stream_of

    return _filled(table, stream_of(table), Node(size=1, folder=SHARED_MEMORY))


def _filled(table: EmbeddingTable, stream: Stream, node: Node) -> list[tuple[float, int]]:
    arrivals = Arrivals(stream)
    ResidentRows.filled(arrivals, table.rows, table.dim, node)
    return arrivals.times


def work(job: str, corpus: str) -> None:
    """One job, in this process."""
    calls: dict[str, Callable[[EmbeddingTable], list[tuple[float, int]]]] = {
        "plain": plain,
        "local": local,
        "ray": by_ray,
    }
    torch.set_num_threads(1)
    table = EmbeddingTable.open(corpus)
    if job == "ray":
        import ray

        from pipelines.runtime.cluster import quiet_data

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        quiet_data()
        # Ray's own start goes on until its first processes run
        ready = ray.remote(num_cpus=1)(lambda: os.getpid())
        ray.get([ready.remote() for _ in range(2)])
    before, started = cpu_seconds(os.getpid()), time.perf_counter()
    times = calls[job](table)
    ended = time.perf_counter()
    cpu = cpu_seconds(os.getpid()) - before
    steady = (table.rows - times[0][1]) / (ended - times[0][0])
    print(json.dumps({"whole": table.rows / (ended - started), "steady": steady, "core": table.rows / cpu}))


def run_job(job: str, corpus: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.ingest", "--job", job, str(corpus)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="200000,400000")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to put the corpus; default: the temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=2, metavar=("JOB", "CORPUS"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.job:
        work(*args.job)
        return
    report = {}
    for rows in map(int, args.rows.split(",")):
        with tempfile.TemporaryDirectory(prefix="smec-", dir=args.folder) as made:
            corpus = Path(made) / "corpus"
            write_corpus(corpus, rows, args.dim, args.files, ROW_GROUP_ROWS)
            rounds = [{job: run_job(job, corpus) for job in JOBS} for _ in range(args.rounds)]
        print(
            f"{rows:,} rows of {args.dim} dims in {args.files} files, {args.rounds} rounds in turn; medians of rows/s"
        )
        print(f"{'':>6}" + "".join(f"{head:>12}{'of plain':>10}" for head in ("whole", "steady", "core")))
        figures: dict[str, dict[str, float]] = {}
        for job in JOBS:
            figures[job] = {}
            for rate in ("whole", "steady", "core"):
                figures[job][rate] = median(one[job][rate] for one in rounds)
                figures[job][f"{rate}_ratio"] = median(one[job][rate] / one["plain"][rate] for one in rounds)
            cells = (
                f"{figures[job][r]:>12,.0f}{figures[job][f'{r}_ratio']:>10.2f}" for r in ("whole", "steady", "core")
            )
            print(f"{job:>6}" + "".join(cells), flush=True)
        report[str(rows)] = figures
    if args.json:
        args.json.write_text(json.dumps({"dim": args.dim, "files": args.files, "rows": report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
