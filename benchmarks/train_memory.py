"""Training on data three times the memory budget, from mapped files, against the same from memory: bytes and speed.

    python -m benchmarks.train_memory [--budget 0.25] [--dim 768] [--json FILE]

The data is generated: a low-rank part and noise, three times the budget as float32. Both runs are `smec train` with one
worker and the same settings but for the budget. Anonymous memory is that of the training worker at its peak; pages that
are mapped from files, or shared, are listed beside it. Rows are the queries and documents of the training steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.generated import write_dataset
from benchmarks.processes import peak_mib

QUERIES, TESTED = 8000, 100


def train(data: Path, out: Path, dim: int, budget: float) -> dict[str, float | str]:
    settings = {"epochs": 2, "memory_budget": budget, "dev_corpus": 20_000}
    command = [sys.executable, "-m", "pipelines.cli", "train", "--data", str(data), "--out", str(out)]
    command += ["--dims", f"{dim // 2},{dim // 4}", "--storage", f"{out}-state"]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{out.parent}/mlflow.db"}
    with (out.parent / "log").open("w+") as log:
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True, env=environment)
        peak = peak_mib(job, "ray::RayTrainWorker")["actor"]
        log.seek(0)
        said = log.read()
    if job.returncode:
        raise SystemExit(said)
    steps = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    seconds = [sum(s[f"seconds/{part}"] for part in ("data", "search", "compute")) for s in steps if "loss" in s]
    rates = [step["rows_per_s"] for step in steps if "loss" in step]
    rows = sum(rate * taken for rate, taken in zip(rates, seconds, strict=True))
    tier = said.split("rows are kept in tier '")[1].split("'")[0]
    return {"tier": tier, "rows_per_s": rows / sum(seconds), **peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=0.25, help="GiB")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = int(3 * args.budget * 2**30 / (4 * args.dim))
    with tempfile.TemporaryDirectory(prefix="smec-") as name:
        folder = Path(name)
        write_dataset(folder / "data", rows, QUERIES, TESTED, args.dim)
        results = [
            train(folder / "data", folder / f"out-{budget}", args.dim, budget) for budget in (1000.0, args.budget)
        ]
    memory, mapped = results
    print(f"{rows:,} rows of {args.dim} dims, {3 * args.budget:g} GiB; budget {args.budget:g} GiB; worker's peak MiB")
    print(f"{'tier':>8} {'rows/s':>8} {'ratio':>6} {'anonymous':>10} {'shared':>8} {'mapped':>8}")
    for result in results:
        ratio = float(result["rows_per_s"]) / float(memory["rows_per_s"])
        print(
            f"{result['tier']:>8} {result['rows_per_s']:>8.0f} {ratio:>6.2f} {result['anonymous']:>10.0f} "
            f"{result['shared']:>8.0f} {result['mapped']:>8.0f}"
        )
    print(f"anonymous memory above the budget: {float(mapped['anonymous']) - args.budget * 1024:.0f} MiB")
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows, "dim": args.dim, "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
