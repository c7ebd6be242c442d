"""What a training will take before it starts: steps, seconds, memory and disk, from the data's shape and the settings.

How many epochs a stage takes is known between two bounds only: dev decides. What is expected goes by two shares of the
most epochs, as they were on the datasets that the project is measured on: see KEPT_SHARE.

Shapes: as in `step_cost`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from smec_core.config import Projection, TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import READ_ROWS
from smec_core.distributed.resident import BLOCK_ROWS
from smec_core.evaluation.dev_set import HELD_OUT_DOCS, held_out_docs
from smec_core.evaluation.evaluate import default_split
from smec_core.evaluation.metrics import SEARCH_DEPTH
from smec_core.model.adapter import FrozenStage
from smec_core.sizing.machine_speed import MachineSpeed
from smec_core.sizing.step_cost import (
    FLOAT,
    SEARCH_BYTES,
    StageShape,
    StepRows,
    candidate_seconds,
    load_seconds,
    pca_seconds,
    scoring_seconds,
    through_seconds,
)
from smec_core.training.schedule import (
    ahead_dims,
    prefix_dims,
    stage_kinds,
    stage_shapes,
    stages_in_one,
    steps_per_epoch,
)
from smec_core.training.warm import WarmStart, warm_epochs

KEPT_SHARE, KEPT_SHARE_PREPARED = 0.7, 0.2
"""Of the most epochs of a stage, after how many its best state is expected: of one that meets its dims for the first
time, and of one whose dims an earlier stage has looked ahead to, which finds little left to gain."""

# constants of a run, on a machine that does nothing else: imports, MLflow, Ray and its workers; the rows of one table
# through Ray Data, and that over the time of one process that reads them; the last checkpoint, the tasks that evaluate,
# the model's files
START_SECONDS, TABLE_SECONDS, READ_FACTOR, END_SECONDS = 14.0, 0.5, 1.2, 3.0
WORKER_BYTES, DRIVER_BYTES, DRIVER_BYTES_PER_ROW = 480 << 20, 660 << 20, 150
# matrices (I, I) of a candidate: parameters, average, gradient, both moments, best state, what going back needs
WEIGHTS_OF_FREE, WEIGHTS_OF_ROTATION = 10, 16


class Range(NamedTuple):
    """A figure that dev decides on."""

    least: float
    expected: float
    most: float

    def times(self, factor: float) -> "Range":
        """Each of the three by a factor."""
        return Range(*(value * factor for value in self))

    def plus(self, other: "Range | float") -> "Range":
        """Sum of two."""
        others = other if isinstance(other, Range) else (other,) * 3
        return Range(*(a + b for a, b in zip(self, others, strict=True)))


@dataclass(frozen=True)
class DataShape:
    """What of a dataset decides how long a training takes.

    Attributes:
        docs, queries, dim: rows and dims of the two tables.
        train: queries to learn from while dev decides; None without judgements.
        dev: dev queries; 0 without the guard. Without judgements, held-out documents.
        positives, hard: relevant documents, and judged irrelevant ones, that a query brings into a step.
        judged: documents with a judgement, from which those come.
        tested: queries of the evaluation at the end.
    """

    docs: int
    queries: int
    dim: int
    train: int | None
    dev: int
    positives: float
    hard: float
    judged: int
    tested: int

    @classmethod
    def of(cls, dataset: Dataset, config: TrainConfig) -> "DataShape":
        """Counts what a dataset holds.

        Raises:
            InputError: too few train queries.
        """
        train, dev = dataset.training_split(config)
        split = default_split(dataset)
        docs = dataset.corpus.rows
        tested = min(HELD_OUT_DOCS, docs) if split is None else len(dataset.splits[split].with_positives())
        sizes = (docs, dataset.queries.rows, dataset.dim)
        if train is None:
            held_out = held_out_docs(docs, config) if config.guard else 0
            return cls(*sizes, None, held_out, 0.0, 0.0, docs, tested)
        train = train.with_positives()
        judged = len(np.unique(train.doc_row_J))
        positives, hard = (_drawn(train, score_J, most) for score_J, most in _drawn_of(train, config))
        return cls(*sizes, len(train), 0 if dev is None else len(dev), positives, hard, judged, tested)

    @property
    def labelled(self) -> bool:
        """Whether there are judgements to learn from."""
        return self.train is not None

    def step_rows(self, config: TrainConfig, train: int | None) -> StepRows:
        """Mean sizes of a step where so many queries are learnt from."""
        if train is None:
            batch = config.batch_size + config.negatives
            queries, pairs, docs = 0.0, 0.0, (self.docs - self.dev) / steps_per_epoch(self.docs - self.dev, batch)
        else:
            queries = train / steps_per_epoch(train, config.batch_size)
            pairs = queries * self.positives
            # a document is there if any of the queries that name it is
            naming = train * (self.positives + self.hard) / self.judged
            docs = self.judged * (1 - (1 - queries / train) ** naming) + config.negatives
            docs = _distinct(docs, self.docs)
        if not config.unsupervised_weight(self.labelled):
            return StepRows(queries, docs, pairs)
        slots = float(min(config.queue_size, self.docs))
        neighbours = (queries + docs) * min(config.neighbours(self.labelled), slots)
        return StepRows(queries, docs, pairs, neighbours, _distinct(neighbours, slots), slots)


def _drawn_of(train: Judgements, config: TrainConfig) -> list[tuple[np.ndarray, int]]:
    return [(train.score_J > 0, config.positives), (train.score_J <= 0, config.hard_negatives)]


def _drawn(judged: Judgements, is_one_J: np.ndarray, most: int) -> float:
    count_Q = np.bincount(judged.query_J[is_one_J], minlength=len(judged))
    return float(np.minimum(count_Q, most).mean())


def _distinct(draws: float, of: float) -> float:
    """How many different ones so many draws are expected to give."""
    return of * -math.expm1(-draws / of) if of else 0.0


@dataclass(frozen=True)
class StagePlan:
    """One stage of one pass.

    Attributes:
        pass_name: first, refit or warm.
        shape: what it trains.
        kinds: projections that it tries.
        rows: mean sizes of a step.
        epoch_steps: steps of an epoch.
        epochs: epochs that each candidate takes.
        score_epochs: epochs from one scoring on dev to the next; 0 without dev.
        prefixes: how many prefixes are scored.
        does_pca: whether it starts at a PCA of the rows.
        is_last: whether no stage follows.
    """

    pass_name: str
    shape: StageShape
    kinds: tuple[Projection, ...]
    rows: StepRows
    epoch_steps: int
    epochs: Range
    score_epochs: int
    prefixes: int
    does_pca: bool
    is_last: bool

    @property
    def steps(self) -> Range:
        """Steps of the stage."""
        return self.epochs.times(self.epoch_steps)

    def ranks(self, workers: int, config: TrainConfig) -> int:
        """Ranks that share a candidate's step."""
        apart = config.memory == "global" and 1 < len(self.kinds) <= workers
        return workers // len(self.kinds) if apart else workers

    def step_seconds(self, data: DataShape, config: TrainConfig, workers: int, speed: MachineSpeed) -> float:
        """Time of a step of all candidates, those that are trained side by side by the slowest."""
        ranks = self.ranks(workers, config)
        each = [candidate_seconds(self.shape, kind, self.rows, ranks, speed) for kind in self.kinds]
        candidates = max(each) if ranks < workers else sum(each)
        return load_seconds(self.rows, data.dim, workers, speed) + candidates

    def scoring_seconds(self, data: DataShape, config: TrainConfig, workers: int, speed: MachineSpeed) -> float:
        """Time of a scoring of all candidates on dev."""
        docs = config.dev_docs(data.docs) / workers
        return sum(
            scoring_seconds(self.shape, kind, *self._scored(kind, data.dim), data.dev, docs, speed)
            for kind in self.kinds
        )

    def _scored(self, kind: Projection, input_dim: int) -> tuple[int, int]:
        """How many prefixes a candidate is scored at, and the longest."""
        if kind in ("rotation", "selection") and not self.shape.parallel:
            return 1 + len(self.shape.ahead), self.shape.dim
        return self.prefixes, input_dim

    def seconds(
        self, data: DataShape, config: TrainConfig, workers: int, speed: MachineSpeed, cpu: MachineSpeed
    ) -> Range:
        """Time of the stage; `speed` is that of where steps run."""
        found = self.steps.times(self.step_seconds(data, config, workers, speed))
        rows = data.docs / workers
        around = pca_seconds(rows, self.shape.d_in, cpu) if self.does_pca else 0.0
        if not self.is_last:
            around += through_seconds((data.docs + data.queries) / workers, self.shape, speed)
        if self.score_epochs:
            scoring = self.scoring_seconds(data, config, workers, speed)
            scorings = Range(*(1 + math.ceil(epochs / self.score_epochs) for epochs in self.epochs))
            found = found.plus(scorings.times(scoring))
            # the prefixes that a rotation cannot change, once; the kept stage put on top of dev
            whole = StageShape(self.shape.d_in, self.shape.d_in)
            docs = config.dev_docs(data.docs) / workers
            around += scoring_seconds(whole, "linear", 1, data.dim, data.dev, docs, speed)
        return found.plus(around)


