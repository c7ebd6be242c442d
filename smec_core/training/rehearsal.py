"""Real steps of each stage of a plan, timed on this machine: the basis of `smec train --dry-run`.

Shapes: W rows held, D input dims.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.distributed.group import rows_of_rank
from smec_core.distributed.resident import BLOCK_ROWS, Node, Stage
from smec_core.model.adapter import FrozenStage
from smec_core.model.pca import mean_of_squares
from smec_core.training.callbacks import DevScoring
from smec_core.training.closed import FORMS, try_forms
from smec_core.training.context import TrainingData, pass_context
from smec_core.training.moments import MomentSums
from smec_core.training.ordering import ORDERS, put_in_order
from smec_core.training.plan import StagePlan
from smec_core.training.schedule import prefix_dims
from smec_core.training.stage import StageTraining
from smec_core.training.tracker import NullTracker
from smec_core.training.warm import WarmStart

STEPS = 4
FEW_FORMS = FORMS[:: len(FORMS) - 1]
"""Of the closed forms, the simplest and one of the others."""
DEV_DOCS = 20_000


class SampledRows:
    """A few rows that stand in for a whole table: a step takes as long on them as on the right rows."""

    def __init__(self, matrix_WD: Tensor, rows: int, node: Node) -> None:
        self.matrix_WD, self.rows, self.drawn, self._node = matrix_WD, rows, rows, node

    @property
    def dim(self) -> int:
        """D."""
        return self.matrix_WD.shape[1]

    def take(self, row_N: Tensor) -> Tensor:
        """A row (N, D) for each of those named."""
        return self.matrix_WD.index_select(0, row_N % len(self.matrix_WD))

    def own_blocks(self) -> Iterator[Tensor]:
        """The rows that are held, a block at a time."""
        start, stop = rows_of_rank(len(self.matrix_WD), self._node.group.rank, self._node.group.size)
        yield from self.matrix_WD[start:stop].split(BLOCK_ROWS)

    def project(self, stage: Stage) -> "SampledRows":
        """The block that a trained stage keeps of every row held."""
        kept = [stage.keep(block_ND.to(self._node.device)).cpu() for block_ND in self.own_blocks()]
        return SampledRows(torch.cat(kept), self.rows, self._node)


@dataclass(frozen=True)
class StageTime:
    """What a stage of the plan takes, in seconds.

    Attributes:
        plan: the stage.
        prepare: its start, and the rows that it passes on.
        step: a step of it.
        score: a dev score; 0 without dev.
    """

    plan: StagePlan
    prepare: float
    step: float
    score: float

    @property
    def steps(self) -> tuple[int, int]:
        """Least and most steps: dev decides."""
        least, most = self._epochs
        return least * self.plan.rhythm.epoch_steps, most * self.plan.rhythm.epoch_steps

    @property
    def seconds(self) -> tuple[float, float]:
        """Least and most time."""
        scores = [1 + epochs // self.plan.rhythm.score_epochs for epochs in self._epochs]
        least, most = (
            self.prepare + steps * self.step + count * self.score
            for steps, count in zip(self.steps, scores, strict=True)
        )
        return least, most

    @property
    def _epochs(self) -> tuple[int, int]:
        rhythm = self.plan.rhythm
        if self.plan.pass_name == "refit":
            # as many as the first pass keeps
            return 0, rhythm.epochs
        if self.score == 0:
            return rhythm.last, rhythm.last
        # it stops when dev is scored for the first time after so many epochs without gain
        without_gain = -(-rhythm.patience // rhythm.score_epochs) * rhythm.score_epochs
        return min(without_gain, rhythm.epochs), rhythm.epochs


def rehearse(
    data: TrainingData,
    config: TrainConfig,
    plan: Sequence[StagePlan],
    base: Sequence[FrozenStage] = (),
    warm_start: WarmStart | None = None,
) -> list[StageTime]:
    """Takes a few real steps of each stage, and scores it once.

    Args:
        data: the judgements, and `SampledRows` of both tables.
        config: settings of the method.
        plan: all stages of all passes.
        base: stages that are trained already.
        warm_start: the champion that the stages start from.
    """
    assert isinstance(data.docs, SampledRows)
    refit = [stage for stage in plan if stage.pass_name == "refit"]
    first = plan[: len(plan) - len(refit)]
    if not first:
        return []
    few = config.model_copy(update={"dev_corpus": min(config.dev_corpus, DEV_DOCS)})
    context = pass_context(data, few, first[0].pass_name, NullTracker())
    dev_share = config.dev_docs(data.docs.rows) / max(few.dev_docs(data.docs.rows), 1)
    rows_share = data.docs.rows / len(data.docs.matrix_WD)
    y_docs, y_queries = data.docs, data.queries

    def pass_on(stage: FrozenStage) -> None:
        nonlocal y_docs, y_queries
        y_docs, y_queries = y_docs.project(stage), y_queries.project(stage)
        context.put_on_top(stage)

    context.teacher = data.docs
    choice = 0.0
    if first[0].is_closed and data.train is not None:
        context.closed_DD = torch.eye(data.docs.dim)
        choose = partial(
            try_forms,
            MomentSums(data.docs, data.queries, data.node.group),
            data,
            data.train,
            few,
            [data.docs.dim],
            FEW_FORMS,
        )
        choice = len(FORMS) / len(FEW_FORMS) * _seconds(choose)
        choice += rows_share * _seconds(partial(mean_of_squares, data.docs, context.group))
        order = partial(put_in_order, context, context.closed_DD, prefix_dims(data.docs.dim, config.dims))
        choice += dev_share * _seconds(order)
    for done in base:
        pass_on(done.to(data.node.device))
    found, replayed = list[StageTime](), list[StageTime]()
    for number, stage_plan in enumerate(first):
        started = time.perf_counter()
        stage = StageTraining(context, stage_plan, y_docs, y_queries, (), warm_start)
        prepare = time.perf_counter() - started
        if stage_plan.start in ("pca", "ordered") and stage_plan.champion is None:
            # of a PCA, the sums grow with the rows
            prepare += (rows_share - 1) * _seconds(partial(mean_of_squares, y_docs, context.group))
        slots = torch.arange(min(stage.memory.slots, data.docs.rows))
        # most steps meet a full memory
        stage.memory.push(slots.to(context.device), data.docs.take(slots).to(context.device))
        # a stage that stays at its start has no schedule for steps
        step = _step_seconds(stage) if stage_plan.rhythm.last else 0.0
        score = in_order = 0.0
        if context.dev is not None:
            score = _seconds(partial(DevScoring().stage_begins, stage, is_new=True))
            # the refit takes the order that dev has chosen
            in_order = len(ORDERS) * score if stage_plan.start == "ordered" else 0.0
        frozen = stage.learner.average.freeze(stage_plan.keeps_places)
        prepare += rows_share * _seconds(partial(pass_on, frozen))
        first_prepare = prepare + (dev_share - 1) * in_order + (0.0 if found else choice)
        found.append(StageTime(stage_plan, first_prepare, step, dev_share * score))
        if refit:
            replayed.append(StageTime(refit[number], max(prepare - in_order, 0.0), step, 0.0))
    return found + replayed


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _step_seconds(stage: StageTraining) -> float:
    """Median time of a step, after one that warms up."""
    context, laps = stage.context, list[float]()
    for batch in islice(context.sampler.epoch(context.key(stage.plan.number, 1, 0)), STEPS + 1):
        started = time.perf_counter()
        stage.train_step(batch)
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)
        laps.append(time.perf_counter() - started)
    return statistics.median(laps[1:] or laps)
