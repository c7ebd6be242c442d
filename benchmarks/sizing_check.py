"""What `smec train --dry-run` says against what the training then takes: seconds, time of a step, memory.

    python -m benchmarks.sizing_check [--data DATA] [--cases given,sample,generated] [--json FILE]

`given` is DATA with the defaults, `sample` the sample dataset of 6000 pairs, `generated` 200k documents of 768 dims and
20k queries. Each case is a dry run and a training as processes, one after the other. A ratio is what was said over what
was measured. `total` is the whole process with the expected steps; `a step` is the mean over the steps that were taken,
by stage, and `steps` how many were expected over how many there were: what dev decides, nothing can tell before.
`worker` is anonymous memory. Ends with 1 where the total or the worker is off by more than --within.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.generated import SMEC, sample_dataset, write_dataset
from benchmarks.processes import peak_mib
from benchmarks.timing import ONE_THREAD

ROWS, QUERIES, TESTED, DIM, NOISE = 200_000, 20_000, 1000, 768, 0.5
PARTS = ("data", "search", "compute")
DIMS = {"given": "384,192,96", "sample": "256,128,64,32", "generated": "384,96"}
COLUMNS = ("said", "real", "total", "a step", "steps", "said MiB", "real MiB", "worker", "driver")


def data_of(case: str, given: str | None, folder: Path) -> str:
    """The dataset of a case, made where it has to be."""
    if case == "given":
        assert given is not None
        return given
    if case == "sample":
        return sample_dataset(folder / "sample", 6000)
    # not so easy that dev has nothing left to say after an epoch
    write_dataset(folder / "generated", ROWS, QUERIES, TESTED, DIM, noise=NOISE)
    return str(folder / "generated")


def steps_taken(history: Path) -> dict[str, dict[str, float]]:
    """Steps of each stage of each pass, and their seconds; the candidates of a step share its record."""
    laps: dict[str, dict[int, float]] = defaultdict(dict)
    for line in history.read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            key = f"{record['pass']} {record['stage']}"
            laps[key][record["step"]] = sum(record[f"seconds/{part}"] for part in PARTS)
    return {key: {"steps": len(own), "seconds": sum(own.values())} for key, own in laps.items()}


def check(data: str, dims: str, assignments: list[str], folder: Path) -> dict[str, Any]:
    """A dry run and the training: what was said, what it took, and the ratios."""
    words = ["train", "--data", data, "--dims", dims, "--gpu", "off", "--out", str(folder / "model")]
    words += ["--storage", str(folder / "state"), *(word for text in assignments for word in ("--set", text))]
    environment = os.environ | ONE_THREAD | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    figures = folder / "said.json"
    dry_run = [*SMEC, *words, "--dry-run", "--json", str(figures)]
    subprocess.run(dry_run, check=True, stdout=subprocess.DEVNULL, env=environment)
    said = json.loads(figures.read_text())
    started = time.perf_counter()
    with (folder / "log").open("w+") as log:
        job = subprocess.Popen([*SMEC, *words], stdout=log, stderr=log, text=True, env=environment)
        peak = peak_mib(job, "ray::RayTrainWorker", 0.05)
        if job.returncode:
            log.seek(0)
            raise SystemExit(log.read())
    seconds = time.perf_counter() - started
    taken = steps_taken(folder / "model/history.jsonl")
    by_stage = {f"{stage['pass']} {stage['dim']}": stage for stage in said["stages"]}
    stages = {
        key: own
        | {
            "said_steps": by_stage[key]["steps"]["expected"],
            "said_ms": by_stage[key]["step_ms"],
            "ms": 1e3 * own["seconds"] / own["steps"],
        }
        for key, own in taken.items()
    }
    worker, driver = said["memory"]["worker"] / 2**20, said["memory"]["driver"] / 2**20
    return {
        "said": said["seconds"]["total"]["expected"],
        "real": seconds,
        "total": said["seconds"]["total"]["expected"] / seconds,
        "a step": sum(own["said_ms"] * own["steps"] for own in stages.values())
        / sum(1e3 * own["seconds"] for own in stages.values()),
        "steps": sum(stage["steps"]["expected"] for stage in said["stages"])
        / sum(own["steps"] for own in stages.values()),
        "said MiB": worker,
        "real MiB": peak["actor"]["anonymous"],
        "worker": worker / peak["actor"]["anonymous"],
        "driver": driver / peak["driver"]["anonymous"],
        "training": json.loads((folder / "model/metrics.json").read_text())["training"]["seconds"],
        "said_seconds": said["seconds"],
        "stages": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="dataset with train judgements, for the case `given`")
    parser.add_argument("--cases", default="given,sample,generated")
    parser.add_argument("--within", type=float, default=0.3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of smec train")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = [case for case in args.cases.split(",") if case != "given" or args.data]
    if unknown := set(cases) - set(DIMS):
        parser.error(f"--cases: unknown {', '.join(sorted(unknown))}; known: {', '.join(DIMS)}")
    print(f"{'':>10} " + " ".join(f"{name:>9}" for name in COLUMNS))
    found, off = {}, []
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="smec-") as made:
            folder = Path(made)
            found[case] = check(data_of(case, args.data, folder), DIMS[case], args.set, folder)
        cells = [f"{found[case][name]:>9.{0 if name in ('said', 'real') or 'MiB' in name else 2}f}" for name in COLUMNS]
        print(f"{case:>10} " + " ".join(cells), flush=True)
        off += [f"{case}: {name}" for name in ("total", "worker") if abs(found[case][name] - 1) > args.within]
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if off:
        print(f"off by more than {args.within:.0%}: {', '.join(off)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