def plan_stages(
    data: DataShape, config: TrainConfig, base: Sequence[FrozenStage] = (), warm_start: WarmStart | None = None
) -> list[StagePlan]:
    """All stages of all passes of a training.

    Raises:
        InputError: dims that the data or the base cannot give.
    """
    shapes = stage_shapes(data.dim, config, data.labelled, base)
    everything = None if data.train is None else data.train + data.dev
    if warm_start is not None:
        most = config.stage_epochs(_epoch_steps(data, config, everything)) * stages_in_one(data.dim, config)
        epochs = [warm_epochs(kept, most) for kept in warm_start.epochs]
        kinds = [(stage.projection,) for stage in warm_start.stages]
        return [
            _stage(data, config, shapes, number, "warm", kind, everything, Range(*[float(taken)] * 3), most)
            for number, (kind, taken) in enumerate(zip(kinds, epochs, strict=True))
        ]
    first = []
    most = config.stage_epochs(_epoch_steps(data, config, data.train)) * stages_in_one(data.dim, config)
    for number, shape in enumerate(shapes):
        kinds_of = tuple(stage_kinds(shape[0], shape[1], config, bool(base)))
        is_prepared = number > 0 and bool(ahead_dims(shapes, number - 1, config, data.labelled))
        epochs_of = _first_epochs(data, config, most, is_prepared)
        first.append(_stage(data, config, shapes, number, "first", kinds_of, data.train, epochs_of, most))
    if not (config.guard and config.refit and data.labelled):
        return first
    refit = []
    for number, stage in enumerate(first):
        is_prepared = number > 0 and bool(first[number - 1].shape.ahead)
        kept = Range(0.0, float(round(_kept_share(is_prepared) * most)), float(most))
        # rotations where both are tried: where labels are few they are kept
        refit.append(_stage(data, config, shapes, number, "refit", stage.kinds[:1], everything, kept, most))
    return [*first, *refit]


