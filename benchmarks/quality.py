"""Test nDCG@10 of the defaults over several seeds, beside PCA, truncation and the full vectors, through `smec train`.

python -m benchmarks.quality --data DATA --dims 384,192,96,48,24 --seeds 0,1,2
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any


def train(data: str, dims: str, seed: str, folder: Path, assignments: list[str]) -> dict[str, Any]:
    out = folder / f"seed-{seed}"
    command = [sys.executable, "-m", "pipelines.cli", "train", "--data", data, "--dims", dims, "--seed", seed]
    command += ["--out", str(out), *(word for item in assignments for word in ("--set", item))]
    subprocess.run(command, check=True)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dims", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [train(args.data, args.dims, seed, Path(folder), args.set) for seed in args.seeds.split(",")]
    reports = [run["evaluation"] for run in runs]
    measure = next(name for name in reports[0] if "@" in name)
    baselines = reports[0]["baselines"]
    print(f"{measure}, seeds {args.seeds}; training seconds {[run['training']['seconds'] for run in runs]}")
    print(f"{'dims':>5} {'mean':>7} {'- PCA':>7} {'truncation':>10} {'pca':>7} {'full':>7}   each seed")
    rows = {}
    for dim in reports[0][measure]:
        seeds = [report[measure][dim] for report in reports]
        pca, truncation = baselines["pca"][dim], baselines["truncation"][dim]
        each = " ".join(f"{value:.4f}" for value in seeds)
        print(
            f"{dim:>5} {mean(seeds):>7.4f} {mean(seeds) - pca:>+7.4f} {truncation:>10.4f} {pca:>7.4f} "
            f"{baselines['full']:>7.4f}   {each}"
        )
        rows[dim] = {"mean": mean(seeds), "seeds": seeds, "pca": pca, "truncation": truncation}
    if args.json:
        Path(args.json).write_text(json.dumps({"measure": measure, "full": baselines["full"], "dims": rows}, indent=2))


if __name__ == "__main__":
    main()
