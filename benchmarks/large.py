"""Training, evaluation and compression of corpora of several sizes: what grows with the corpus, and what does not.

    python -m benchmarks.large --folder FOLDER [--rows 1000000,4000000,16000000] [--dim 256] [--json FILE]

A dataset is generated for each size, in float16, and kept in FOLDER: 16 million documents of 256 dims are 8 GB. Each
command is a process of its own, with a Ray cluster where it needs one. Seconds: `whole` of the command, `read` of its
scan, `training` of the steps and of what chooses among them. Memory is anonymous, in MiB, sampled: of the driver, of
the command's largest worker, and of all its processes together; `shared` is what the worker maps of shared memory, in
which the rows lie.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated import SMEC, write_dataset
from benchmarks.processes import peak_mib

TESTED, FILES, LOOK_EVERY = 200, 16, 0.1
READ = re.compile(r"documents and .* queries read in ([\d.]+) s")
SECONDS, MEMORY = ("whole", "read", "training"), ("driver", "worker", "all", "shared")


def run(name: str, words: list[str], worker: str, folder: Path) -> dict[str, float]:
    """Runs a command of smec to its end; its log is FOLDER/NAME.log."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    started = time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        job = subprocess.Popen([*SMEC, name, *words], stdout=log, stderr=log, text=True, env=environment)
        peak = peak_mib(job, worker, LOOK_EVERY)
    said = (folder / f"{name}.log").read_text()
    if job.returncode:
        raise SystemExit(f"smec {name} failed with exit code {job.returncode}:\n{said}")
    found = {"whole": time.perf_counter() - started}
    if read := READ.search(said):
        found["read"] = float(read[1])
    held = {"driver": "driver", "worker": "actor", "all": "all"}
    found |= {shown: peak[kind]["anonymous"] for shown, kind in held.items()}
    return found | {"shared": peak["actor"]["shared"]}


def measure(folder: Path, rows: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All commands on a corpus of so many rows."""
    data, model = folder / "data", folder / "model"
    if not (data / "qrels/test.parquet").exists():
        shutil.rmtree(data, ignore_errors=True)
        write_dataset(data, rows, args.queries, TESTED, args.dim, FILES, dtype=np.float16)
    # a finished run or version would be taken up, and nothing measured
    for made in ("model", "state", "compressed"):
        shutil.rmtree(folder / made, ignore_errors=True)
    train = ["--data", str(data), "--dims", args.dims, "--out", str(model), "--storage", str(folder / "state")]
    applied, smallest = ["--model", str(model)], min(args.dims.split(","), key=int)
    compress = ["--input", str(data / "corpus"), "--output", str(folder / "compressed"), "--dim", smallest]
    commands = {
        "train": ([*train, *(w for s in args.set for w in ("--set", s))], "ray::RayTrainWorker"),
        "evaluate": ([*applied, "--data", str(data)], "ray::"),
        "compress": ([*applied, *compress], "ray::MapWorker"),
    }
    report = {name: run(name, *command, folder) for name, command in commands.items() if name in args.only.split(",")}
    if "train" in report:
        report["train"]["training"] = json.loads((model / "metrics.json").read_text())["training"]["seconds"]
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="on a disk with room for twice the vectors")
    parser.add_argument("--rows", default="1000000,4000000,16000000")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--dims", default="128,32")
    parser.add_argument("--queries", type=int, default=3000)
    parser.add_argument("--only", default="train,evaluate,compress")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further settings of train")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    report: dict[int, Any] = {}
    heads = [*SECONDS, *MEMORY]
    print(f"{'rows':>12} {'':>9}" + "".join(f"{head:>10}" for head in heads))
    for rows in map(int, args.rows.split(",")):
        folder = args.folder.absolute() / f"{rows}x{args.dim}"
        folder.mkdir(parents=True, exist_ok=True)
        report[rows] = measure(folder, rows, args)
        for name, found in report[rows].items():
            cells = (f"{found[head]:>10,.0f}" if head in found else " " * 10 for head in heads)
            print(f"{rows:>12,} {name:>9}" + "".join(cells), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
