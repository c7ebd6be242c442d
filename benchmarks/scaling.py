"""Training rows a second of two workers against one, with global and with local memory, through `smec train`.

    python -m benchmarks.scaling [--data DATA] [--batch 512] [--dims 256,128,64,32] [--json FILE]

Every run trains the same stages for one epoch on the same global batches, one thread a worker. Rows are the queries and
documents of a step; the first steps of each stage are left out. Without --data the sample dataset is built first.
`data` is the share of the steps in which a worker reads rows. `outside` is the share of a whole run, from process start
to model on disk, that is not the training loop: Ray's start, reading, checkpoints not yet stored, evaluation.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generated import SMEC, sample_dataset

WARM_UP_STEPS = 3
PARTS = ("data", "search", "compute")


@dataclass
class Figures:
    """What one run reached."""

    rows_per_s: float
    rows_per_s_by_stage: dict[str, float]
    share: dict[str, float]
    outside: float
    seconds: float


def run(data: str, folder: Path, workers: int, memory: str, projection: str, args: argparse.Namespace) -> Figures:
    out = folder / f"{projection}-{memory}-{workers}"
    settings = {
        "batch_size": args.batch,
        "epochs": 1,
        "guard": "false",
        "projection": projection,
        "memory": memory,
    }
    command = [*SMEC, "train", "--data", data, "--dims", args.dims, "--set", "cpus_per_worker=1", "--out", str(out)]
    # a state of its own: the number of workers does not make another run
    command += ["--storage", f"{out}-state"]
    command += ["--workers", str(workers), *(w for key, value in settings.items() for w in ("--set", f"{key}={value}"))]
    started = time.perf_counter()
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    seconds = time.perf_counter() - started
    records = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    by_stage: dict[str, list[dict[str, float]]] = {}
    for record in records:
        if "loss" in record:
            by_stage.setdefault(str(record["stage"]), []).append(record)
    if min(len(steps) for steps in by_stage.values()) <= WARM_UP_STEPS:
        raise SystemExit(f"a stage has no more than {WARM_UP_STEPS} steps: take more queries or a smaller --batch")
    warm = {stage: steps[WARM_UP_STEPS:] for stage, steps in by_stage.items()}
    parts = {part: sum(s[f"seconds/{part}"] for steps in warm.values() for s in steps) for part in PARTS}
    total = sum(parts.values())
    training = json.loads((out / "metrics.json").read_text())["training"]["seconds"]
    return Figures(
        sum(_rows(steps) for steps in warm.values()) / total,
        {stage: _rows(steps) / _seconds(steps) for stage, steps in warm.items()},
        {part: value / total for part, value in parts.items()},
        1 - training / seconds,
        seconds,
    )


def _seconds(steps: list[dict[str, float]]) -> float:
    return sum(step[f"seconds/{part}"] for step in steps for part in PARTS)


def _rows(steps: list[dict[str, float]]) -> float:
    return sum(step["rows_per_s"] * sum(step[f"seconds/{part}"] for part in PARTS) for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="dataset with train judgements; default: the sample dataset")
    parser.add_argument("--dims", default="256,128,64,32")
    parser.add_argument("--size", type=int, help="pairs of the sample dataset; default: all")
    parser.add_argument("--batch", type=int, default=512, help="queries in a global step")
    parser.add_argument("--projections", default="linear,rotation")
    parser.add_argument("--json")
    args = parser.parse_args()
    report: dict[str, dict[str, dict[str, object]]] = {}
    with tempfile.TemporaryDirectory(prefix="smec-") as name:
        folder = Path(name)
        data = args.data
        if data is None:
            data = sample_dataset(folder / "sample", args.size)
        for projection in args.projections.split(","):
            print(f"{projection}, batch {args.batch}, dims {args.dims}, one thread a worker")
            heads = " ".join(
                f"{head:>8}" for head in ("workers", "memory", "rows/s", "ratio", *PARTS, "outside", "seconds")
            )
            print(f"{heads}   ratio by stage")
            one: Figures | None = None
            for workers, memory in ((1, "global"), (2, "global"), (2, "local")):
                got = run(data, folder, workers, memory, projection, args)
                one = one or got
                ratio = got.rows_per_s / one.rows_per_s
                stages = {s: rows / one.rows_per_s_by_stage[s] for s, rows in got.rows_per_s_by_stage.items()}
                shares = " ".join(f"{got.share[part]:>8.1%}" for part in PARTS)
                line = f"{workers:>8} {memory:>8} {got.rows_per_s:>8.0f} {ratio:>8.2f} {shares} {got.outside:>8.1%}"
                print(
                    f"{line} {got.seconds:>8.1f}   " + " ".join(f"{s}: {r:.2f}" for s, r in stages.items()), flush=True
                )
                report.setdefault(projection, {})[f"{workers} {memory}"] = vars(got) | {"ratio": ratio}
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
