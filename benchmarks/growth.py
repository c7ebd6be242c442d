"""Time and memory of training and evaluation against the size of what they are given, and the exponent of each.

    python -m benchmarks.growth [--axes corpus,queries,dims,queue,workers] [--large] [--json FILE]

A point is a generated dataset of its own and a fresh process of one thread, without Ray, that opens it, reads it,
trains two stages (a linear map of all dims, a rotation to half of them) for a fixed number of steps, and evaluates the
model; `workers` is `smec train` as benchmarks/scaling.py runs it. The exponent is the slope of log(time) over log(size)
through the last three points: 0 does not grow, 1 is linear. What is above linear is listed with the reason. Seconds are
of the CPU, so that what else the machine does counts little.

Columns, in seconds: open (ids, judgements, fingerprint, split), read (all vectors into memory), dev set (its copy),
moments (of all documents), pca (of a stage), through (all rows through a stage), dev (one scoring of a stage),
evaluate (two passes over the corpus). In ms, median of a step of both stages together: data, search,
compute. In MiB, the most anonymous memory in training and in evaluation.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

from benchmarks.timing import ONE_THREAD

# before torch is imported, here or in a child
os.environ |= ONE_THREAD

import numpy as np

from benchmarks import scaling
from benchmarks.generated import write_dataset
from benchmarks.processes import memory_of

P = ParamSpec("P")
T = TypeVar("T")
TESTED, STEPS, EPOCHS, WARM_UP_STEPS = 200, 6, 2, 2
SECONDS = ("open", "read", "dev set", "moments", "pca", "through", "dev", "evaluate")
MILLISECONDS = ("data", "search", "compute")
MIB = ("training", "evaluating")
FITTED_POINTS, LINEAR = 3, 1.2


@dataclass(frozen=True)
class Point:
    """What one process is given; `queue` 0 is alpha=0."""

    corpus: int = 20_000
    queries: int = 2000
    dims: int = 256
    queue: int = 0


SIZES = {
    "corpus": [20_000, 40_000, 80_000, 160_000, 320_000],
    "queries": [2000, 4000, 8000, 16_000],
    "dims": [256, 512, 1024, 2048, 3072],
    "queue": [1024, 4096, 16_384, 65_536],
}
LARGE = {"corpus": [640_000, 1_280_000, 2_000_000], "queries": [64_000, 200_000]}
FIXED = {
    "corpus": Point(),
    "queries": Point(corpus=200_000),
    "dims": Point(corpus=10_000),
    "queue": Point(corpus=80_000),
}
REASONS = {
    ("dims", "compute"): "a row is multiplied by D x D matrices, and the inverse of a rotation is D^3 a step",
    ("dims", "pca"): "the Gram matrix is D^2 a row, its eigenvectors are D^3",
    ("dims", "moments"): "the sum of squares is D^2 a row",
    ("dims", "through"): "a row is multiplied by a D x D/2 matrix",
    ("dims", "dev"): "a dev document goes through a D x D matrix, beside its products with the queries, which are D",
    ("dims", "evaluate"): "a row is multiplied by D x D matrices, the model and PCA; the eigenvectors of PCA are D^3",
    ("queries", "dev"): "a fifth of the queries are dev, until there are dev_queries of them",
}


class Peak(threading.Thread):
    """Most anonymous memory of this process since the last look, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._most = 0.0

    def run(self) -> None:
        """Samples until the process ends."""
        while True:
            self._most = max(self._most, memory_of(os.getpid())[1]["anonymous"])
            time.sleep(0.01)

    def take(self) -> float:
        """The most so far; then starts anew."""
        most, self._most = self._most, 0.0
        return most


