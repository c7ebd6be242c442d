"""The exact top-k of the cross-batch memory beside a bare product and `topk` of the same shapes, in one run.

    python -m benchmarks.memory_search [--shapes 128x5000x10,512x65536x10] [--rounds 15] [--json FILE]

One thread, in turn; `ratio` is the median over the rounds. The memory has been pushed until it is full; with `dead`, a
tenth of its documents came again since, and left holes. Half of the anchors are documents, some of them in the memory,
which are never their own neighbours. `push` is a step's push of new documents, for comparison.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.timing import ONE_THREAD, in_turn, median_ratio

os.environ |= ONE_THREAD

import torch
import torch.nn.functional as F
from torch import Tensor

from smec_core.distributed.group import Group
from smec_core.training.memory import CrossBatchMemory

SHAPES = "384x1000x10,384x5000x10,512x5000x10,512x5000x100,512x16384x100,512x65536x100"
DIM, PUSHED = 768, 256


def full_memory(slots: int, with_dead: bool) -> tuple[CrossBatchMemory, Tensor]:
    """A full memory and what was pushed, by row; with dead slots where documents came again."""
    generator = torch.Generator().manual_seed(0)
    x_ND = F.normalize(torch.randn(slots + PUSHED, DIM, generator=generator), dim=1)
    memory = CrossBatchMemory(slots, DIM, Group(), "global", torch.device("cpu"))
    memory.push(torch.arange(slots), x_ND[:slots])
    if with_dead:
        again_N = torch.randperm(slots, generator=generator)[: slots // 10]
        memory.push(again_N, x_ND[again_N])
    return memory, x_ND


def measure(anchors: int, slots: int, top_k: int, *, with_dead: bool, rounds: int) -> dict[str, Any]:
    memory, x_ND = full_memory(slots, with_dead)
    generator = torch.Generator().manual_seed(1)
    row_A = torch.randperm(len(x_ND), generator=generator)[:anchors]
    x_AD = F.normalize(x_ND[row_A] + torch.randn(anchors, DIM, generator=generator), dim=1)
    row_A[: anchors // 2] = -1
    new_N = torch.arange(slots, slots + PUSHED)
    x_MD = memory.x_LD.clone()
    seconds = in_turn(
        {
            "bare": lambda: (x_AD @ x_MD.T).topk(top_k, dim=1),
            "search": lambda: memory.search(x_AD, row_A, top_k),
        },
        rounds,
    )
    push = in_turn({"push": lambda: memory.push(new_N, x_ND[new_N])}, rounds)
    milliseconds = {name: 1000 * median(found) for name, found in (seconds | push).items()}
    shape = {"anchors": anchors, "slots": slots, "neighbours": top_k, "dead": with_dead}
    return (
        shape
        | {f"{name}_ms": value for name, value in milliseconds.items()}
        | {"ratio": median_ratio(seconds, "search", "bare")}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--shapes", default=SHAPES, help="anchors x slots x neighbours of each, with commas between shapes"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{DIM} dims, one thread, {args.rounds} rounds in turn; medians")
    print(
        f"{'anchors':>8} {'slots':>7} {'k':>4} {'dead':>5} {'bare ms':>9} {'search ms':>10} {'ratio':>6} {'push ms':>8}"
    )
    rows = []
    for shape in args.shapes.split(","):
        for with_dead in (False, True):
            row = measure(*map(int, shape.split("x")), with_dead=with_dead, rounds=args.rounds)
            print(
                f"{row['anchors']:>8} {row['slots']:>7} {row['neighbours']:>4} {'yes' if with_dead else 'no':>5} "
                f"{row['bare_ms']:>9.2f} {row['search_ms']:>10.2f} {row['ratio']:>6.2f} {row['push_ms']:>8.3f}",
                flush=True,
            )
            rows.append(row)
    if args.json:
        args.json.write_text(json.dumps({"dim": DIM, "rounds": args.rounds, "shapes": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
