"""Speed of `smec compress` against a plain loop: read with pyarrow, multiply with numpy, write with pyarrow.

    python -m benchmarks.compress_speed [--rows 1000000] [--dtype float32] [--json FILE]

On one generated corpus, 768 dims to 96: the plain loop on one core, then `smec compress` with one and two workers of
one thread each, each in a process of its own, on half of the corpus and on all of it. `whole` is the rate of the whole
run but for Ray's own start; `steady` is that from the first rows on, which the start of the actors (imports: some
seconds) is no part of. Peak memory is sampled from /proc: it must not grow from half of the corpus to all.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.generated import write_corpus, write_model
from benchmarks.processes import peak_mib

INPUT_DIM, DIM, FILES = 768, 96, 8
ROW_GROUP_ROWS = 25_000
BATCH_ROWS = 8192


def plain(model: str, corpus: str, out: str) -> None:
    """The loop to compare with: no checks, no progress, no manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import smec_core

    pa.set_cpu_count(1)
    matrix = smec_core.load(model).matrix_DD
    assert matrix is not None
    a_Dd = np.ascontiguousarray(matrix[:DIM].numpy().T)
    Path(out).mkdir()
    rows, started = 0, time.perf_counter()
    for path in sorted(Path(corpus).glob("*.parquet")):
        schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), DIM))])
        with (
            pq.ParquetFile(path, pre_buffer=False, buffer_size=8 << 20) as file,
            pq.ParquetWriter(f"{out}/{path.name}", schema, use_dictionary=["id"]) as writer,
        ):
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                x_ND = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(-1, INPUT_DIM)
                z_Nd = x_ND @ a_Dd
                z_Nd /= np.linalg.norm(z_Nd, axis=1, keepdims=True)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(z_Nd.reshape(-1)), DIM)
                writer.write_table(pa.table([batch["id"], vectors], schema=schema))
                rows += len(batch)
    rate = rows / (time.perf_counter() - started)
    print(json.dumps({"rows_per_s": rate, "steady": rate}))


def compress(model: str, corpus: str, out: str, workers: int, dtype: str) -> None:
    import ray

    from pipelines.compress.job import run
    from pipelines.compress.settings import CompressSettings
    from pipelines.runtime.file_tasks import run_file_tasks

    arrivals: list[tuple[float, int]] = []

    def timed(*tasks: Any) -> Iterator[Any]:
        for rows, done in run_file_tasks(*tasks):
            arrivals.append((time.perf_counter(), rows))
            yield rows, done

    ray.init(num_cpus=max(2, workers), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    settings = CompressSettings.model_validate(
        {"model": model, "input": corpus, "output": out, "dim": DIM, "dtype": dtype, "workers": workers, "gpu": "off"}
    )
    with patch("pipelines.compress.job.run_file_tasks", timed):
        figures = run(settings)
    seconds = arrivals[-1][0] - arrivals[0][0]
    print(json.dumps(figures | {"steady": (figures["rows"] - arrivals[0][1]) / seconds}))


def measure(*job: str) -> dict[str, float]:
    """Runs a job in a process of its own; returns its figures and its peak memory in MiB."""
    # as Ray sets it for an actor of one CPU
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.compress_speed", "--job", *job]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    held = peak_mib(process, "ray::MapWorker")
    if process.returncode:
        raise SystemExit(f"{' '.join(job)} failed with exit code {process.returncode}")
    assert process.stdout is not None
    figures = json.loads(process.stdout.read().splitlines()[-1])
    return {
        "rows_per_s": figures["rows_per_s"],
        "steady": figures["steady"],
        "driver": held["driver"]["anonymous"],
        "actor": held["actor"]["anonymous"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the corpus")
    parser.add_argument("--dtype", default="float32", help="number type that smec compress writes")
    parser.add_argument("--folder", help="where to put the corpus; default: the temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        name, *paths = arguments.job
        if name == "plain":
            plain(*paths)
        else:
            model_path, corpus_path, out, workers, dtype = paths
            compress(model_path, corpus_path, out, int(workers), dtype)
        return
    with tempfile.TemporaryDirectory(prefix="smec-", dir=arguments.folder) as made:
        folder = Path(made)
        model, corpus, half = folder / "model", folder / "corpus", folder / "half"
        write_model(model, INPUT_DIM, DIM)
        write_corpus(corpus, arguments.rows, INPUT_DIM, FILES, ROW_GROUP_ROWS)
        half.mkdir()
        for path in sorted(corpus.iterdir())[: FILES // 2]:
            (half / path.name).hardlink_to(path)
        runs = {"plain loop": ["plain"], "1 worker": ["compress", "1"], "2 workers": ["compress", "2"]}
        found = {}
        for name, (job, *workers) in runs.items():
            # the generated files are in the page cache for all alike
            for part, source in (("half", half), ("all", corpus)):
                more = [*workers, arguments.dtype] if workers else []
                found[name, part] = measure(job, str(model), str(source), str(folder / f"{name}-{part}"), *more)
    report(found, arguments.rows, arguments.dtype)
    if arguments.json:
        plain_rate = found["plain loop", "all"]["steady"]
        rows = [
            {"run": name, "corpus": part, **figures, "ratio": figures["steady"] / plain_rate}
            for (name, part), figures in found.items()
        ]
        arguments.json.write_text(json.dumps({"rows": arguments.rows, "runs": rows}, indent=2) + "\n")


def report(found: dict[tuple[str, str], dict[str, float]], rows: int, dtype: str) -> None:
    print(f"{rows:,} rows, {INPUT_DIM} dims to {DIM} as {dtype}; rows/s; peak MiB of anonymous memory, half and all")
    print(f"{'':12}{'whole':>10}{'of plain':>10}{'steady':>10}{'of plain':>10}{'driver':>14}{'actor':>14}")
    plain = found["plain loop", "all"]["steady"]
    for name in dict.fromkeys(name for name, _ in found):
        half, whole = found[name, "half"], found[name, "all"]
        line = f"{name:12}"
        for rate in (whole["rows_per_s"], whole["steady"]):
            line += f"{rate:>10,.0f}{rate / plain:>10.2f}"
        for kind in ("driver", "actor"):
            line += f"{half[kind]:>8.0f}{whole[kind]:>6.0f}"
        print(line)
    two = found["2 workers", "all"]["steady"] / found["1 worker", "all"]["steady"]
    print(f"2 workers are {two:.2f} times one, from the first rows on")


if __name__ == "__main__":
    main()