class Spent:
    """CPU seconds of calls, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def timed(self, part: str, call: Callable[P, T]) -> Callable[P, T]:
        """The same call, which counts as `part`."""

        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            started = time.process_time()
            result = call(*args, **kwargs)
            self.seconds[part].append(time.process_time() - started)
            return result

        return run


@contextmanager
def watched(spent: Spent) -> Iterator[None]:
    """Times the parts of a training while it lasts; ends its epochs early, and starts its stages with a full memory."""
    from benchmarks.step_time import full_memory
    from smec_core.distributed.resident import ResidentRows
    from smec_core.training import context, moments, ordering, step
    from smec_core.training.learner import Learner
    from smec_core.training.sampling import Batch, LabelledSampler

    epoch = LabelledSampler.epoch

    def few(sampler: LabelledSampler, key: tuple[int, ...]) -> Iterator[Batch]:
        return islice(epoch(sampler, key), STEPS)

    with ExitStack() as patches:
        patches.enter_context(patch.object(LabelledSampler, "epoch", few))
        patches.enter_context(patch.object(step, "time", SimpleNamespace(perf_counter=time.process_time)))
        patches.enter_context(full_memory())
        for owner, name, part in (
            (ordering.Orders, "rotation", "pca"),
            (moments.MomentSums, "of", "moments"),
            (context, "make_dev_set", "dev set"),
            (Learner, "score", "dev"),
            (ResidentRows, "project", "through"),
        ):
            patches.enter_context(patch.object(owner, name, spent.timed(part, getattr(owner, name))))
        yield


def measure(data: str, point: Point) -> dict[str, float]:
    """All figures of a point, in this process."""
    import torch

    from benchmarks.step_time import StepRecords
    from smec_core.config import TrainConfig
    from smec_core.data.dataset import Dataset
    from smec_core.distributed.resident import Node
    from smec_core.evaluation.evaluate import corpus_baselines, evaluate
    from smec_core.model.model import Model
    from smec_core.training.context import TrainingData
    from smec_core.training.scanned import read_resident
    from smec_core.training.schedule import prefix_dims
    from smec_core.training.trainer import train

    torch.set_num_threads(1)
    dims = (point.dims // 2,)
    memory = {"alpha": 0.3, "queue_size": point.queue} if point.queue else {}
    fixed = {"epochs": EPOCHS, "patience": EPOCHS, "score_steps": 1, "refit": False}
    config = TrainConfig.model_validate({"dims": dims} | fixed | memory)
    peak, spent, records = Peak(), Spent(), StepRecords()
    peak.start()

    def opened() -> tuple[Dataset, Any]:
        dataset = Dataset.open(data)
        assert dataset.fingerprint
        return dataset, dataset.training_split(config)

    dataset, (learnt, held_out) = spent.timed("open", opened)()
    node = Node()
    docs, queries = spent.timed("read", lambda: [read_resident(t, node) for t in (dataset.corpus, dataset.queries)])()
    with watched(spent):
        trained = train(TrainingData(docs, queries, learnt, held_out, node), config, records)
    found = {"training": peak.take()}
    del docs, queries
    model = Model(trained.stages, dataset.dim, {"dims": prefix_dims(dataset.dim, dims)}, {})
    peak.take()
    spent.timed("evaluate", lambda: evaluate(dataset, model, "test", corpus_baselines(dataset)))()
    found["evaluating"] = peak.take()
    found |= {part: float(np.mean(laps)) for part, laps in spent.seconds.items()}
    for part in MILLISECONDS:
        by_stage: dict[Any, list[float]] = defaultdict(list)
        for record in records.steps:
            by_stage[record["stage"]].append(1e3 * float(record[f"seconds/{part}"]))
        found[part] = sum(float(np.median(laps[WARM_UP_STEPS:])) for laps in by_stage.values())
    return found


def in_a_process(point: Point) -> dict[str, float]:
    """Writes the dataset of a point and measures it in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="smec-") as folder:
        data = Path(folder) / "data"
        write_dataset(data, point.corpus, point.queries, TESTED, point.dims)
        command = [sys.executable, "-m", "benchmarks.growth", "--point", json.dumps(asdict(point)), "--data", str(data)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log(value) over log(size) through the last points."""
    last = slice(-FITTED_POINTS, None)
    return float(np.polyfit(np.log(sizes[last]), np.log(np.maximum(values[last], 1e-9)), 1)[0])


def along(axis: str, large: bool) -> dict[str, Any]:
    """Measures the points of an axis and prints them."""
    sizes = SIZES[axis] + (LARGE.get(axis, []) if large else [])
    others = " ".join(f"{name} {value:,}" for name, value in asdict(FIXED[axis]).items() if name != axis)
    parts = (*SECONDS, *MILLISECONDS, *MIB)
    print(f"\n{axis}, at {others}; seconds, then ms a step, then MiB")
    print(f"{axis:>10} " + " ".join(f"{part:>10}" for part in parts))
    points = []
    for size in sizes:
        found = in_a_process(replace(FIXED[axis], **{axis: size}))
        points.append({axis: size} | found)
        cells = [f"{found[part]:>10.3f}" for part in SECONDS] + [f"{found[part]:>10.1f}" for part in MILLISECONDS]
        print(f"{size:>10,} " + " ".join(cells + [f"{found[part]:>10.0f}" for part in MIB]), flush=True)
    exponents = {part: exponent(sizes, [point[part] for point in points]) for part in parts}
    print(f"{'exponent':>10} " + " ".join(f"{exponents[part]:>10.2f}" for part in parts))
    for part, slope in exponents.items():
        if slope > LINEAR:
            print(f"{part}: above linear ({slope:.2f}): {REASONS.get((axis, part), 'no reason is known')}")
    return {"points": points, "exponents": exponents}


def by_workers(folder: Path) -> dict[int, dict[str, Any]]:
    """Rows a second and seconds of `smec train` with one worker and with two."""
    write_dataset(folder / "data", 20_000, 4000, TESTED, 256)
    settings = argparse.Namespace(batch=512, dims="128,64")
    print(f"\n{'workers':>10} {'rows/s':>10} {'outside':>10} {'seconds':>10}")
    found = {}
    for workers in (1, 2):
        got = scaling.run(str(folder / "data"), folder, workers, "global", "linear", settings)
        print(f"{workers:>10} {got.rows_per_s:>10.0f} {got.outside:>10.1%} {got.seconds:>10.1f}", flush=True)
        found[workers] = vars(got)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default="corpus,queries,dims,queue,workers")
    parser.add_argument("--large", action="store_true", help="corpus up to 2M rows (8 GiB), queries up to 200k")
    parser.add_argument("--json")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(args.data, Point(**json.loads(args.point)))))
        return
    axes = args.axes.split(",")
    if unknown := set(axes) - {*SIZES, "workers"}:
        parser.error(f"--axes: unknown {', '.join(sorted(unknown))}; known: {', '.join([*SIZES, 'workers'])}")
    report: dict[str, Any] = {axis: along(axis, args.large) for axis in axes if axis != "workers"}
    if "workers" in axes:
        with tempfile.TemporaryDirectory(prefix="smec-") as name:
            report["workers"] = by_workers(Path(name))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
