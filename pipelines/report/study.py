"""The report page of a study: which settings matter, what the best reached, and what it cost."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from pydantic import BaseModel

from pipelines.report import figures
from pipelines.report.files import read
from pipelines.storage.study import Objective, Trial, best_trials
from pipelines.tracking.plots import MEASURES
from smec_core.errors import InputError
from tune_spaces.space import Space, distributions

LEAST_FOR_IMPORTANCE = 4
DEFAULTS = 1
"""Number of the trial that is the defaults."""


class SummaryFile(BaseModel):
    """What the page uses of a study's summary.json."""

    study: str
    data: str
    objective: str
    dims: tuple[int, ...]
    measure: str
    space: dict[str, dict[str, Any]]
    best: list[int]
    states: dict[str, int]
    last_start: dict[str, float] | None = None
    trials: list[Trial]
    confirmed: dict[str, Any] | None = None


def study_page(file: Path) -> dict[str, Any]:
    """Everything the template shows about one study: texts, tables, and figures by element id.

    Raises:
        InputError: the file is no summary of a study, or no trial got anywhere.
    """
    summary = read(file, SummaryFile)
    # one that was cut off or failed says little of its settings, and would have all others compared where it ended
    trials = [trial for trial in summary.trials if trial.steps and trial.state in ("finished", "stopped")]
    if not trials:
        raise InputError(f"{file}: none of its trials finished a stage; there is nothing to show")
    objective = Objective.parse(summary.objective, summary.dims)
    space = distributions(summary.space)
    drawn: dict[str, figures.Figure] = {}
    names = list(space)
    place = min(max(step.place for step in trial.steps) for trial in trials)
    reached = {
        trial.number: [step.quality for step in trial.steps if step.place <= place][-1]
        for trial in trials
        if trial.steps[0].place <= place
    }
    measure = MEASURES.get(summary.measure, summary.measure)
    of_defaults = [trial for trial in trials if trial.number == DEFAULTS]
    importance: dict[str, float] = {}
    if len(trials) >= 2:
        last = {trial.number: trial.quality or 0.0 for trial in trials}
        default = next((place for place, trial in enumerate(trials) if trial.number == DEFAULTS), None)
        drawn["parallel"] = _parallel(_optuna_study(trials, space, last), measure, default)
    if len(reached) >= LEAST_FOR_IMPORTANCE and len(set(reached.values())) > 1:
        compared = _optuna_study([trial for trial in trials if trial.number in reached], space, reached)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importance = optuna.importance.get_param_importances(compared, evaluator=evaluator)
        drawn["importance"] = figures.bars(importance, "share of the variance")
    finished = [trial for trial in trials if trial.state == "finished"]
    front = best_trials(trials, objective.model_copy(update={"with_seconds": True}))
    if finished:
        drawn["front"] = figures.front(
            _points(finished, "seconds"),
            _points(front, "seconds"),
            _points([trial for trial in finished if trial in of_defaults], "seconds"),
            measure,
        )
    slices = {}
    for name in names:
        by_state = {
            label: _points([trial for trial in trials if trial.state == state], name)
            for label, state in (("finished", "finished"), ("stopped early", "stopped"))
        }
        drawn[f"slice-{name}"] = figures.slice_of(
            by_state, _points(of_defaults, name), name, measure, _is_log(space, name)
        )
        slices[name] = f"slice-{name}"
    if "queue_size" in space and finished:
        drawn["queue-seconds"] = figures.slice_of(
            {"finished": [(trial.params["queue_size"], trial.seconds) for trial in finished]},
            [(trial.params["queue_size"], trial.seconds) for trial in finished if trial in of_defaults],
            "queue_size",
            "seconds of training",
            _is_log(space, "queue_size"),
        )
    by_number = {trial.number: trial for trial in summary.trials}
    best, defaults = [by_number[number] for number in summary.best], by_number.get(DEFAULTS)
    headline = f"{measure} {best[0].quality:.4f} on dev, {len(summary.trials)} trials"
    if defaults is not None and defaults.quality is not None and defaults.state == "finished":
        headline += f"; the defaults {defaults.quality:.4f}"
    rows = sorted(summary.trials, key=lambda one: (one.state != "finished", -(one.quality or 0.0)))
    return {
        "headline": headline,
        "summary": summary,
        "names": names,
        "trials": rows,
        "best": best,
        "place": place,
        "importance": importance,
        "slices": slices,
        "has_defaults": bool(of_defaults),
        "figures": drawn,
    }


def _is_log(space: Space, name: str) -> bool:
    return bool(getattr(space[name], "log", False))


def _points(trials: list[Trial], name: str) -> list[tuple[Any, float]]:
    """A setting, or the seconds, against quality."""
    return [(trial.seconds if name == "seconds" else trial.params[name], trial.quality or 0.0) for trial in trials]


def _optuna_study(trials: list[Trial], space: Space, values: Mapping[int, float]) -> optuna.Study:
    """The trials as Optuna's figures and importances take them, with one value each."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for trial in trials:
            value = values[trial.number]
            study.add_trial(optuna.trial.create_trial(value=value, params=trial.params, distributions=space))
    return study


def _parallel(study: optuna.Study, measure: str, default: int | None) -> figures.Figure:
    drawn = json.loads(optuna.visualization.plot_parallel_coordinate(study, target_name=measure).to_json())
    return figures.parallel(drawn, default)
