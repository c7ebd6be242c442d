"""Time of training steps by part, against that of their matrix products alone on the same threads.

    python -m benchmarks.step_time [--data DATA] [--ranks 2] [--set batch_size=512] [--json FILE]

Every stage trains for so many steps and more, whatever share of them its start would leave it (`init`), in the loop of
smec_core, without Ray. The limit of a step is the time of its products alone, each of its shape, in the same process:
those of the projection, of the inverse by blocks that a rotation is, of the ranking loss, and of the search in the
memory, back and forth. `ratio` is that limit over the time of the step. Without --data: random vectors in scifact's
shapes (5183 documents, 647 queries to train on, 768 dims).

Parts: data (drawing a step, reading its rows), search (the memory), forward, backward, reduce (collectives of the
gradients), update (optimizer, schedule, average). Collectives within search, forward and backward are in `collectives`,
too. On a GPU every part waits for the device, which a real step does not; `step` is timed without waiting.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.timing import ONE_THREAD

# before torch is imported: each rank has one thread
os.environ |= ONE_THREAD

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.judgements import Judgements
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.model.cayley import BASE_DIM
from smec_core.training import trainer
from smec_core.training.context import PassContext, TrainingData
from smec_core.training.learner import Learner
from smec_core.training.plan import StagePlan, plan_training
from smec_core.training.sampling import steps_per_epoch
from smec_core.training.scanned import load_training_data
from smec_core.training.stage import StageTraining
from smec_core.training.step import Step
from smec_core.training.tracker import Record
from smec_core.yaml_file import parse_value

DOCS, QUERIES, DEV_QUERIES, DIM, DIMS = 5183, 809, 162, 768, "384,192,96,48,24"
WARM_UP_STEPS = 5
Product = tuple[float, float, float]
"""Rows, inner dim and columns of a matrix product."""
PARTS = ("data", "search", "forward", "backward", "reduce", "update")
COLLECTIVES = ("gather", "sum_", "from_first_", "gather_objects")


def random_data(docs: int, queries: int, dim: int, node: Node) -> TrainingData:
    """Unit vectors without structure; query i is about document i, the first DEV_QUERIES are dev."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1) for n in (docs, queries)]
    about = np.arange(queries)
    learnt, held_out = (
        Judgements.from_pairs(row_Q, row_Q % docs, np.ones(len(row_Q), np.float32))
        for row_Q in (about[DEV_QUERIES:], about[:DEV_QUERIES])
    )
    return TrainingData(ResidentRows(rows[0], node), ResidentRows(rows[1], node), learnt, held_out, node)


def products_of(learner: Learner, step: Step) -> list[Product]:
    """Products of one step of a stage of the chain on one rank, forward and back."""
    stage, rows, dim = learner.stage, len(step.y_RI), learner.stage.d_in
    asked = dim if any(not term.is_gated for term in learner.losses) else stage.dim
    found: list[Product] = [(rows, dim, asked)]
    if stage.projection != "selection":
        found.append((asked, rows, dim))
    if stage.projection == "rotation":
        found += [*inverse_products(dim), (asked, dim, dim), (dim, asked, dim)]
        found += [(rows, dim, dim)] if rows < 2 * asked else 2 * [(asked, dim, dim)]
    if stage.projection == "residual_mlp":
        found += 5 * [(rows, dim, stage.up.out_features)]
    if len(step.ranked.query_P):
        for term in learner.losses:
            width = max(dim for dim, _ in term.prefixes)
            found += (5 if term.compatible else 3) * [(step.parts[0], width, step.docs)]
    return found


def inverse_products(dim: int) -> Iterator[Product]:
    """Products of `cayley.inverse_without_pivots`."""
    if dim > BASE_DIM:
        half, rest = dim // 2, dim - dim // 2
        yield from inverse_products(half)
        yield from inverse_products(rest)
        yield from [(half, half, rest), (rest, half, half), (rest, half, rest)]
        yield from [(rest, rest, half), (half, rest, rest), (half, rest, half)]


