"""Peak memory of `smec compress` on two corpora, one ten times the other: it must not grow with the corpus.

    python -m benchmarks.compress_memory [--rows 250000] [--factor 10] [--json FILE]

Each corpus is compressed by a fresh process with a Ray cluster of its own, while this one samples /proc: anonymous
memory of the driver and of the largest actor, and what lies in Ray's object store (shared memory). Both corpora have
the same number of files, so files grow with the corpus, too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.generated import write_corpus, write_model
from benchmarks.processes import peak_mib

INPUT_DIM, DIM, FILES, WORKERS = 128, 32, 2, 2
ROW_GROUP_ROWS = 10_000


def compress(model: str, corpus: str, out: str) -> None:
    from pipelines.compress.job import run
    from pipelines.compress.settings import CompressSettings

    settings = CompressSettings(model=model, input=corpus, output=out, dim=DIM, workers=WORKERS, gpu="off")
    print(json.dumps(run(settings)))


def measure(model: Path, corpus: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.compress_memory", "--job", str(model), str(corpus), str(out)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    held = peak_mib(job, "ray::MapWorker")
    peak = {
        "driver": held["driver"]["anonymous"],
        "largest actor": held["actor"]["anonymous"],
        "object store": max(held["driver"]["shared"], held["actor"]["shared"]),
    }
    if job.returncode:
        raise SystemExit(f"compress failed with exit code {job.returncode}")
    assert job.stdout is not None
    figures = json.loads(job.stdout.read().splitlines()[-1])
    return {"rows": figures["rows"], "seconds": figures["seconds"], **peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=250_000, help="rows of the smaller corpus")
    parser.add_argument("--factor", type=int, default=10, help="how many times larger the other one is")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=3, metavar=("MODEL", "CORPUS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        compress(*arguments.job)
        return
    with tempfile.TemporaryDirectory(prefix="smec-") as name:
        folder = Path(name)
        write_model(folder / "model", INPUT_DIM, DIM)
        results = []
        for rows in (arguments.rows, arguments.rows * arguments.factor):
            write_corpus(folder / f"corpus-{rows}", rows, INPUT_DIM, FILES, ROW_GROUP_ROWS)
            results.append(measure(folder / "model", folder / f"corpus-{rows}", folder / f"out-{rows}"))
    small, large = results
    print(f"{INPUT_DIM} dims to {DIM}, {FILES} files, {WORKERS} actors; peak MiB")
    print(f"{'':14}{int(small['rows']):>12,}{int(large['rows']):>12,}{'ratio':>9}")
    for key in ("driver", "largest actor", "object store", "seconds"):
        print(f"{key:14}{small[key]:>12.1f}{large[key]:>12.1f}{large[key] / max(small[key], 1e-9):>9.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"corpora": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
