"""Time of one query with what `smec export --to numpy` writes, on one core, beside the bare product of numpy.

    python -m benchmarks.numpy_loader [--input-dim 768] [--dim 96] [--rounds 200] [--json FILE]

A round times CALLS calls of each, in turn, so that both meet the same machine; printed are medians and the best rounds.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import ONE_THREAD

os.environ |= ONE_THREAD

import numpy as np

from pipelines.export.formats import nested_embedding, numpy_folder

CALLS = 200


def microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-dim", type=int, default=768)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    matrix_DD = rng.standard_normal((arguments.input_dim, arguments.input_dim), dtype=np.float32)
    x_D = rng.standard_normal(arguments.input_dim, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        numpy_folder.write(matrix_DD, {"dims": [arguments.input_dim, arguments.dim]}, Path(folder))
        model = nested_embedding.load(folder)
    matrix_dD = np.ascontiguousarray(matrix_DD[: arguments.dim])
    loader, product = [], []
    for _ in range(arguments.rounds):
        loader.append(microseconds(lambda: model.encode(x_D, dim=arguments.dim)))
        product.append(microseconds(lambda: matrix_dD @ x_D))
    print(f"{arguments.input_dim} -> {arguments.dim}, one query, one core, {arguments.rounds} rounds of {CALLS} calls")
    figures = {}
    for name, pick in (("median", statistics.median), ("best", min)):
        one, bare = pick(loader), pick(product)
        figures[name] = {"encode_us": one, "product_us": bare, "ratio": one / bare}
        print(f"{name}: encode {one:.1f} µs, A @ x {bare:.1f} µs, ratio {one / bare:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
