"""Steps a second of the training loop against a plain single-file implementation, stage by stage, in one run.

    python benchmarks/train_speed.py --data DATA --reference PLAIN.py

Both run on one thread with the same batch, positives, negatives, queue, neighbours, epochs and stages (free matrices on
all labels, no dev split), in turn. Start-up and reading are left out on both sides. The stage D -> D, which the plain
implementation does not have, is trained here too but not compared.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys

STAGE = re.compile(r"stage (\d+): .* (\d+) epochs +([\d.]+) s")


def reference_seconds(script: str, data: str, dims: str, epochs: int) -> dict[int, float]:
    command = [sys.executable, script, data, "--plain", "--dims", dims, "--threads", "1", "--epochs", str(epochs)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {int(dim): float(seconds) for dim, _, seconds in STAGE.findall(printed)}


def own_seconds(data: str, dims: str, epochs: int) -> dict[int, float]:
    command = [sys.executable, __file__, "--own", "--data", data, "--dims", dims, "--epochs", str(epochs)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {int(dim): seconds for dim, seconds in json.loads(printed).items()}


def train_here(data: str, dims: str, epochs: int) -> None:
    import torch

    from smec_core.config import TrainConfig
    from smec_core.dataset import Dataset
    from smec_core.local import load_training_data
    from smec_core.tracker import NullTracker
    from smec_core.train import train

    torch.set_num_threads(1)
    config = TrainConfig(dims=dims, epochs=epochs, projection="free", guard=False)
    trained = train(load_training_data(Dataset.open(data), config), config, NullTracker())
    stages = trained.metrics["stages"]
    print(json.dumps({stage["dim"]: stage["seconds"] for stage in stages if stage["d_in"] > stage["dim"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--reference", help="script that takes DATA --plain --dims --threads --epochs")
    parser.add_argument("--dims", default="384,192,96,48,24")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    # before torch is imported, here or in a child
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if args.own:
        return train_here(args.data, args.dims, args.epochs)
    if args.reference is None:
        parser.error("--reference is required: there is nothing to compare with")

    from smec_core.config import TrainConfig
    from smec_core.dataset import Dataset

    config = TrainConfig(dims=args.dims, guard=False, projection="free")
    train_labels, _ = Dataset.open(args.data).training_split(config)
    assert train_labels is not None, "the dataset needs train judgements"
    steps = args.epochs * math.ceil(len(train_labels) / config.batch_size)
    ours, theirs = [], []
    for _ in range(args.runs):
        theirs.append(reference_seconds(args.reference, args.data, args.dims, args.epochs))
        ours.append(own_seconds(args.data, args.dims, args.epochs))
    print(f"{steps} steps a stage, one thread, {args.runs} runs in turn; medians")
    print(f"{'stage':>6} {'plain steps/s':>14} {'ours steps/s':>14} {'ratio':>6}")
    figures = {}
    stages = list(theirs[0])
    for name, dims in [*((str(dim), [dim]) for dim in stages), ("all", stages)]:
        plain = [sum(run[dim] for dim in dims) for run in theirs]
        own = [sum(run[dim] for dim in dims) for run in ours]
        taken = steps * len(dims)
        ratio = statistics.median(p / o for p, o in zip(plain, own, strict=True))
        row = (taken / statistics.median(plain), taken / statistics.median(own), ratio)
        print(f"{name:>6} {row[0]:>14.1f} {row[1]:>14.1f} {row[2]:>6.2f}")
        figures[name] = dict(zip(("plain", "ours", "ratio"), row, strict=True))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
