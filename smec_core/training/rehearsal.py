"""Real steps of each stage of a plan, timed on this machine: the basis of `smec train --dry-run`.

Shapes: W rows held, D input dims.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.distributed.group import rows_of_rank
from smec_core.distributed.resident import BLOCK_ROWS, Node, Stage
from smec_core.evaluation.dev_set import make_dev_set
from smec_core.model.adapter import FrozenStage
from smec_core.training.callbacks import DevScoring
from smec_core.training.context import PassContext
from smec_core.training.plan import StagePlan
from smec_core.training.sampling import make_sampler
from smec_core.training.stage import StageTraining
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import TrainingData

STEPS = 4
DEV_DOCS = 20_000


class SampledRows:
    """A few rows that stand in for a whole table: a step takes as long on them as on the right rows."""

    most_held: int | None = None

    def __init__(self, matrix_WD: Tensor, rows: int, node: Node) -> None:
        self.matrix_WD, self.rows, self._node = matrix_WD, rows, node

    @property
    def dim(self) -> int:
        """D."""
        return self.matrix_WD.shape[1]

    def prepare(self, row_N: np.ndarray) -> None:
        """Does nothing: all rows that there are are here."""

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
        step: a step of all its candidates.
        score: a dev score of all of them; 0 without dev.
    """

    plan: StagePlan
    prepare: float
    step: float
    score: float

    @property
    def steps(self) -> tuple[int, int]:
        """Least and most steps of each candidate: dev decides."""
        least, most = self._epochs
        return least * self.plan.rhythm.epoch_steps, most * self.plan.rhythm.epoch_steps

    @property
    def seconds(self) -> tuple[float, float]:
        """Least and most time."""
        return tuple(  # type: ignore[return-value]
            self.prepare
            + epochs * self.plan.rhythm.epoch_steps * self.step
            + (1 + epochs // self.plan.rhythm.score_epochs) * self.score
            for epochs in self._epochs
        )

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
    data: TrainingData, config: TrainConfig, plan: Sequence[StagePlan], base: Sequence[FrozenStage] = ()
) -> list[StageTime]:
    """Takes a few real steps of each stage, and scores it once.

    Args:
        data: the judgements, and `SampledRows` of both tables.
        config: settings of the method.
        plan: all stages of all passes.
        base: stages that are trained already.
    """
    found: list[StageTime] = []
    for pass_name in dict.fromkeys(stage.pass_name for stage in plan):
        stages = [stage for stage in plan if stage.pass_name == pass_name]
        if pass_name == "refit":
            # the same stages once more, without dev
            found += [replace(time_, plan=stage, score=0.0) for stage, time_ in zip(stages, found, strict=True)]
            continue
        found += _rehearse_pass(data, config, stages, [stage.to(data.node.device) for stage in base])
    return found


def _rehearse_pass(
    data: TrainingData, config: TrainConfig, stages: Sequence[StagePlan], base: Sequence[FrozenStage]
) -> list[StageTime]:
    with_dev = config.guard and stages[0].pass_name == "first"
    sampler, held_out = make_sampler(config, data.docs.rows, data.train, data.dev, with_dev)
    few = config.model_copy(update={"dev_corpus": min(config.dev_corpus, DEV_DOCS)})
    dev = make_dev_set(data.queries, data.docs, data.dev, held_out, few, data.node) if with_dev else None
    context = PassContext(
        config=config,
        node=data.node,
        tracker=NullTracker(),
        pass_name=stages[0].pass_name,
        x_docs=data.docs,
        x_queries=data.queries,
        sampler=sampler,
        dev=dev,
        labelled=data.train is not None,
    )
    dev_share = config.dev_docs(data.docs.rows) / max(few.dev_docs(data.docs.rows), 1)
    y_docs, y_queries, found = data.docs, data.queries, list[StageTime]()
    for done in base:
        y_docs, y_queries = y_docs.project(done), y_queries.project(done)
        if dev is not None:
            dev.advance(done.apply, done.d_in)
    for plan in stages:
        started = time.perf_counter()
        stage = StageTraining(context, plan, y_docs, y_queries, ())
        slots = torch.arange(min(stage.memory.slots, data.docs.rows))
        # most steps meet a full memory
        stage.memory.push(slots.to(context.device), data.docs.take(slots).to(context.device))
        begun = time.perf_counter()
        laps = list(_laps(stage, context))
        scored = time.perf_counter()
        scoring = DevScoring()
        if dev is not None:
            scoring.stage_begins(stage, is_new=True)
        ended = time.perf_counter()
        kept = stage.candidates[0].average.freeze(plan.keeps_places)
        y_docs, y_queries = y_docs.project(kept), y_queries.project(kept)
        passed_on = time.perf_counter() - ended
        rows_share = data.docs.rows / len(y_docs.matrix_WD) if isinstance(y_docs, SampledRows) else 1.0
        found.append(
            StageTime(
                plan,
                prepare=rows_share * (begun - started + passed_on),
                step=statistics.median(laps),
                score=dev_share * (ended - scored),
            )
        )
        if dev is not None:
            dev.advance(kept.apply, plan.d_in)
    return found


def _laps(stage: StageTraining, context: PassContext) -> Iterator[float]:
    """Seconds of each step but the first, which warms up."""
    batches = context.sampler.epoch(context.key(stage.plan.number, 1, 0))
    for number, batch in enumerate(islice(batches, STEPS + 1)):
        started = time.perf_counter()
        stage.train_step(batch)
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)
        if number or context.sampler.epoch_steps == 1:
            yield time.perf_counter() - started
