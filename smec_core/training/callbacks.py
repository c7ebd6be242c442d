"""What follows a stage in training: its log, its dev scores, its checkpoints, its gradients.

Every rank calls the same callbacks at the same places, so that they may be collective.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from smec_core.evaluation.dev_set import QueryScores
from smec_core.training.checkpoint import Checkpoint, Checkpoints, Progress
from smec_core.training.stage import Callback, StageTraining
from smec_core.training.step import Clock

LOG_EVERY = 20


class StepLog(Callback):
    """Sends a record of each step, some steps at a time: reading a loss waits for the device."""

    def __init__(self) -> None:
        self._waiting: list[tuple[dict[str, float | int | str], Tensor, Tensor | None]] = []

    def step_done(self, stage: StageTraining, trained: bool, rows: int, clock: Clock) -> None:
        """Keeps the step's record."""
        fill = stage.memory.fill() if stage.memory.slots else None
        if trained:
            record = stage.label() | clock.seconds
            record["rows_per_s"] = rows / sum(clock.seconds.values())
            record |= {"tau": stage.context.config.tau, "lr": float(stage.learner.schedule.get_last_lr()[0])}
            self._waiting.append((record, stage.learner.parts_2, fill))
        if len(self._waiting) >= LOG_EVERY:
            self.flush(stage)

    def epoch_done(self, stage: StageTraining) -> None:
        """Sends what is kept."""
        self.flush(stage)

    def flush(self, stage: StageTraining) -> None:
        """Sends what is kept."""
        for record, parts_2, fill in self._waiting:
            rank_part, unsup_part = parts_2.tolist()
            loss = rank_part + stage.plan.alpha * unsup_part
            parts = {"loss": loss, "rank_loss": rank_part, "unsup_loss": unsup_part}
            filled = {} if fill is None else {"memory_fill": float(fill)}
            stage.context.tracker.log(record | parts | filled)
        self._waiting = []


class DevScoring(Callback):
    """Scores the stage and keeps its best state; without dev the last."""

    def __init__(self) -> None:
        self._at_start: QueryScores = {}

    def stage_begins(self, stage: StageTraining, is_new: bool) -> None:
        """Scores what the stage starts from."""
        context, plan = stage.context, stage.plan
        if context.dev is not None and stage.learner.stage.preserves_cosines:
            unchanged = [dim for dim in plan.scored if dim >= plan.d_in]
            self._at_start = context.dev.score(lambda y_Nd: y_Nd, plan.d_in, unchanged)
        if is_new:
            self._score(stage)

    def epoch_done(self, stage: StageTraining) -> None:
        """Scores the stage where it is time for that."""
        rhythm = stage.plan.rhythm
        if stage.epoch % rhythm.score_epochs == 0 or stage.epoch == rhythm.last:
            self._score(stage)

    def _score(self, stage: StageTraining) -> None:
        figures = stage.learner.score(stage.context, stage.epoch, self._at_start)
        if figures:
            stage.context.tracker.log(stage.label() | figures)


class Checkpointing(Callback):
    """Saves the training every so many steps."""

    def __init__(
        self, checkpoints: Checkpoints, log: StepLog, progress: Callable[[StageTraining | None], Progress | None]
    ) -> None:
        """Prepares it.

        Args:
            checkpoints: where they go.
            log: is sent first: a checkpoint holds all figures up to its step.
            progress: says where the training stands; None on other ranks than the first.
        """
        self._checkpoints, self._log, self._progress = checkpoints, log, progress

    def step_done(self, stage: StageTraining, trained: bool, rows: int, clock: Clock) -> None:
        """Saves the stage as it stands where it is time for that."""
        if stage.context.step % self._checkpoints.every == 0:
            self._log.flush(stage)
            self.save(stage, stage.context.group.rank)

    def save(self, stage: StageTraining | None, rank: int) -> None:
        """Saves the training in the midst of a stage, or between two of them. Collective."""
        state = Checkpoint(None, None, []) if stage is None else stage.checkpoint()
        state.progress = self._progress(stage)

        def write(folder: Path) -> None:
            state.write(folder, rank)

        self._checkpoints.save(write)


class Gradient(NamedTuple):
    """Gradient of the linear map of a stage in one step.

    Attributes:
        dim: dims that the stage keeps.
        epoch: epochs done before.
        weight_II: gradient of its projection's matrix, a row an output dim.
    """

    dim: int
    epoch: int
    weight_II: Tensor


class GradientProbe(Callback):
    """Passes on the gradients of linear maps, for experiments."""

    def __init__(self, take: Callable[[Gradient], None]) -> None:
        self._take = take

    def step_done(self, stage: StageTraining, trained: bool, rows: int, clock: Clock) -> None:
        """Passes on those of the step."""
        if trained and stage.plan.projection == "linear":
            gradient_II = stage.learner.stage.matrix.grad
            assert gradient_II is not None
            self._take(Gradient(stage.plan.dim, stage.epoch, gradient_II))
