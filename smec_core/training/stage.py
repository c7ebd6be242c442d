"""Training of one stage: its batches, its memory, and where its weights start."""

from collections.abc import Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from smec_core.distributed.resident import Rows
from smec_core.model.adapter import PRESERVING, FrozenStage
from smec_core.model.ads import gumbel
from smec_core.model.closed_forms import ClosedForm
from smec_core.training.checkpoint import Checkpoint
from smec_core.training.context import PassContext
from smec_core.training.learner import Learner
from smec_core.training.memory import CrossBatchMemory
from smec_core.training.ordering import Orders
from smec_core.training.plan import StagePlan
from smec_core.training.sampling import Batch
from smec_core.training.step import Clock, load_step
from smec_core.training.warm import WarmStart


class Callback:
    """Follows a stage in training; does nothing but what subclasses do. Called at the same places on every rank."""

    def stage_begins(self, stage: "StageTraining", is_new: bool) -> None:
        """Before the first step; `is_new` unless a checkpoint is taken up."""

    def step_done(self, stage: "StageTraining", trained: bool, rows: int, clock: Clock) -> None:
        """After a step of so many rows; whether there was something in it to learn."""

    def epoch_done(self, stage: "StageTraining") -> None:
        """After an epoch."""


class StageTraining:
    """A stage in training; stands between two steps whenever it is saved.

    Attributes:
        context: what the stages of the pass share.
        plan: what this stage does.
        learner: what it trains.
        memory: S-XBM.
        epoch: epochs done.
        batch: steps of the epoch done.
        order: the order in which its outputs start; None where its start is fixed.
    """

    def __init__(
        self,
        context: PassContext,
        plan: StagePlan,
        y_docs: Rows,
        y_queries: Rows,
        callbacks: Sequence[Callback],
        warm_start: WarmStart | None = None,
        resumed: Checkpoint | None = None,
    ) -> None:
        """Prepares the stage, or takes it up where a checkpoint left it. Collective.

        Args:
            context: what the stages of the pass share.
            plan: what to do.
            y_docs: blocks of the documents that the stage before keeps.
            y_queries: those of the queries.
            callbacks: follow the training.
            warm_start: gives the champion's documents where queries must find them.
            resumed: a checkpoint of this stage.
        """
        self.context, self.plan = context, plan
        self._y_docs, self._y_queries, self._callbacks = y_docs, y_queries, callbacks
        self._old_docs = None
        if warm_start is not None and plan.compatible:
            self._old_docs = warm_start.project(plan.number, context.device)
        self.order = plan.order
        # a checkpoint and a champion bring the start along
        is_new = resumed is None and plan.champion is None
        start_II = self._start() if is_new else torch.eye(plan.d_in)
        self.learner = Learner(context, plan, start_II)
        slots = context.config.queue_size if plan.alpha else 0
        self.memory = CrossBatchMemory(slots, context.x_docs.dim, context.group, context.config.memory, context.device)
        self.epoch = self.batch = 0
        if resumed is not None:
            self._restore(resumed)
        for callback in callbacks:
            callback.stage_begins(self, resumed is None)

    def _start(self) -> Tensor:
        context, plan = self.context, self.plan
        if plan.start == "random":
            generator = context.generator(plan.number, 3)
            sizes = [high - low for low, high in pairwise((0, *plan.prepared, plan.d_in))]
            blocks = [torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for size in sizes]
            return context.group.from_first_(torch.block_diag(*blocks))
        if plan.start == "identity":
            return torch.eye(plan.d_in)
        if plan.start == "closed":
            assert context.closed_DD is not None
            return context.closed_DD
        orders = Orders(context, self._y_docs, self._y_queries, plan.prepared)
        if plan.start == "pca":
            return orders.rotation(ClosedForm("pca"))
        usual = ClosedForm("pca", "pooled" if context.is_pooled else "docs")
        self.order = plan.order or orders.best(usual, [plan.dim, *plan.ahead], plan.protected)
        return orders.rotation(self.order)

    def _restore(self, resumed: Checkpoint) -> None:
        assert resumed.progress is not None
        self.epoch, self.batch = resumed.progress.epoch, resumed.progress.batch
        self.order = ClosedForm(**resumed.progress.order) if resumed.progress.order else None
        self.learner.restore(resumed.stage_of(self.plan.projection))
        self.memory.restore(resumed.memory, self.context.x_docs)

    def run(self) -> None:
        """Trains until it has converged or its epochs are done. Collective."""
        context, plan = self.context, self.plan
        while self.epoch < plan.rhythm.last and not self.learner.guard.stopped:
            batches = context.sampler.epoch(context.key(plan.number, 1, self.epoch))
            clock = Clock()
            for batch in islice(batches, self.batch, None):
                self.train_step(batch, clock)
                clock = Clock()
            self.epoch, self.batch = self.epoch + 1, 0
            for callback in self._callbacks:
                callback.epoch_done(self)

    def train_step(self, batch: Batch, clock: Clock | None = None) -> None:
        """One step. Collective.

        Args:
            batch: the step.
            clock: started before the batch was drawn.
        """
        clock = clock or Clock()
        context, plan = self.context, self.plan
        docs, queries = self._y_docs, self._y_queries
        step = load_step(context, batch, self.memory, docs, queries, self._old_docs, plan.alpha > 0, clock)
        noise_I = gumbel(plan.d_in, context.generator(plan.number, 2, self.epoch, self.batch)).to(context.device)
        # without judgements, the first step meets an empty memory
        trained = bool(step.weight_sum or step.unsup_weight)
        if trained:
            self.learner.train_step(context, step, plan.noise * noise_I)
        clock.lap("compute")
        rows = step.queries + step.docs
        self.batch += 1
        context.step += 1
        context.rows += rows
        for callback in self._callbacks:
            callback.step_done(self, trained, rows, clock)

    def label(self) -> dict[str, float | int | str]:
        """What a record begins with."""
        context = self.context
        return {
            "pass": context.pass_name,
            "stage": self.plan.dim,
            "projection": self.plan.projection,
            "epoch": self.epoch,
            "step": context.step,
        }

    def checkpoint(self) -> Checkpoint:
        """State that this rank checkpoints."""
        return Checkpoint(None, None if self.context.group.rank else self.learner.state(), [self.memory.shard()])


def teacher_at_start(context: PassContext, plan: StagePlan, y_docs: Rows) -> Rows:
    """Documents as the start of a stage of all dims has them, all dims of it: the teacher of unsupervised=listwise."""
    if plan.champion is not None and plan.champion.projection not in PRESERVING:
        whole = FrozenStage(plan.d_in, plan.champion.projection, plan.champion.tensors)
    elif plan.is_closed:
        assert context.closed_DD is not None
        whole = FrozenStage(plan.d_in, "linear", {"weight": context.closed_DD})
    else:
        # a rotation has the cosines of what it rotates
        return y_docs
    return y_docs.project(whole.to(context.device))