@contextmanager
def full_memory() -> Iterator[None]:
    """Stages begin with a full memory while it lasts; else most steps of a short run would search one that fills."""
    begin = StageTraining.__init__

    def begin_full(training: StageTraining, run: PassContext, *args: Any) -> None:
        begin(training, run, *args)
        if training.memory.slots:
            row_N = torch.arange(min(training.memory.slots, run.x_docs.rows))
            training.memory.push(row_N.to(run.device), run.x_docs.take(row_N).to(run.device))

    with patch.object(StageTraining, "__init__", begin_full):
        yield


@contextmanager
def whole_stages(epochs: int) -> Iterator[None]:
    """Every stage trains for so many epochs while it lasts: none stops early, and dev is scored at the end."""

    def plan(*args: Any) -> list[StagePlan]:
        rhythm = {"epochs": epochs, "patience": epochs, "stop": epochs, "score_epochs": epochs}
        return [replace(stage, rhythm=replace(stage.rhythm, **rhythm)) for stage in plan_training(*args)]

    with patch.object(trainer, "plan_training", plan):
        yield


def seconds_of(shapes: Sequence[Product], device: torch.device, repeats: int = 7) -> float:
    """Time of the products, each measured alone; shapes that occur several times are measured once."""
    times = {}
    for shape in set(shapes):
        rows, inner, columns = map(round, shape)
        left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
        out = torch.empty(rows, columns, device=device)
        laps = []
        for _ in range(repeats):
            _wait(device)
            started = time.perf_counter()
            torch.mm(left, right, out=out)
            _wait(device)
            laps.append(time.perf_counter() - started)
        times[shape] = statistics.median(laps)
    return sum(times[shape] for shape in shapes)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Parts:
    """Seconds of what happens within steps, by stage; those of the warm-up count, too.

    Attributes:
        seconds: by stage and part, of each step.
        shapes: by stage, the products of a whole step.
        kinds: by stage, its kind of projection.
        rows: by stage, the rows that it projects.
    """

    def __init__(self, device: torch.device, input_dim: int, slots: int) -> None:
        self.seconds: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.shapes: dict[int, list[Product]] = {}
        self.kinds: dict[int, str] = {}
        self.rows: dict[int, int] = {}
        self._device, self._input_dim, self._slots = device, input_dim, slots
        self._collectives = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Times steps while it lasts."""
        whole = Learner.train_step

        def step(learner: Learner, run: PassContext, step: Step, noise_I: Tensor) -> None:
            dim = learner.stage.dim
            if dim not in self.shapes:
                self.rows[dim], self.kinds[dim] = len(step.y_RI), learner.stage.projection
                self.shapes[dim] = products_of(learner, step)
                if step.unsup_weight:
                    self.shapes[dim].append((step.queries + step.docs, self._input_dim, self._slots))
            for name in ("_loss_sums", "_reduce"):
                setattr(learner, name, self._timed(dim, name, getattr(Learner, name).__get__(learner)))
            with patch.object(Tensor, "backward", self._timed(dim, "backward", Tensor.backward)):
                self._timed(dim, "whole", whole)(learner, run, step, noise_I)
            self.seconds[dim]["collectives"].append(self._collectives)
            self._collectives = 0.0

        with ExitStack() as patches:
            patches.enter_context(patch.object(Learner, "train_step", step))
            patches.enter_context(full_memory())
            for name in COLLECTIVES:
                patches.enter_context(patch.object(Group, name, self._collective(getattr(Group, name))))
            yield

    def _timed(self, dim: int, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            _wait(self._device)
            started = time.perf_counter()
            result = call(*args)
            _wait(self._device)
            self.seconds[dim][name].append(time.perf_counter() - started)
            return result

        return run

    def _collective(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = call(*args, **kwargs)
            self._collectives += time.perf_counter() - started
            return result

        return run


class StepRecords:
    """Tracker that keeps the records of steps."""

    def __init__(self) -> None:
        self.steps: list[Record] = []

    def log(self, record: Record) -> None:
        """Takes a record."""
        if "loss" in record:
            self.steps.append(record)


def measure(data: TrainingData, config: TrainConfig, steps: int) -> list[dict[str, Any]]:
    """Trains every stage for so many steps; a record for each, of mean seconds of a step.

    `limit` is the time of the step's products alone, `ratio` that over `step`.
    """
    assert data.train is not None
    device, epoch_steps = data.node.device, steps_per_epoch(len(data.train), config.batch_size)
    epochs = steps_per_epoch(steps + WARM_UP_STEPS, epoch_steps)
    records, parts = StepRecords(), Parts(device, data.docs.dim, config.queue_size)
    with parts.watching(), whole_stages(epochs):
        trainer.train(data, config.model_copy(update={"refit": False}), records)
    found, dim_in = [], data.docs.dim
    for dim, seconds in parts.seconds.items():
        own = [record for record in records.steps if record["stage"] == dim][WARM_UP_STEPS:]
        mean = {name: statistics.mean(laps[WARM_UP_STEPS:]) for name, laps in seconds.items()}
        row: dict[str, Any] = {"stage": f"{dim_in} -> {dim}", "projection": parts.kinds[dim], "rows": parts.rows[dim]}
        row |= {name: statistics.mean(float(record[f"seconds/{name}"]) for record in own) for name in PARTS[:2]}
        row |= {"forward": mean["_loss_sums"], "backward": mean["backward"], "reduce": mean["_reduce"]}
        row["update"] = mean["whole"] - row["forward"] - row["backward"] - row["reduce"]
        row["step"] = sum(row[part] for part in PARTS)
        row["collectives"] = mean["collectives"]
        row["gflop"] = sum(2 * a * b * c for a, b, c in parts.shapes[dim]) / 1e9
        row["limit"] = seconds_of(parts.shapes[dim], device)
        found.append(row | {"ratio": row["limit"] / row["step"]})
        dim_in = dim
    return found


def total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All stages together, each with as many steps."""
    added: dict[str, Any] = {name: sum(row[name] for row in rows) for name in (*PARTS, "step", "limit")}
    return {"stage": "all", "ratio": added["limit"] / added["step"]} | added