def _kept_share(is_prepared: bool) -> float:
    return KEPT_SHARE_PREPARED if is_prepared else KEPT_SHARE


def _epoch_steps(data: DataShape, config: TrainConfig, train: int | None) -> int:
    if train is None:
        return steps_per_epoch(data.docs - data.dev, config.batch_size + config.negatives)
    return steps_per_epoch(train, config.batch_size)


def _first_epochs(data: DataShape, config: TrainConfig, most: int, is_prepared: bool) -> Range:
    """Epochs of a stage while dev decides, which it does at a scoring only."""
    if not config.guard:
        return Range(*[float(most)] * 3)
    every = config.scoring_epochs(most, _epoch_steps(data, config, data.train))
    patience = config.stage_patience(most)
    until = [patience, round(_kept_share(is_prepared) * most) + patience, most]
    return Range(*(float(min(math.ceil(epochs / every) * every, most)) for epochs in until))


def _stage(
    data: DataShape,
    config: TrainConfig,
    shapes: list[list[int]],
    number: int,
    pass_name: str,
    kinds: tuple[Projection, ...],
    train: int | None,
    epochs: Range,
    most: int,
) -> StagePlan:
    d_in, dim = shapes[number]
    prefixes = prefix_dims(data.dim, config.dims)
    parallel = prefixes if config.schedule == "parallel" else ()
    shape = StageShape(
        d_in,
        dim,
        ahead_dims(shapes, number, config, data.labelled),
        parallel,
        config.hidden_dim if "residual_mlp" in kinds else 0,
        pass_name == "warm" and bool(config.compatible),
    )
    epoch_steps = _epoch_steps(data, config, train)
    is_scored = config.guard and pass_name == "first"
    return StagePlan(
        pass_name=pass_name,
        shape=shape,
        kinds=kinds,
        rows=data.step_rows(config, train),
        epoch_steps=epoch_steps,
        epochs=epochs,
        score_epochs=config.scoring_epochs(most, epoch_steps) if is_scored else 0,
        prefixes=len(parallel or {*shape.ahead, dim, d_in, *(p for p in prefixes if p >= d_in)}),
        does_pca=config.init == "pca" and (dim != d_in or bool(parallel)) and pass_name != "warm",
        is_last=number + 1 == len(shapes),
    )


