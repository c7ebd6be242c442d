"""Seconds of small commands, each a process of its own, from its start to its end.

    python -m benchmarks.startup [--data DATA] [--rounds 3] [--json FILE]

`--help` of `smec` and of each command; `smec check` and `smec evaluate` of a dataset, with a model that turns the
vectors and cuts them to an eighth. Medians. Without --data the sample dataset is built first.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.generated import SMEC, sample_dataset, write_model
from pipelines.cli.main import COMMANDS
from smec_core.data.dataset import Dataset


def seconds_of(words: Sequence[str], rounds: int) -> float:
    """Median of what a command takes."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([*SMEC, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found.append(time.perf_counter() - started)
    return median(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="dataset with judgements; default: the sample dataset")
    parser.add_argument("--size", type=int, default=6000, help="pairs of the sample dataset")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    names = list(COMMANDS)
    with tempfile.TemporaryDirectory(prefix="smec-") as made:
        data = args.data or sample_dataset(Path(made) / "sample", args.size)
        model = Path(made) / "model"
        dim = Dataset.open(data).dim
        write_model(model, dim, dim // 8)
        commands = [["--help"], *([name, "--help"] for name in names), ["check", data]]
        commands += [["evaluate", "--data", data, "--model", str(model)]]
        rows = []
        for words in commands:
            shown = " ".join(["smec", *words]).replace(data, "DATA").replace(str(model), "MODEL")
            rows.append({"command": shown, "seconds": seconds_of(words, args.rounds)})
            print(f"{rows[-1]['seconds']:>7.2f} s  {shown}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"rounds": args.rounds, "commands": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
