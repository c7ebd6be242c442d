"""The whole training: a guarded first pass through the chain of stages, then its replay on all labels.

Runs in one process or on every rank of a process group; nothing here knows Ray or where figures are kept.

Shapes: D input dims.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from smec_core.config import Projection, TrainConfig
from smec_core.data.judgements import Judgements
from smec_core.distributed.resident import Node, Rows
from smec_core.evaluation.dev_set import Scores, held_out_docs, make_dev_set
from smec_core.model.adapter import FrozenStage
from smec_core.model.pca import principal_rotation
from smec_core.training.checkpoint import Checkpoint, Checkpoints, Progress, same_device
from smec_core.training.context import OnGradient, PassContext, StageSpec
from smec_core.training.sampling import LabelledSampler, UnlabelledSampler
from smec_core.training.schedule import ahead_dims, prefix_dims, stage_kinds, stage_shapes, stages_in_one
from smec_core.training.stage import StageTraining
from smec_core.training.tracker import Tracker
from smec_core.training.trained import StageOutcome, Trained
from smec_core.training.warm import WarmStart, check_warm_start, warm_epochs


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


OnStage = Callable[[StageReached], None]


@dataclass(frozen=True)
class TrainingData:
    """What one rank trains on.

    Attributes:
        docs: frozen unit document vectors.
        queries: frozen unit query vectors.
        train: judgements to learn from; None to train without judgements.
        dev: judgements to choose by; None without judgements, or where nothing is chosen.
        node: this rank's machine and device, and all ranks of the run.
    """

    docs: Rows
    queries: Rows
    train: Judgements | None
    dev: Judgements | None
    node: Node = field(default_factory=Node)


def train(
    data: TrainingData,
    config: TrainConfig,
    tracker: Tracker,
    say: Callable[[str], None] = lambda text: None,
    base: Sequence[FrozenStage] = (),
    checkpoints: Checkpoints | None = None,
    resumed: Checkpoint | None = None,
    on_stage: OnStage | None = None,
    on_gradient: OnGradient | None = None,
    warm_start: WarmStart | None = None,
) -> Trained:
    """Trains the chain (paper section 3.1, with the guard and the replay). Collective.

    A warm start is one pass on train + dev without a guard: the champion has learnt from what is dev now, so that dev
    would always like the start best. Each stage takes the epochs that the champion kept, over which its learning rate
    runs a whole cycle, but at least warm.LEAST_SHARE of the most epochs of a stage, and at most all of those.

    Args:
        data: what this rank holds.
        config: settings of the method.
        tracker: takes step and epoch records; give every rank but the first a NullTracker.
        say: takes one line of progress at a time.
        base: stages that are trained already; those that follow are rotations of the smallest block they keep.
        checkpoints: where the state goes at every stage's end and every so many steps.
        resumed: a checkpoint to go on from, which the same data and settings wrote.
        on_stage: called on every rank after each stage that is trained on dev; after a resume for earlier ones, too.
        on_gradient: called with the gradients of linear maps in the first pass.
        warm_start: the champion that each stage starts from.

    Returns:
        The whole chain, that of the base included.

    Raises:
        InputError: a dim above the data's dims, or one that the base cannot give any more; a champion that the
            settings do not fit.
    """
    chain = _Chain(data, config, tracker, say, base, checkpoints, resumed, on_stage, on_gradient, warm_start)
    first = final = chain.run("first", None) if warm_start is None else chain.run("warm", warm_start.plan)
    if warm_start is None and config.guard and config.refit and data.train is not None:
        final = chain.run("refit", [(outcome.stage.projection, outcome.best.epochs) for outcome in first])
    stages = [outcome.stage for outcome in final]
    seconds = chain.seconds()
    metrics = {
        "dev": chain.dev_scores,
        "stages": [outcome.metrics(stage) for outcome, stage in zip(first, stages, strict=True)],
        "training": {
            "seconds": round(seconds, 3),
            "steps": chain.steps,
            "rows_per_s": round(chain.rows / max(seconds, 1e-9), 1),
            "workers": data.node.group.size,
            "device": str(data.node.device),
            "parameters": sum(tensor.numel() for stage in stages for tensor in stage.tensors.values()),
        },
    }
    return Trained([*chain.base, *stages], metrics)


def settings_used(
    config: TrainConfig, input_dim: int, docs: int, train: Judgements | None, dev: Judgements | None, is_warm: bool
) -> TrainConfig:
    """The settings with what their defaults come to on some data: given these, a training gives the same model.

    Args:
        config: settings of the method.
        input_dim: dims of the embeddings.
        docs: documents of the corpus.
        train: judgements to learn from, as in `TrainingData`.
        dev: judgements to choose by.
        is_warm: whether it is a warm start.
    """
    epochs = config.stage_epochs(_sampler(config, docs, train, dev, config.guard and not is_warm)[0].epoch_steps)
    patience = config.stage_patience(epochs * stages_in_one(input_dim, config))
    return config.resolved(train is not None).model_copy(update={"epochs": epochs, "patience": patience})


class _Chain:
    """Runs the stages of a pass one after the other, each on the block that the one before it kept."""

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        tracker: Tracker,
        say: Callable[[str], None],
        base: Sequence[FrozenStage],
        checkpoints: Checkpoints | None,
        resumed: Checkpoint | None,
        on_stage: OnStage | None,
        on_gradient: OnGradient | None,
        warm_start: WarmStart | None,
    ) -> None:
        self.data, self.config, self.tracker, self.say = data, config, tracker, say
        self.on_stage, self.on_gradient = on_stage, on_gradient
        self.base = [stage.to(data.node.device) for stage in base]
        self.warm_start = warm_start
        check_warm_start(warm_start, data.docs.dim, config, data.train is not None, base)
        self.checkpoints, self.resumed = checkpoints, resumed
        input_dim = data.docs.dim
        self.shapes = stage_shapes(input_dim, config, data.train is not None, base)
        self.prefixes = prefix_dims(input_dim, [*config.dims, *(stage.dim for stage in base)])
        self.dev_scores: dict[str, dict[str, float]] = {}
        self.passes: dict[str, list[StageOutcome]] = {}
        self.epochs = 0
        self.steps = self.rows = 0
        self._before, self._started = 0.0, time.perf_counter()
        if resumed is not None and resumed.progress is not None:
            self._restore(resumed.progress)

    def _restore(self, progress: Progress) -> None:
        device = self.data.node.device
        self.passes = {
            name: [StageOutcome.from_tree(same_device(tree, device)) for tree in outcomes]
            for name, outcomes in progress.passes.items()
        }
        self.dev_scores, self.epochs = progress.dev_scores, progress.epochs
        self.steps, self.rows, self._before = progress.step, progress.rows, progress.seconds
        self.say(
            f"resumed at step {progress.step}: {progress.pass_name} pass, stage {progress.stage + 1} of "
            f"{len(self.shapes)}, epoch {progress.epoch}, {progress.batch} steps into it"
        )

    def seconds(self) -> float:
        """What the training has taken so far, before and after an interruption."""
        return self._before + time.perf_counter() - self._started

    def run(self, pass_name: str, plan: list[tuple[Projection, int]] | None) -> list[StageOutcome]:
        """One pass; `plan` fixes the kind and the epochs of every stage, else dev decides."""
        outcomes = self.passes.setdefault(pass_name, [])
        if plan is None and "refit" in self.passes:
            return outcomes
        run = self._prepare(pass_name, with_dev=self.config.guard and plan is None)
        if plan is None or self.warm_start is not None:
            # a replay has more labels and so more steps an epoch, but the same epochs
            self.epochs = self.config.stage_epochs(run.sampler.epoch_steps) * stages_in_one(
                self.data.docs.dim, self.config
            )
        y_docs, y_queries = self.data.docs, self.data.queries
        for stage in self.base:
            _put_on_top(run, stage)
            y_docs, y_queries = y_docs.project(stage), y_queries.project(stage)
        reached: Scores = {}
        for number in range(len(self.shapes)):
            if number == len(outcomes):
                outcomes.append(self._train_stage(run, number, plan, reached, y_docs, y_queries))
                self.steps, self.rows = run.step, run.rows
                self._report(pass_name, number, outcomes[-1])
            outcome = outcomes[number]
            # an earlier prefix is held to what it had when its own stage ended, so that losses do not add up
            ended = {p: s for p, s in outcome.best.scores.items() if p in self.prefixes and p >= outcome.stage.dim}
            reached = ended | reached
            _put_on_top(run, outcome.stage)
            if number + 1 < len(self.shapes):
                y_docs, y_queries = y_docs.project(outcome.stage), y_queries.project(outcome.stage)
            if self.on_stage is not None and run.dev is not None:
                self.on_stage(self._reached(run, y_docs, number))
        if run.dev is not None:
            scores = run.dev.score(lambda y: y, self.data.docs.dim, self.prefixes)
            self.dev_scores = {run.dev.measure: {str(dim): scores[dim].mean().item() for dim in self.prefixes}}
        return outcomes

    def _train_stage(
        self,
        run: PassContext,
        number: int,
        plan: list[tuple[Projection, int]] | None,
        reached: Scores,
        y_docs: Rows,
        y_queries: Rows,
    ) -> StageOutcome:
        d_in, dim = self.shapes[number]
        kinds, stop = (
            (stage_kinds(d_in, dim, self.config, bool(self.base)), None)
            if plan is None
            else ([plan[number][0]], plan[number][1])
        )
        epochs, start, old_docs = self.epochs, None, None
        if self.warm_start is not None and stop is not None:
            stop = warm_epochs(stop, self.epochs)
            epochs, start = stop, self.warm_start.stages[number]
            old_docs = self.warm_start.project(number, self.data.node.device) if self.config.compatible else None
        floors = {prefix: score - self.config.guard_tolerance for prefix, score in reached.items()}
        parallel = self.prefixes if self.config.schedule == "parallel" else ()
        ahead, prepared = self._ahead(number), self._prepared(number)
        spec = StageSpec(number, d_in, dim, kinds, epochs, stop, floors, parallel, ahead, prepared, start, old_docs)
        resumed, self.resumed = self.resumed, None
        was_resumed, before = resumed is not None, 0.0
        if resumed is not None and resumed.progress is not None:
            before = resumed.progress.stage_seconds
            resumed = resumed if resumed.progress.guards else None
        started = time.perf_counter()

        def save(training: StageTraining | None) -> None:
            if self.checkpoints is None:
                return
            state = training.checkpoint() if training else Checkpoint(None, {}, [])
            if run.group.rank == 0:
                state.progress = self._progress(run, number, before + time.perf_counter() - started, training)
            self.checkpoints.save(lambda folder: state.write(folder, run.group.rank))

        # what the stage before left is a checkpoint even where this stage takes long to begin
        if not was_resumed and run.step:
            save(None)
        training = StageTraining(run, spec, y_docs, y_queries, resumed)
        training.run(save, self.checkpoints.every if self.checkpoints else None)
        ranked = training.ranked()
        tried = {candidate.kind: candidate.tried() for candidate in ranked}
        return StageOutcome(d_in, ranked[0].best, tried, before + time.perf_counter() - started)

    def _progress(
        self, run: PassContext, number: int, stage_seconds: float, training: StageTraining | None
    ) -> Progress:
        return Progress(
            pass_name=run.pass_name,
            stage=number,
            epoch=training.epoch if training else 0,
            batch=training.batch if training else 0,
            step=run.step,
            rows=run.rows,
            seconds=self.seconds(),
            stage_seconds=stage_seconds if training else 0.0,
            epochs=self.epochs,
            dev_scores=self.dev_scores,
            passes={name: [outcome.tree() for outcome in outcomes] for name, outcomes in self.passes.items()},
            guards={c.kind: c.kept() for c in training.candidates} if training else {},
        )

    def _prepared(self, number: int) -> tuple[int, ...]:
        """Dims that the stage before has trained by looking ahead, ascending."""
        return self._ahead(number - 1)[::-1] if number else ()

    def _ahead(self, number: int) -> tuple[int, ...]:
        return ahead_dims(self.shapes, number, self.config, self.data.train is not None)

    def _reached(self, run: PassContext, y_docs: Rows, number: int) -> StageReached:
        place = number + 2 if self.shapes[0][0] > self.shapes[0][1] else number + 1
        place = max(place, stages_in_one(self.data.docs.dim, self.config))
        dim = self.shapes[number][1]
        is_last = number + 1 == len(self.shapes)
        # it changes no cosine at the prefixes that have had their stage
        rotation_dd = torch.eye(dim) if is_last else principal_rotation(y_docs, run.group, self._prepared(number + 1))
        rotation_dd = rotation_dd.to(run.device)
        assert run.dev is not None
        scores = run.dev.score(lambda y_Nd: y_Nd @ rotation_dd.T, dim, self.prefixes)
        return StageReached(place, {prefix: scores[prefix].mean().item() for prefix in self.prefixes}, self.seconds())

    def _prepare(self, pass_name: str, with_dev: bool) -> PassContext:
        data, config = self.data, self.config
        sampler, held_out = _sampler(config, data.docs.rows, data.train, data.dev, with_dev)
        dev = None
        if with_dev:
            dev = make_dev_set(data.queries, data.docs, data.dev, held_out, config, data.node)
        return PassContext(
            config,
            data.node,
            self.tracker,
            pass_name,
            data.docs,
            data.queries,
            sampler,
            dev,
            data.train is not None,
            self.steps,
            self.rows,
            self.on_gradient if pass_name == "first" else None,
        )

    def _report(self, pass_name: str, number: int, outcome: StageOutcome) -> None:
        line = (
            f"{pass_name} pass, stage {number + 1} of {len(self.shapes)}: {outcome.d_in} -> {outcome.stage.dim} dims, "
            f"{outcome.stage.projection}, {outcome.best.epochs} epochs kept, {outcome.seconds:.1f} s"
        )
        if outcome.best.scores:
            kinds = ", ".join(f"{kind} {result.dev_score:.4f}" for kind, result in outcome.tried.items())
            line += f", mean dev score of the prefixes in training: {kinds}"
        self.say(line)


def _put_on_top(run: PassContext, stage: FrozenStage) -> None:
    if run.dev is not None:
        run.dev.advance(stage.apply, stage.d_in)


def _sampler(
    config: TrainConfig, docs: int, train: Judgements | None, dev: Judgements | None, with_dev: bool
) -> tuple[LabelledSampler | UnlabelledSampler, np.ndarray]:
    """What a pass learns from, and the rows of documents that it holds out."""
    if train is not None:
        labels = train if with_dev or dev is None else train.merge(dev)
        return LabelledSampler(labels.with_positives(), docs, config), np.empty(0, np.int64)
    held_out = _held_out(docs, config) if with_dev else np.empty(0, np.int64)
    return UnlabelledSampler(np.setdiff1d(np.arange(docs), held_out), config), held_out


def _held_out(rows: int, config: TrainConfig) -> np.ndarray:
    count = held_out_docs(rows, config)
    return np.sort(np.random.default_rng((config.seed, 2)).choice(rows, count, replace=False))
