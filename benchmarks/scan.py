"""The scan of a corpus beside a plain loop of pyarrow that sums up the same moments, in one run; and what it holds.

    python -m benchmarks.scan [--rows 1000000,4000000] [--dim 256] [--files 16] [--rounds 3] [--json FILE]

The corpus is generated, in float16. `plain` reads the columns id and embedding with pyarrow on one thread, normalises
each batch, and adds its x x^T, in float32, to a sum in float64: it checks nothing, hashes nothing and keeps nothing.
`local` is the scan in one process, `ray 1` and `ray 2` are scans by Ray Data on clusters of one and of two CPUs, which
the driver shares. All keep a sample of 20,000 rows, and are processes of their own, in turn; the files are in the page
cache for all. `core` is the rate by second of CPU of all processes, Ray's own included.

Rates are from the call to the last row, of Ray after a small scan that starts its processes. Memory is anonymous, in
MiB: of the driver at its peak, and of its largest worker.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.timing import ONE_THREAD

os.environ |= ONE_THREAD

import numpy as np

from benchmarks.generated import write_corpus
from benchmarks.processes import cpu_seconds, peak_mib
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.scan import Keep, scan_table

ROW_GROUP_ROWS, BATCH_ROWS, SAMPLE = 25_000, 8192, 20_000
JOBS = ("plain", "local", "ray 1", "ray 2")


def plain(table: EmbeddingTable) -> None:
    """The loop to compare with."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    sum_DD = np.zeros((table.dim, table.dim))
    for part in table.files:
        with pq.ParquetFile(part.path, pre_buffer=False, buffer_size=8 << 20) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["id", "embedding"], use_threads=False):
                x_ND = batch["embedding"].flatten().to_numpy().reshape(-1, table.dim).astype(np.float32)
                x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
                sum_DD += x_ND.T @ x_ND


def work(job: str, folder: str) -> None:
    """Runs one job in this process, and prints its rates."""
    table = EmbeddingTable.open(str(Path(folder) / "corpus"))
    keep = Keep(table.rows, SAMPLE)
    if job.startswith("ray"):
        import ray

        from pipelines.data import scan
        from pipelines.runtime.cluster import quiet_data
        from smec_core.data import scan as rules

        cpus = int(job.split()[1])
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        quiet_data()
        rules.SMALL_BYTES = 0
        small = EmbeddingTable.open(str(Path(folder) / "small"))
        scan.scan(small, Keep(small.rows, SAMPLE))
    before, started = cpu_seconds(os.getpid()), time.perf_counter()
    if job == "plain":
        plain(table)
    elif job == "local":
        scan_table(table, keep)
    else:
        scan.scan(table, keep)
    seconds, cpu = time.perf_counter() - started, cpu_seconds(os.getpid()) - before
    print(json.dumps({"whole": table.rows / seconds, "core": table.rows / cpu}))


def run_job(job: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scan", "--job", job, str(folder)]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, text=True)
        peak = peak_mib(process, "ray::", 0.05)
        if process.returncode:
            raise SystemExit(f"{job} failed")
        out.seek(0)
        found: dict[str, float] = json.loads(out.read().splitlines()[-1])
    return found | {name: peak[who]["anonymous"] for name, who in (("driver", "driver"), ("worker", "actor"))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,4000000")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to put the corpus; default: the temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=2, metavar=("JOB", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.job:
        work(*args.job)
        return
    report, sizes = {}, [int(rows) for rows in args.rows.split(",")]
    if min(sizes) <= SAMPLE:
        parser.error(f"--rows: takes more than the sample's {SAMPLE:,}")
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="smec-", dir=args.folder) as made:
            folder = Path(made)
            write_corpus(folder / "corpus", rows, args.dim, args.files, ROW_GROUP_ROWS, np.float16)
            write_corpus(folder / "small", 4 * BATCH_ROWS, args.dim, 4, ROW_GROUP_ROWS, np.float16)
            rounds = [{job: run_job(job, folder) for job in JOBS} for _ in range(args.rounds)]
        print(f"{rows:,} x {args.dim} in {args.files} files, {args.rounds} rounds in turn; medians of rows/s, and MiB")
        heads = ("whole", "of plain", "core", "of plain", "driver", "worker")
        print(f"{'':>6}" + "".join(f"{head:>12}" for head in heads))
        figures: dict[str, dict[str, float]] = {}
        for job in JOBS:
            found = figures[job] = {name: median(one[job][name] for one in rounds) for name in rounds[0][job]}
            for rate in ("whole", "core"):
                found[f"{rate}_ratio"] = median(one[job][rate] / one["plain"][rate] for one in rounds)
            cells = f"{found['whole']:>12,.0f}{found['whole_ratio']:>12.2f}{found['core']:>12,.0f}"
            cells += f"{found['core_ratio']:>12.2f}{found['driver']:>12,.0f}{found['worker']:>12,.0f}"
            print(f"{job:>6}" + cells, flush=True)
        report[str(rows)] = figures
    if args.json:
        args.json.write_text(json.dumps({"dim": args.dim, "files": args.files, "rows": report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
