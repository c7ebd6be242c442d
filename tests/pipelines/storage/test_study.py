"""Studies without a cluster: what is compared, what is kept, and how a search goes on from it."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from pipelines.storage.run_folder import RunFolder
from pipelines.storage.study import TRIAL_FILE, Objective, Step, Trial, best_trials, read_trials, trial_folder
from pipelines.tune.search import Asha, StudySearch
from tune_spaces.space import Space

MEAN = Objective.parse("mean", [8, 4])
SPACE: Space = {"tau": FloatDistribution(0.1, 10, log=True)}


def trial(number: int, state: Any, qualities: Sequence[float], seconds: float = 1.0, tau: float = 1.0) -> Trial:
    steps = [
        Step(place=place, quality=quality, scores={8: quality, 4: quality}, seconds=seconds)
        for place, quality in enumerate(qualities, start=1)
    ]
    return Trial(number=number, params={"tau": tau}, state=state, steps=steps, seconds=seconds)


def test_what_trials_are_compared_by() -> None:
    scores = {16: 0.9, 8: 0.6, 4: 0.2}
    assert MEAN.quality(scores) == pytest.approx(0.4)
    assert Objective.parse("4", [8, 4]).quality(scores) == 0.2
    both = Objective.parse("16, seconds", [8, 4])
    assert both.quality(scores) == 0.9
    assert both.with_seconds


def test_the_best_are_finished_and_with_seconds_a_front() -> None:
    trials = [
        trial(1, "finished", [0.5], seconds=10),
        trial(2, "finished", [0.7], seconds=30),
        trial(3, "stopped", [0.9], seconds=5),
        trial(4, "finished", [0.6], seconds=40),
        trial(5, "finished", [0.7], seconds=20),
        trial(6, "running", [0.95]),
    ]
    assert [one.number for one in best_trials(trials, MEAN)] == [2]
    front = best_trials(trials, MEAN.model_copy(update={"with_seconds": True}))
    assert [one.number for one in front] == [5, 1]
    assert best_trials(trials[2:3], MEAN) == []


def test_trials_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    study = RunFolder(str(tmp_path), "study")
    assert read_trials(study) == []
    written = [trial(1, "finished", [0.5, 0.6]), trial(2, "failed", []), trial(10, "running", [0.1])]
    for one in reversed(written):
        folder = trial_folder(study, one.number)
        folder.create()
        folder.write(TRIAL_FILE, one.model_dump(mode="json"))
    assert read_trials(study) == written


def ask(search: StudySearch, count: int) -> list[dict[str, Any]]:
    return [search.suggest(f"t{number}") for number in range(count)]


def test_a_new_study_begins_with_the_defaults() -> None:
    first, second = ask(StudySearch(SPACE, {"tau": 1.5}, [], MEAN, seed=0), 2)
    assert first == {"number": 1, "tau": 1.5}
    assert second["number"] == 2
    assert second["tau"] != 1.5


def test_the_same_seed_asks_for_the_same_trials() -> None:
    suggestions = [ask(StudySearch(SPACE, {"tau": 1.0}, [], MEAN, seed), 3) for seed in (0, 0, 1)]
    assert suggestions[0] == suggestions[1] != suggestions[2]


def test_a_study_goes_on_with_what_was_interrupted_and_repeats_nothing() -> None:
    known = [trial(1, "finished", [0.5]), trial(2, "running", [0.4], tau=0.3), trial(3, "failed", [], tau=2.0)]
    fresh = ask(StudySearch(SPACE, {"tau": 1.0}, [], MEAN, seed=0), 4)
    resumed = ask(StudySearch(SPACE, {"tau": 1.0}, known, MEAN, seed=0), 3)
    assert resumed[0] == {"number": 2, "tau": 0.3}
    assert [one["number"] for one in resumed] == [2, 4, 5]
    assert not {one["tau"] for one in fresh} & {one["tau"] for one in resumed}


def test_the_search_learns_from_earlier_trials() -> None:
    # only small tau is any good, and there are enough trials for the sampler to have noticed
    known = [
        trial(n, "finished", [1.0 - tau / 10], tau=tau) for n, tau in enumerate([0.11 + 0.5 * k for k in range(19)])
    ]
    asked = ask(StudySearch(SPACE, {"tau": 1.0}, known, MEAN, seed=0), 20)
    assert sum(one["tau"] < 1 for one in asked) > 12


def test_nothing_is_drawn_twice_where_no_trial_has_ended() -> None:
    fresh = ask(StudySearch(SPACE, {"tau": 1.0}, [], MEAN, seed=0), 4)
    interrupted = [trial(one["number"], "running", [], tau=one["tau"]) for one in fresh]
    resumed = ask(StudySearch(SPACE, {"tau": 1.0}, interrupted, MEAN, seed=0), 7)
    assert resumed[:4] == fresh
    assert not {one["tau"] for one in fresh} & {one["tau"] for one in resumed[4:]}


def test_the_defaults_come_first_also_where_only_others_had_begun() -> None:
    asked = ask(StudySearch(SPACE, {"tau": 1.0}, [trial(2, "running", [], tau=0.3)], MEAN, seed=0), 3)
    assert [one["number"] for one in asked] == [1, 2, 3]
    assert [one["tau"] for one in asked[:2]] == [1.0, 0.3]


@pytest.mark.parametrize(
    ("ending", "state", "value"),
    [
        ({"finished": True}, TrialState.COMPLETE, 0.5),
        ({}, TrialState.PRUNED, 0.5),
        ({"error": "out of memory"}, TrialState.FAIL, None),
        (None, TrialState.FAIL, None),
    ],
)
def test_the_search_takes_every_kind_of_ending(
    ending: dict[str, Any] | None, state: TrialState, value: float | None
) -> None:
    search = StudySearch(SPACE, {"tau": 1.0}, [], MEAN, seed=0)
    search.suggest("a")
    result = None if ending is None else {"place": 2, "quality": 0.5, "seconds": 2.0} | ending
    search.on_trial_complete("a", result, error=ending is None)
    [known] = search.study.trials
    assert (known.state, known.value) == (state, value)
    assert known.intermediate_values == ({2: 0.5} if state == TrialState.PRUNED else {})


def test_with_seconds_a_trial_has_two_values() -> None:
    search = StudySearch(SPACE, {"tau": 1.0}, [], Objective.parse("mean,seconds", [8, 4]), seed=0)
    search.suggest("a")
    search.on_trial_result("a", {"place": 1, "quality": 0.4, "seconds": 1.0})
    search.on_trial_complete("a", {"place": 2, "quality": 0.5, "seconds": 2.0, "finished": True})
    [known] = search.study.trials
    assert known.values == [0.5, 2.0]


def decide(asha: Asha, number: int, place: int, quality: float) -> str:
    tune_trial: Any = SimpleNamespace(trial_id=f"t{number}", config={"number": number})
    nobody: Any = None
    asha.on_trial_add(nobody, tune_trial)
    return asha.on_trial_result(nobody, tune_trial, {"place": place, "quality": quality})


def test_asha_stops_what_falls_behind_earlier_trials_but_never_the_defaults() -> None:
    known = [trial(n, "finished" if n < 3 else "stopped", [0.6, 0.5 + n / 100]) for n in range(2, 6)]
    asha = Asha(5, known)
    assert decide(asha, 7, 1, 0.1) == TrialScheduler.CONTINUE
    assert decide(asha, 7, 2, 0.1) == TrialScheduler.STOP
    assert decide(asha, 8, 2, 0.9) == TrialScheduler.CONTINUE
    assert decide(asha, 1, 2, 0.1) == TrialScheduler.CONTINUE
    assert asha.stopped == {7}
    assert decide(Asha(5, []), 7, 2, 0.1) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("places", [2, 4, 8])
def test_asha_lets_a_trial_end_that_has_all_its_stages(places: int) -> None:
    asha = Asha(places, [trial(n, "finished", [0.9] * places) for n in range(2, 6)])
    assert decide(asha, 7, places, 0.1) == TrialScheduler.CONTINUE
    assert not asha.stopped
