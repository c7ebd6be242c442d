"""Which trial comes next, and which ends early: Optuna and ASHA on what the study knows already."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.storage.study import METRIC, PLACE, Objective, Trial
from tune_spaces.space import Space

REDUCTION_FACTOR = 2
OPTUNA_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class StudySearch(Searcher):
    """Optuna's TPE, started on the trials of the study so far; those that a kill interrupted come first.

    Each suggestion holds, beside the settings, the trial's `number`.

    Attributes:
        study: what Optuna knows.
    """

    def __init__(
        self, space: Space, defaults: Mapping[str, Any], trials: Sequence[Trial], objective: Objective, seed: int
    ) -> None:
        """Takes up a study.

        Args:
            space: what to search.
            defaults: the first trial.
            trials: those of the study so far.
            objective: what to search for.
            seed: of the sampler; what it draws after a restart depends on the trials so far, too.
        """
        super().__init__(metric=METRIC, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        ended = [trial for trial in trials if trial.state != "running"]
        self._numbers = {1, *(trial.number for trial in trials)}
        # nothing that an earlier start has drawn is drawn again
        state = np.random.SeedSequence((seed, max(self._numbers) if trials else 0)).generate_state(1)
        self._with_seconds = objective.with_seconds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # trials that run at the same time keep apart
            sampler = optuna.samplers.TPESampler(seed=int(state[0]), constant_liar=True)
        self.study = optuna.create_study(
            sampler=sampler,
            directions=["maximize", "minimize"] if objective.with_seconds else ["maximize"],
        )
        self._space = space
        for trial in ended:
            self.study.add_trial(as_optuna(trial, space, objective.with_seconds))
        self._waiting = [(trial.number, trial.params) for trial in trials if trial.state == "running"]
        if all(trial.number != 1 for trial in trials):
            self._waiting.insert(0, (1, dict(defaults)))
        self._asked: dict[str, optuna.Trial] = {}
        self._reported: set[tuple[str, int]] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Says that it knows what to search for."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The settings of the next trial."""
        if self._waiting:
            number, params = self._waiting.pop(0)
            self.study.enqueue_trial(params)
        else:
            # the least that is free: one that was drawn when a start was killed may have left nothing
            number = next(number for number in itertools.count(2) if number not in self._numbers)
            self._numbers.add(number)
        trial = self.study.ask(self._space)
        self._asked[trial_id] = trial
        return {"number": number, **trial.params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes what a trial reached after a stage."""
        reported = (trial_id, result[PLACE])
        if self._with_seconds or "error" in result or reported in self._reported:
            return
        self._reported.add(reported)
        self._asked[trial_id].report(result[METRIC], result[PLACE])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Takes how a trial ended."""
        values = None
        if error or result is None or "error" in result or PLACE not in result:
            state = TrialState.FAIL
        elif result.get("finished"):
            state = TrialState.COMPLETE
            values = [result[METRIC], result["seconds"]] if self._with_seconds else [result[METRIC]]
        else:
            # no value of its own: it is known how far it came, and how good it was then
            state = TrialState.PRUNED
            # Tune does not hand the result that ended it to on_trial_result
            self.on_trial_result(trial_id, result)
        trial = self._asked.pop(trial_id)
        self.study.tell(trial, values, state)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study's folder has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: see `save`."""


class Asha(ASHAScheduler):
    """ASHA by the stages of the chain, on the trials so far.

    Neither the first trial, the defaults, nor one that has all its stages is stopped.

    Attributes:
        stopped: numbers of the trials that it stopped.
    """

    def __init__(self, places: int, trials: Sequence[Trial]) -> None:
        """Takes up a study.

        Args:
            places: stages of the longest chain.
            trials: those of the study so far.
        """
        super().__init__(
            time_attr=PLACE,
            metric=METRIC,
            mode="max",
            max_t=places,
            # D -> D selects nothing: what concerns the selection has no effect before the second stage
            grace_period=min(2, places),
            reduction_factor=REDUCTION_FACTOR,
            stop_last_trials=False,
        )
        self.stopped: set[int] = set()
        nobody: Any = None
        for trial in trials:
            if trial.state == "running":
                continue
            known: Any = SimpleNamespace(trial_id=f"before-{trial.number}", config={"number": trial.number})
            self.on_trial_add(nobody, known)
            for step in trial.steps:
                self.on_trial_result(nobody, known, {PLACE: step.place, METRIC: step.quality})
            self.on_trial_remove(nobody, known)
        self.stopped.clear()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decides whether a trial goes on after a stage."""
        if "error" in result:
            return TrialScheduler.CONTINUE
        action: str = super().on_trial_result(tune_controller, trial, result)
        if trial.config["number"] == 1 or result[PLACE] >= self._max_t:
            return TrialScheduler.CONTINUE
        if action == TrialScheduler.STOP:
            self.stopped.add(trial.config["number"])
        return action


def as_optuna(trial: Trial, space: Space, with_seconds: bool) -> optuna.trial.FrozenTrial:
    """An ended trial as Optuna knows it."""
    values = None
    if trial.state == "finished" and trial.quality is not None:
        values = [trial.quality, trial.seconds] if with_seconds else [trial.quality]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.trial.create_trial(
            state=OPTUNA_STATES[trial.state],
            values=values,
            params=trial.params,
            distributions=space,
            intermediate_values={} if with_seconds else {step.place: step.quality for step in trial.steps},
        )
