"""Seconds of a whole `smec train` with its defaults, and of a plain single-file implementation of the same method.

    python -m benchmarks.whole_train [--data DATA] [--dims 384,192,96,48,24] [--reference PLAIN.py] [--json FILE]

`before` is from the start of the process to the first training step (imports, Ray, reading), `training` what
metrics.json says, `after` from the last step to the end of the process (evaluation, MLflow, the model on disk). Each
round trains once here and, with --reference, once there, in turn; both then on one thread. `ratio` is the plain
implementation's seconds over our `training`: start-up and reading are left out on both sides, dev and test scores as
each takes them are in. nDCG@10 is the mean over the dims on test. Without --data the sample dataset is built first.

The plain implementation is called as PLAIN.py DATA --dims DIMS --threads 1; of its last line that reads
`nested, replayed on all labels: 768: 0.7551  384: 0.7480  total 220.1 s`, scores and seconds are taken.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.generated import SMEC, sample_dataset
from benchmarks.timing import ONE_THREAD

PARTS = ("before", "training", "after", "whole")
COLUMNS = [*((part, 1) for part in PARTS), ("ratio", 2), ("nDCG@10", 4)]
REPLAYED = re.compile(r"^nested, replayed on all labels: (.*)  total ([\d.]+) s$", re.MULTILINE)
SCORE = re.compile(r"\d+: ([\d.]+)")
STAGE = re.compile(r"\w+ pass, stage \d+ of ")


def train(data: str, dims: str, assignments: list[str], folder: Path) -> dict[str, Any]:
    """One training as a process: seconds of its parts, and the mean nDCG@10 of the model."""
    command = [*SMEC, "train", "--data", data, "--dims", dims, "--gpu", "off"]
    command += [word for text in assignments for word in ("--set", text)]
    command += ["--out", str(folder / "model"), "--storage", str(folder / "state")]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    started = time.perf_counter()
    last, said = started, []
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if STAGE.match(line):
                last = time.perf_counter()
    ended = time.perf_counter()
    if process.returncode:
        raise SystemExit("".join(said))
    metrics = json.loads((folder / "model" / "metrics.json").read_text())
    seconds = metrics["training"]["seconds"]
    scores = metrics["evaluation"].get("ndcg@10", {})
    return {
        "before": last - started - seconds,
        "training": seconds,
        "after": ended - last,
        "whole": ended - started,
        "ndcg": mean(scores.values()) if scores else None,
    }


def train_plainly(script: str, data: str, dims: str) -> dict[str, Any]:
    """The same by the plain implementation: seconds, and the mean nDCG@10."""
    command = [sys.executable, script, data, "--dims", dims, "--threads", "1"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = REPLAYED.search(printed)
    if found is None:
        raise SystemExit(f"{script}: no line 'nested, replayed on all labels: ... total ... s' in what it prints")
    return {"training": float(found[2]), "ndcg": mean(map(float, SCORE.findall(found[1])))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="dataset with train judgements; default: the sample dataset")
    parser.add_argument("--size", type=int, default=6000, help="pairs of the sample dataset")
    parser.add_argument("--dims", default="384,192,96,48,24")
    parser.add_argument("--reference", help="script that takes DATA --dims --threads")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of smec train")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    threads = "threads as by default"
    if args.reference:
        os.environ |= ONE_THREAD
        args.set.append("cpus_per_worker=1")
        threads = "one thread"
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="smec-") as made:
        data = args.data or sample_dataset(Path(made) / "sample", args.size)
        for number in range(args.rounds):
            if args.reference:
                theirs.append(train_plainly(args.reference, data, args.dims))
            folder = Path(made) / str(number)
            folder.mkdir()
            ours.append(train(data, args.dims, args.set, folder))
    rows: list[dict[str, Any]] = [{"": "smec train"} | {part: median(run[part] for run in ours) for part in PARTS}]
    rows[0]["nDCG@10"] = ours[0]["ndcg"]
    if theirs:
        plain = median(run["training"] for run in theirs)
        rows.append({"": "plain", "training": plain, "nDCG@10": theirs[0]["ndcg"]})
        rows[0]["ratio"] = median(p["training"] / o["training"] for p, o in zip(theirs, ours, strict=True))
    print(f"dims {args.dims}, {threads}, {args.rounds} rounds in turn; medians of seconds")
    print(f"{'':>10} " + " ".join(f"{name:>9}" for name, _ in COLUMNS))
    for row in rows:
        cells = [f"{row[name]:>9.{places}f}" if row.get(name) is not None else " " * 9 for name, places in COLUMNS]
        print(f"{row['']:>10} " + " ".join(cells))
    if args.json:
        args.json.write_text(json.dumps({"dims": args.dims, "rounds": args.rounds, "runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
