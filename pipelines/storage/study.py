"""The stored trials of a study: a restart continues from them, and reports show them.

    STORAGE/STUDY/trials/STUDY-0001/trial.json    one trial, written at its start, after every stage, and at its end
    STORAGE/STUDY/trials/STUDY-0001/workers.json  the placement group of its workers, where it has some of its own
    STORAGE/STUDY/confirmed.json                  the best settings beside the defaults on test
    STORAGE/STUDY/tune-*/                         what Tune writes while a start of the study runs

where STORAGE/STUDY is the study's run folder. The first trial is the defaults.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import pyarrow.fs as pafs
from pydantic import BaseModel, ValidationError

from pipelines.storage.run_folder import RunFolder
from smec_core.data.uri import join_uri, public_uri
from smec_core.errors import DamagedError, one_line

TRIALS = "trials"
SUMMARY_FILE = "summary.json"
METRIC, PLACE = "quality", "place"
"""In what a trial reports: how good it is, and after which stage of the chain."""
TRIAL_FILE = "trial.json"
PLACED_FILE = "workers.json"

State = Literal["finished", "stopped", "failed", "running"]
STATES: tuple[State, ...] = get_args(State)


class Objective(BaseModel):
    """The measure by which the trials of a study are compared.

    Attributes:
        dim: prefix whose dev score counts; None for the mean over `dims`.
        dims: the dims that a model is to have.
        with_seconds: whether the seconds of training count, too: the outcome is then a Pareto front.
    """

    dim: int | None
    dims: tuple[int, ...]
    with_seconds: bool

    @classmethod
    def parse(cls, text: str, dims: Sequence[int]) -> Self:
        """Reads `mean`, a dim, or either with `,seconds` behind it."""
        quality, _, seconds = text.replace(" ", "").partition(",")
        return cls(dim=None if quality == "mean" else int(quality), dims=tuple(dims), with_seconds=bool(seconds))

    def quality(self, scores: dict[int, float]) -> float:
        """The one figure of a training's dev scores."""
        if self.dim is not None:
            return scores[self.dim]
        return sum(scores[dim] for dim in self.dims) / len(self.dims)


class Step(BaseModel):
    """How good a trial was after one of its stages; dims without a stage yet count as PCA of the kept block."""

    place: int
    quality: float
    scores: dict[int, float]
    seconds: float


class Trial(BaseModel):
    """One trial of a study.

    Attributes:
        number: from 1.
        params: the searched settings.
        state: running, finished, stopped early, or failed; a trial that a killed study left behind is running.
        steps: what it reached, stage by stage.
        seconds: of training, so far.
        error: why it failed.
        began, ended: seconds since the epoch.
    """

    number: int
    params: dict[str, Any]
    state: State = "running"
    steps: list[Step] = []
    seconds: float = 0.0
    error: str | None = None
    began: float = 0.0
    ended: float | None = None

    @property
    def quality(self) -> float | None:
        """What it reached last; None before its first stage's end."""
        return self.steps[-1].quality if self.steps else None

    @property
    def title(self) -> str:
        """Number and settings, for a person."""
        values = ", ".join(f"{name} {self.value_of(name)}" for name in self.params)
        return f"trial {self.number} ({values})" if self.number > 1 else f"trial 1 (the defaults: {values})"

    def value_of(self, name: str) -> str:
        """A searched setting, for a person."""
        value = self.params[name]
        return f"{value:.4g}" if isinstance(value, float) else str(value)


def trial_folder(study: RunFolder, number: int) -> RunFolder:
    """A trial's own folder; it has a name that no other study's trial has."""
    return RunFolder(join_uri(study.uri, TRIALS), f"{study.name}-{number:04}")


def read_trials(study: RunFolder) -> list[Trial]:
    """All trials of a study so far, by number."""
    selector = pafs.FileSelector(f"{study.path}/{TRIALS}", allow_not_found=True)
    names = [info.base_name for info in study.filesystem.get_file_info(selector)]
    numbers = sorted(int(found[1]) for name in names if (found := re.fullmatch(r".*-(\d{4,})", name)))
    trials = (_read_trial(trial_folder(study, number)) for number in numbers)
    return [trial for trial in trials if trial is not None]


def _read_trial(folder: RunFolder) -> Trial | None:
    cure = "remove its folder to run that trial anew"
    content = folder.read(TRIAL_FILE, cure=cure)
    try:
        return None if content is None else Trial.model_validate(content)
    except ValidationError as error:
        raise DamagedError(public_uri(join_uri(folder.uri, TRIAL_FILE)), one_line(error), cure) from error


def best_trials(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """The best finished trial; with seconds, the Pareto front, best first. Of equals the earlier."""
    finished = [trial for trial in trials if trial.state == "finished"]
    ranked = sorted(finished, key=lambda one: (-(one.quality or 0.0), one.seconds if objective.with_seconds else 0.0))
    if not objective.with_seconds:
        return ranked[:1]
    front: list[Trial] = []
    for trial in ranked:
        if not front or trial.seconds < front[-1].seconds:
            front.append(trial)
    return front
