"""Training, evaluation and compression of a corpus that is larger than the memory given: seconds, memory, disk, swap.

    python -m benchmarks.large --folder FOLDER [--rows 2000000] [--queries 200000] [--budget 4] [--json FILE]

The dataset is generated once and kept in FOLDER/data: 2 million documents of 768 dims are 6 GB. Each command is a
process of its own, with a Ray cluster where it needs one, whose anonymous memory is sampled: of the driver, of its
largest worker (training worker, actor of compress), and of all its processes together. `above budget` is what the
training worker holds beyond memory_budget: Python, torch and the step itself.
"""

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.generated import SMEC, write_dataset
from benchmarks.processes import peak_mib

DIM, TESTED, LOOK_EVERY = 768, 1000, 0.1


def swap_used_mib() -> float:
    """What of this machine's memory lies in swap."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(sign * float(lines[name].split()[0]) for name, sign in (("SwapTotal", 1), ("SwapFree", -1))) / 1024


def run(name: str, words: list[str], actor: str, folder: Path) -> dict[str, Any]:
    """Runs a command of smec to its end; its log is FOLDER/NAME.log."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [*SMEC, name, *words, "--json", str(folder / f"{name}.json")]
    swap, started = swap_used_mib(), time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment)
        peak = peak_mib(job, actor, LOOK_EVERY)
    if job.returncode:
        raise SystemExit(f"smec {name} failed with exit code {job.returncode}:\n{(folder / f'{name}.log').read_text()}")
    return {"seconds": time.perf_counter() - started, "swap": swap_used_mib() - swap, "peak": peak}


def show(name: str, found: dict[str, Any]) -> None:
    held = [found["peak"][who]["anonymous"] for who in ("driver", "actor", "all")]
    others = [found["peak"]["actor"][kind] for kind in ("shared", "mapped")]
    cells = " ".join(f"{value:>9,.0f}" for value in (found["seconds"], *held, *others, found["swap"]))
    print(f"{name:>9} {cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="on a disk with room for four times the vectors")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--queries", type=int, default=200_000)
    parser.add_argument("--budget", type=float, default=4.0, help="memory_budget, GiB")
    parser.add_argument("--dims", default="384,96")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further settings of train")
    parser.add_argument("--json")
    args = parser.parse_args()
    folder = args.folder.absolute()
    data, model = folder / "data", folder / "model"
    if not (data / "qrels/test.parquet").exists():
        shutil.rmtree(data, ignore_errors=True)
        started = time.perf_counter()
        write_dataset(data, args.rows, args.queries, TESTED, DIM)
        print(f"dataset written in {time.perf_counter() - started:.0f} s")
    # a finished run or version would be taken up, and nothing measured
    for made in ("model", "state", "compressed", "scratch"):
        shutil.rmtree(folder / made, ignore_errors=True)
    settings = ["epochs=1", f"memory_budget={args.budget}", f"scratch={folder / 'scratch'}", *args.set]
    train = ["--data", str(data), "--dims", args.dims, "--out", str(model), "--storage", str(folder / "state")]
    applied, smallest = ["--model", str(model)], min(args.dims.split(","), key=int)
    commands = {
        "train": ([*train, *(w for s in settings for w in ("--set", s))], "ray::RayTrainWorker"),
        "evaluate": ([*applied, "--data", str(data)], "ray::"),
        "compress": (
            [*applied, "--input", str(data / "corpus"), "--output", str(folder / "compressed"), "--dim", smallest],
            "ray::MapWorker",
        ),
    }
    print(f"{args.rows:,} x {DIM}, {args.queries:,} queries, budget {args.budget:g} GiB; seconds, then MiB")
    heads = ("seconds", "driver", "worker", "all", "shared", "mapped", "swap")
    print(f"{'':>9} " + " ".join(f"{head:>9}" for head in heads))
    report: dict[str, Any] = {"rows": args.rows, "queries": args.queries, "budget": args.budget}
    for name, (words, actor) in commands.items():
        report[name] = run(name, words, actor, folder)
        show(name, report[name])
    stages = json.loads((model / "metrics.json").read_text())["training"]
    above = report["train"]["peak"]["actor"]["anonymous"] - 1024 * args.budget
    report |= {"above_budget_mib": above, "training": stages}
    rate = json.loads((folder / "compress.json").read_text())["rows_per_s"]
    print(
        f"above budget {above:+,.0f} MiB; {stages['steps']:,} steps in {stages['seconds']:,.0f} s, ",
        end="",
    )
    print(f"{stages['rows_per_s']:,.0f} rows/s; compressed {rate:,.0f} rows/s")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
