"""PCA of unit vectors, fit and apply, beside faiss.PCAMatrix, in one run.

    python -m benchmarks.pca [--shapes 100000x768,20000x1536] [--rounds 3] [--json FILE]

One thread, in turn; ratios are medians over the rounds, below 1 where ours takes less. Ours sums x x^T block by block,
not centred, and applies the rotation as one product; faiss, which subtracts the mean, is given all rows at once.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.timing import ONE_THREAD, in_turn, median_ratio

os.environ |= ONE_THREAD

import faiss
import torch
import torch.nn.functional as F

from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.model.pca import principal_rotation


def measure(rows: int, dim: int, rounds: int) -> dict[str, float]:
    x_ND = F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    resident = ResidentRows(x_ND, Node())
    theirs = faiss.PCAMatrix(dim, dim)
    rotation_DD = principal_rotation(resident, Group())
    theirs.train(x_ND.numpy())
    calls = {
        "faiss fit": lambda: faiss.PCAMatrix(dim, dim).train(x_ND.numpy()),
        "fit": lambda: principal_rotation(resident, Group()),
        "faiss apply": lambda: theirs.apply(x_ND.numpy()),
        "apply": lambda: x_ND @ rotation_DD.T,
    }
    seconds = in_turn(calls, rounds)
    found = {name: median(times) for name, times in seconds.items()}
    return found | {f"{name} ratio": median_ratio(seconds, name, f"faiss {name}") for name in ("fit", "apply")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="100000x768,20000x1536", help="rows x dims")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    print(f"one thread, {args.rounds} rounds in turn; medians of seconds")
    print(
        f"{'rows':>8} {'dims':>5} {'faiss fit':>10} {'fit':>7} {'ratio':>6} "
        f"{'faiss apply':>12} {'apply':>7} {'ratio':>6}"
    )
    report = {}
    for shape in args.shapes.split(","):
        rows, dim = map(int, shape.split("x"))
        found = report[shape] = measure(rows, dim, args.rounds)
        print(
            f"{rows:>8} {dim:>5} {found['faiss fit']:>10.2f} {found['fit']:>7.2f} {found['fit ratio']:>6.2f} "
            f"{found['faiss apply']:>12.2f} {found['apply']:>7.2f} {found['apply ratio']:>6.2f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