def show(rows: Sequence[dict[str, Any]]) -> None:
    names = (*PARTS, "collectives", "step", "limit")
    print(f"{'stage':>12} {'projection':>13} {'rows':>5} " + " ".join(f"{name:>11}" for name in names) + "  ratio")
    for row in rows:
        cells = " ".join(f"{1e3 * row.get(name, 0.0):>11.2f}" for name in names)
        print(
            f"{row['stage']:>12} {row.get('projection', ''):>13} {row.get('rows', ''):>5} {cells}  {row['ratio']:.2f}"
        )


def work(rank: int, args: argparse.Namespace, store: str) -> None:
    """What every rank does."""
    torch.set_num_threads(1)
    if args.ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=rank, world_size=args.ranks)
    changes = {name: parse_value(value) for name, _, value in (text.partition("=") for text in args.set)}
    config = TrainConfig.model_validate({"dims": args.dims} | changes)
    if args.data:
        data = load_training_data(Dataset.open(args.data), config)
        data = replace(data, node=Node(Group()))
    else:
        data = random_data(DOCS, QUERIES, DIM, Node(Group()))
    runs = [measure(data, config, args.steps) for _ in range(args.runs)]
    if rank:
        return
    # each row from the run in which that stage came nearest to its limit's median: all parts of one run
    rows = [sorted(same, key=lambda row: row["ratio"])[len(same) // 2] for same in zip(*runs, strict=True)]
    rows.append(total(rows))
    print(f"ms a step, {args.ranks} rank(s) of one thread, batch {config.batch_size}, {args.steps} steps a stage")
    show(rows)
    if args.json:
        Path(args.json).write_text(json.dumps({"ranks": args.ranks, "rows": rows}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="dataset with train judgements; default: random vectors in scifact's shapes")
    parser.add_argument("--dims", default=DIMS)
    parser.add_argument("--steps", type=int, default=60, help="steps of a stage that are timed")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share each step")
    parser.add_argument("--runs", type=int, default=3, help="of which each stage's median is taken")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the method")
    parser.add_argument("--json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smec-") as store:
        if args.ranks == 1:
            work(0, args, store)
        else:
            spawn(work, (args, store), nprocs=args.ranks)


if __name__ == "__main__":
    main()
