"""The training: executes the plan of `plan.plan_training`, stage by stage and pass by pass.

Runs in one process or on every rank of a process group; nothing here knows Ray or where figures are kept.

Shapes: D input dims.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.distributed.resident import Rows
from smec_core.evaluation.dev_set import QueryScores, Scores
from smec_core.model.adapter import FrozenStage
from smec_core.model.closed_forms import ClosedForm
from smec_core.model.pca import block_rotation
from smec_core.training.callbacks import Checkpointing, DevScoring, Gradient, GradientProbe, StepLog
from smec_core.training.checkpoint import Checkpoint, Checkpoints, Progress, same_device
from smec_core.training.closed import ClosedStart
from smec_core.training.context import PassContext, PassName, TrainingData, pass_context
from smec_core.training.guard import References
from smec_core.training.ordering import Orders
from smec_core.training.plan import StagePlan, plan_training
from smec_core.training.schedule import TrainingShape, chain_dims, prefix_dims
from smec_core.training.second_start import from_better_start
from smec_core.training.self_taught import FULL_VECTORS
from smec_core.training.stage import Callback, StageTraining, teacher_at_start
from smec_core.training.tracker import Tracker
from smec_core.training.trained import StageOutcome, Trained
from smec_core.training.warm import WarmStart


class StageReached(NamedTuple):
    """How good the nested vector is after a stage of the first pass.

    Attributes:
        place: of the stage in the whole chain, from 1: the same for all trainings to these dims, also without D -> D.
        scores: dev score of every prefix; those without a stage yet are scored as PCA of the block that is kept so far,
            where what a stage has looked ahead to is rotated among itself only.
        seconds: of training so far.
    """

    place: int
    scores: dict[int, float]
    seconds: float


@dataclass(frozen=True)
class Hooks:
    """What observes a training besides its tracker. Either all ranks have `checkpoints` and `on_stage`, or none has.

    Attributes:
        say: takes one line of progress at a time.
        checkpoints: where the state goes at every stage's end and every so many steps.
        resumed: a checkpoint to go on from, which the same data and settings wrote.
        on_stage: called after each stage that is trained on dev; after a resume for earlier ones, too.
        on_gradient: called with the gradients of linear maps in the first pass.
    """

    say: Callable[[str], None] = lambda text: None
    checkpoints: Checkpoints | None = None
    resumed: Checkpoint | None = None
    on_stage: Callable[[StageReached], None] | None = None
    on_gradient: Callable[[Gradient], None] | None = None


NO_HOOKS = Hooks()


def train(
    data: TrainingData,
    config: TrainConfig,
    tracker: Tracker,
    hooks: Hooks = NO_HOOKS,
    base: Sequence[FrozenStage] = (),
    warm_start: WarmStart | None = None,
) -> Trained:
    """Trains the chain (paper section 3.1, with the guard and the refit pass). Collective.

    Args:
        data: what this rank holds.
        config: settings of the method.
        tracker: takes step and epoch records; give every rank but the first a NullTracker.
        hooks: what else follows the training.
        base: stages that are trained already; those that follow are rotations of the smallest block they keep.
        warm_start: the champion that each stage starts from.

    Returns:
        The whole chain, that of the base included.

    Raises:
        InputError: the settings do not fit the data, the base or the champion.
    """
    plan = plan_training(data.shape(config), config, base, warm_start)
    refit = [stage for stage in plan if stage.pass_name == "refit"]
    plan = plan[: len(plan) - len(refit)]
    training = _Training(data, config, tracker, hooks, base, warm_start, stages=len(plan))
    first = final = training.run("first" if warm_start is None else "warm", plan)
    if training.keeps_start:
        # each stage stays where it starts, which makes up the closed form
        refit = refit or [replace(stage, pass_name="refit") for stage in plan]
        final = training.run("refit", [stage.replay(stage.projection, 0).unordered() for stage in refit])
        first = [replace(kept, seconds=trained.seconds) for kept, trained in zip(final, first, strict=True)]
    elif refit:
        kept = zip(refit, first, strict=True)
        final = training.run(
            "refit", [stage.replay(one.stage.projection, one.epochs, one.order) for stage, one in kept]
        )
    stages = [outcome.stage for outcome in final]
    seconds = training.seconds()
    metrics = {
        "dev": training.dev_scores,
        **({"taught_by": FULL_VECTORS} if data.is_self_taught else {}),
        **({"start": training.closed.chosen} if training.closed.chosen else {}),
        "stages": [outcome.metrics(stage) for outcome, stage in zip(first, stages, strict=True)],
        "training": {
            "seconds": round(seconds, 3),
            "steps": training.steps,
            "rows_per_s": round(training.rows / max(seconds, 1e-9), 1),
            "workers": data.node.group.size,
            "device": str(data.node.device),
            "parameters": sum(tensor.numel() for stage in stages for tensor in stage.tensors.values()),
        },
    }
    return Trained([*training.base, *stages], metrics)


def settings_used(shape: TrainingShape, config: TrainConfig) -> TrainConfig:
    """The settings with what their defaults come to on some data: given these, a training gives the same model."""
    times = len(chain_dims(shape.input_dim, config.dims)) if config.schedule == "parallel" else 1
    epochs = config.stage_epochs(shape.epoch_steps if config.guard else shape.refit_steps)
    patience = config.stage_patience(epochs * times)
    return config.resolved(shape.labelled).model_copy(update={"epochs": epochs, "patience": patience})


class _Training:
    """Runs the stages of a pass one after the other, each on the block that the one before it kept."""

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        tracker: Tracker,
        hooks: Hooks,
        base: Sequence[FrozenStage],
        warm_start: WarmStart | None,
        stages: int,
    ) -> None:
        self.stages = stages
        self.data, self.config, self.tracker, self.hooks = data, config, tracker, hooks
        self.base, self.warm_start = [stage.to(data.node.device) for stage in base], warm_start
        self.prefixes = prefix_dims(data.docs.dim, [*config.dims, *(stage.dim for stage in base)])
        self.dev_scores: dict[str, dict[str, float]] = {}
        self.passes: dict[str, list[StageOutcome]] = {}
        self.steps = self.rows = 0
        self._resumed = hooks.resumed
        self._before, self._started = 0.0, time.perf_counter()
        self._pass_to_resume: str | None = None
        self.closed = ClosedStart(data, config, self.prefixes, hooks.say)
        if self._resumed is not None and self._resumed.progress is not None:
            self._restore(self._resumed.progress)

    def _restore(self, progress: Progress) -> None:
        self.passes = {
            name: [StageOutcome.from_tree(same_device(tree, self.data.node.device)) for tree in outcomes]
            for name, outcomes in progress.passes.items()
        }
        self.dev_scores, self._before = progress.dev_scores, progress.seconds
        self.closed.chosen = progress.start
        self.steps, self.rows = progress.step, progress.rows
        self._pass_to_resume = progress.pass_name
        self.hooks.say(
            f"resumed at step {progress.step}: {progress.pass_name} pass, stage {progress.stage + 1} of {self.stages}, "
            f"epoch {progress.epoch}, {progress.batch} steps into it"
        )

    def seconds(self) -> float:
        """What the training has taken so far, before and after an interruption."""
        return self._before + time.perf_counter() - self._started

    @property
    def keeps_start(self) -> bool:
        """Whether the closed form, or PCA, is no worse on dev than what it has trained."""
        return "kept" in self.closed.chosen

    def run(self, pass_name: PassName, plan: Sequence[StagePlan]) -> list[StageOutcome]:
        """Runs one pass, or what a checkpoint has left of it."""
        outcomes = self.passes.setdefault(pass_name, [])
        if self._pass_to_resume not in (None, pass_name):
            return outcomes
        self._pass_to_resume = None
        learnt = replace(self.data, dev=None) if pass_name == "refit" and not self.config.refit else self.data
        context = pass_context(learnt, self.config, pass_name, self.tracker, self.steps, self.rows)
        if plan and plan[0].is_closed:
            self._prepare(context)
        y_docs, y_queries = self.data.docs, self.data.queries
        # kept as long as the pass takes, so only where it is asked
        loss = self.config.unsupervised_loss(context.labelled)
        is_taught = loss == "listwise" and any(planned.alpha for planned in plan)
        context.teacher = y_docs if is_taught else None
        for stage in self.base:
            y_docs, y_queries = y_docs.project(stage), y_queries.project(stage)
            context.put_on_top(stage)
            if is_taught and stage.dim == self.data.docs.dim:
                context.teacher = y_docs
        floors: Scores = {}
        for number, planned in enumerate(plan):
            if number == len(outcomes):
                train_stage = partial(self._train_stage, context, y_docs=y_docs, y_queries=y_queries)
                planned = replace(planned, floors=floors)
                outcomes.append(
                    from_better_start(context, planned, self.closed, self.passes, train_stage, self.hooks.say)
                    if planned.is_closed
                    else train_stage(planned)
                )
                self.steps, self.rows = context.step, context.rows
                self._report(pass_name, number, len(plan), outcomes[-1])
            outcome = outcomes[number]
            # an earlier prefix is held to what it had when its own stage ended, so that losses do not add up
            floors = planned.floors_of(outcome.scores) | floors
            context.put_on_top(outcome.stage)
            if number + 1 < len(plan):
                y_docs, y_queries = y_docs.project(outcome.stage), y_queries.project(outcome.stage)
                if is_taught and planned.d_in == planned.dim:
                    # of all dims, whatever of them the stages after it keep
                    context.teacher = y_docs
            if self.hooks.on_stage is not None and context.dev is not None:
                self.hooks.on_stage(self._reached(context, y_docs, y_queries, plan, number))
        if context.dev is not None:
            scores = context.dev.score(lambda y: y, self.data.docs.dim, self.prefixes)
            if plan and plan[0].is_closed and self.config.epochs != 0:
                scores = self._better(context, scores)
            self.dev_scores = {context.dev.measure: {str(dim): scores[dim].mean().item() for dim in self.prefixes}}
        return outcomes

    def _prepare(self, context: PassContext) -> None:
        """Makes what the stages of a pass start from, and what dev is held to."""
        if context.dev is not None:
            self._refer_to(context, context.group.from_first_(block_rotation(self.closed.docs_DD)))
        context.closed_DD, context.is_pooled = self.closed.make(context)
        self._refer_to(context, context.closed_DD)
        if self.closed.starts_plain:
            context.closed_DD, context.is_pooled = torch.eye(self.data.docs.dim), False

    def _refer_to(self, context: PassContext, matrix_DD: Tensor) -> None:
        if context.dev is None:
            return
        stage = FrozenStage(len(matrix_DD), "linear", {"weight": matrix_DD.to(context.device)})
        scores = [*context.references.scores, context.dev.score(stage.apply, len(matrix_DD), self.prefixes)]
        context.references = References(scores, context.dev.parts.masks, self.config.guard_tolerance)

    def _better(self, context: PassContext, scores: QueryScores) -> QueryScores:
        """The dev scores of what is kept: of the chain, or where it is no better of the closed form or of PCA."""
        assert context.dev is not None
        pca, closed = context.references.scores
        tried = {"pca": pca, "closed": closed, "trained": scores}
        weighted = {name: context.dev.weighted(values) for name, values in tried.items()}
        best = max(tried, key=lambda name: sum(weighted[name][dim].mean().item() for dim in self.prefixes))
        if best != "trained":
            self.closed.chosen["kept"] = best
            name = {"pca": "PCA", "closed": "the closed form"}[best]
            self.hooks.say(f"the trained stages are no better on dev than {name}, which is kept")
        return tried[best]

    def _train_stage(self, context: PassContext, plan: StagePlan, y_docs: Rows, y_queries: Rows) -> StageOutcome:
        if context.teacher is not None and plan.number == 0 and not self.base and plan.alpha:
            context.teacher = teacher_at_start(context, plan, y_docs)
        resumed, self._resumed = self._resumed, None
        progress = None if resumed is None else resumed.progress
        before, started = 0.0 if progress is None else progress.stage_seconds, time.perf_counter()

        def progress_of(stage: StageTraining | None) -> Progress | None:
            if context.group.rank:
                return None
            return self._progress(context, plan.number, before + time.perf_counter() - started, stage)

        log = StepLog()
        callbacks: list[Callback] = [log, DevScoring()]
        if self.hooks.on_gradient is not None and context.pass_name == "first":
            callbacks.append(GradientProbe(self.hooks.on_gradient))
        if self.hooks.checkpoints is not None:
            checkpointing = Checkpointing(self.hooks.checkpoints, log, progress_of)
            callbacks.append(checkpointing)
            # what the stage before left is a checkpoint even where this stage takes long to begin
            if progress is None and context.step:
                checkpointing.save(None, context.group.rank)
        within = resumed if resumed is not None and resumed.is_within else None
        stage = StageTraining(context, plan, y_docs, y_queries, callbacks, self.warm_start, within)
        stage.run()
        kept, guard, seconds = stage.learner.best, stage.learner.guard, before + time.perf_counter() - started
        return StageOutcome(
            plan.d_in, kept, guard.best_epoch, guard.best_score, guard.best_scores, seconds, stage.order
        )

    def _progress(
        self, context: PassContext, number: int, stage_seconds: float, stage: StageTraining | None
    ) -> Progress:
        return Progress(
            pass_name=context.pass_name,
            stage=number,
            epoch=stage.epoch if stage else 0,
            batch=stage.batch if stage else 0,
            step=context.step,
            rows=context.rows,
            seconds=self.seconds(),
            stage_seconds=stage_seconds if stage else 0.0,
            dev_scores=self.dev_scores,
            start=self.closed.chosen,
            passes={name: [outcome.tree() for outcome in outcomes] for name, outcomes in self.passes.items()},
            order=stage.order._asdict() if stage and stage.order else {},
        )

    def _reached(
        self, context: PassContext, y_docs: Rows, y_queries: Rows, plan: Sequence[StagePlan], number: int
    ) -> StageReached:
        place = number + 2 if plan[0].d_in > plan[0].dim else number + 1
        if self.config.schedule == "parallel":
            place = len(chain_dims(self.data.docs.dim, self.config.dims))
        dim = plan[number].dim
        # it changes no cosine at the prefixes that have had their stage
        rotation_dd = torch.eye(dim)
        if number + 1 < len(plan):
            orders = Orders(context, y_docs, y_queries, plan[number + 1].prepared)
            rotation_dd = orders.rotation(ClosedForm("pca", "pooled" if context.is_pooled else "docs"))
        rotation_dd = rotation_dd.to(context.device)
        assert context.dev is not None
        scores = context.dev.score(lambda y_Nd: y_Nd @ rotation_dd.T, dim, self.prefixes)
        return StageReached(place, {prefix: scores[prefix].mean().item() for prefix in self.prefixes}, self.seconds())

    def _report(self, pass_name: PassName, number: int, stages: int, outcome: StageOutcome) -> None:
        line = (
            f"{pass_name} pass, stage {number + 1} of {stages}: {outcome.d_in} -> {outcome.stage.dim} dims, "
            f"{outcome.stage.projection}, {outcome.epochs} epochs kept, {outcome.seconds:.1f} s"
        )
        if outcome.order is not None:
            line += f", in the order of {outcome.order.name}"
        if outcome.scores:
            line += f", mean dev score of the prefixes in training {outcome.dev_score:.4f}"
        self.hooks.say(line)