def reading_seconds(data: DataShape, speed: MachineSpeed) -> float:
    """Time to bring all rows to the workers."""
    size = FLOAT * (data.docs + data.queries) * data.dim
    return 2 * TABLE_SECONDS + size * READ_FACTOR / speed.read_bytes_per_s


def evaluation_seconds(data: DataShape, config: TrainConfig, workers: int, speed: MachineSpeed) -> float:
    """Time of the evaluation at the end: two passes over the corpus, for the model and the baselines."""
    rows, prefixes = data.docs / workers, len(prefix_dims(data.dim, config.dims))
    reading = (2 * rows + data.queries) * FLOAT * data.dim / speed.read_bytes_per_s
    encoding = pca_seconds(rows, data.dim, speed) + 2 * speed.product(rows, data.dim, data.dim)
    search = 3 * speed.product(data.tested, data.dim, rows)
    search += speed.moved(3 * SEARCH_BYTES * prefixes * data.tested * rows)
    return END_SECONDS + reading + encoding + search


def worker_bytes(data: DataShape, config: TrainConfig, stages: Sequence[StagePlan]) -> int:
    """Memory of one worker's own at its peak, without resident rows."""
    most = 0.0
    for stage in stages:
        weights = sum(WEIGHTS_OF_ROTATION if kind == "rotation" else WEIGHTS_OF_FREE for kind in stage.kinds)
        rows = stage.rows
        step = 6 * (rows.anchors + rows.items) * stage.shape.d_in + rows.anchors * rows.slots * 4
        step += 8 * rows.pairs * rows.docs * (1 + len(stage.shape.ahead))
        scoring = 2 * data.dev * BLOCK_ROWS + 4 * (data.dev + BLOCK_ROWS) * stage.shape.d_in
        most = max(most, weights * stage.shape.d_in**2 + max(step, scoring if stage.score_epochs else 0))
    queue = min(config.queue_size, data.docs) * data.dim if config.unsupervised_weight(data.labelled) else 0
    own = FLOAT * (most + queue + data.dev * data.dim)
    return int(WORKER_BYTES + own)


def resident_bytes(data: DataShape, config: TrainConfig, stages: Sequence[StagePlan]) -> int:
    """Rows that a node holds at the peak: as they are, what the stage before kept, and what the stage keeps."""
    rows = data.docs + data.queries
    widths = [0]
    for stage in stages:
        if stage.pass_name == stages[0].pass_name and not stage.is_last:
            # the first stage's input is the rows themselves
            widths.append(stage.shape.dim + (0 if len(widths) == 1 else stage.shape.d_in))
    return FLOAT * (rows * (data.dim + max(widths)) + config.dev_docs(data.docs) * data.dim)


def driver_bytes(data: DataShape, config: TrainConfig) -> int:
    """Memory of the driver at its peak: where it evaluates by itself, as with one worker."""
    # of the model and two baselines: a score and a row each
    results = 3 * len(prefix_dims(data.dim, config.dims)) * SEARCH_DEPTH * (FLOAT + 8)
    searching = data.tested * (2 * FLOAT * READ_ROWS + results)
    return DRIVER_BYTES + DRIVER_BYTES_PER_ROW * (data.docs + data.queries) + searching


def checkpoint_bytes(stages: Sequence[StagePlan]) -> int:
    """Disk of the two checkpoints that are kept, and of the one that is being stored."""
    largest = max((len(stage.kinds) * stage.shape.d_in**2 for stage in stages), default=0)
    done = sum(stage.shape.d_in**2 for stage in stages)
    return 3 * FLOAT * (6 * largest + done)


def as_json(stage: StagePlan, step_seconds: float, seconds: Range) -> dict[str, Any]:
    """A stage's figures."""
    return {
        "pass": stage.pass_name,
        "d_in": stage.shape.d_in,
        "dim": stage.shape.dim,
        "projections": list(stage.kinds),
        "epoch_steps": stage.epoch_steps,
        "steps": {name: round(value) for name, value in stage.steps._asdict().items()},
        "step_ms": round(1e3 * step_seconds, 3),
        "seconds": {name: round(value, 1) for name, value in seconds._asdict().items()},
    }
