"""The anchor: what no challenger may fall behind, however small the steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.retrain.anchor import beats, find_anchor
from pipelines.retrain.drift import known_queries, problem_of_known
from pipelines.retrain.ledger import Ledger, Release, Releases
from pipelines.retrain.settings import RetrainSettings
from pipelines.storage.run_folder import RunFolder
from smec_core.errors import InputError
from smec_core.evaluation import gate
from smec_core.evaluation.drift import Reference
from smec_core.evaluation.gate_settings import GateSettings
from tests.pipelines.retrain.test_ledger import release, series

PEERS = ("truncation", "pca")


def scored(**by_system: tuple[float, float]) -> dict[str, dict[int, np.ndarray]]:
    """Each system's nDCG@10 on ten queries at 8 and 4 dims."""
    return {name: {8: np.full(10, wide), 4: np.full(10, narrow)} for name, (wide, narrow) in by_system.items()}


def by_name(scores: dict[int, np.ndarray]) -> dict[str, dict[str, float]]:
    return {f"q{row}": {str(dim): float(value_Q[row]) for dim, value_Q in scores.items()} for row in range(10)}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A series whose first model reached .5 at both dims."""
    made = Ledger(RunFolder(str(tmp_path / "storage"), "series"))
    made.folder.create()
    sample = torch.eye(4)
    reference = Reference(4, sample.mean(0), sample.T @ sample / 4, ["d1", "d2", "d3", "d4"], sample)
    made.keep_reference(1, reference, by_name(scored(first=(0.5, 0.5))["first"]))
    return made


@pytest.mark.parametrize(
    ("challenger", "champion", "is_best"),
    [
        ((0.6, 0.5), (0.5, 0.5), True),
        # one dim loses a little each time, and the mean gains
        ((0.6, 0.49), (0.5, 0.5), False),
        # better than the anchor is on today's judgements, which are worse than they were: the anchor has reached .5
        ((0.45, 0.45), (0.4, 0.4), False),
    ],
)
def test_what_becomes_the_anchor(
    ledger: Ledger, challenger: tuple[float, float], champion: tuple[float, float], is_best: bool
) -> None:
    scores = scored(challenger=challenger, champion=champion)
    assert beats(ledger, release(1, "a"), scores, by_name(scores[gate.CHALLENGER])) == is_best


def settings_of(tmp_path: Path, anchor: str | None) -> RetrainSettings:
    places = {"name": "series", "data": "d", "storage": str(tmp_path / "storage")}
    return RetrainSettings.model_validate(
        {**places, "train": {"dims": "4"}, "publish": {"output": "/vectors", "dim": 4}, "gate": {"anchor": anchor}}
    )


def decided(ledger: Ledger, releases: Releases) -> None:
    keys = ("identity", "stamp", "data", "gate_fraction", "champion", "outcome", "reason")
    for one in releases.releases:
        ledger.write_cycle({**dict.fromkeys(keys, ""), "cycle": one.cycle, "release": one._asdict()})
    ledger.releases()
    ledger.write_releases(releases.kept(2))


def anchored_by(ledger: Ledger, tmp_path: Path, anchor: str | None) -> Release | None:
    return find_anchor(ledger, settings_of(tmp_path, anchor))


def test_the_anchor_is_begun_anew_by_hand(ledger: Ledger, tmp_path: Path) -> None:
    decided(ledger, series("abcdef")._replace(anchor=2))
    assert anchored_by(ledger, tmp_path, None) == release(2, "b")
    # an older one changes nothing, one that is kept no more gives way to the release in force
    assert anchored_by(ledger, tmp_path, "v0001") == release(2, "b")
    assert anchored_by(ledger, tmp_path, "v0003") == release(6, "f")
    assert anchored_by(ledger, tmp_path, "v0005") == release(5, "e")
    with pytest.raises(InputError, match=r"gate\.anchor: no release has version v0009; .*: v0002, v0005, v0006"):
        anchored_by(ledger, tmp_path, "v0009")


def test_before_the_first_release_there_is_none_to_name(ledger: Ledger, tmp_path: Path) -> None:
    assert anchored_by(ledger, tmp_path, None) is None
    with pytest.raises(InputError, match=r"gate\.anchor: .* v0001; .* in /vectors: none; remove gate\.anchor$"):
        anchored_by(ledger, tmp_path, "v0001")


def test_settings_without_an_anchor_are_what_they_were(tmp_path: Path) -> None:
    assert "anchor" not in settings_of(tmp_path, None).identity()["gate"]
    assert settings_of(tmp_path, "v0001").identity()["gate"]["anchor"] == "v0001"


def test_a_series_that_is_poisoned_slowly_is_stopped_by_its_anchor(ledger: Ledger) -> None:
    """Each cycle a tenth more of the judgements are wrong, and each challenger is a little better on the others."""
    settings = GateSettings(significance=1, min_queries=2)

    def reaches(model: int, wrong: int) -> dict[int, np.ndarray]:
        """What the model of a cycle reaches on ten queries of which so many are wrong: nobody finds what they name."""
        value_Q = np.where(np.arange(10) < wrong, 0, 0.48 + 0.02 * model)
        return {8: value_Q, 4: value_Q}

    anchor = champion = 1
    for cycle, wrong in ((2, 1), (3, 2), (4, 3)):
        scores = {gate.CHALLENGER: reaches(cycle, wrong), gate.CHAMPION: reaches(champion, wrong)}
        if anchor != champion:
            scores[gate.ANCHOR] = reaches(anchor, wrong)
        baselines = {name: {dim: 0 * value_Q for dim, value_Q in scores[gate.CHALLENGER].items()} for name in PEERS}
        # neither the gate nor the champion's own queries have anything against it
        assert gate.judge({**scores, **baselines}, settings).holds
        known = known_queries(ledger, release(champion, "b"), by_name(scores[gate.CHAMPION]))
        assert problem_of_known("the champion", known, settings.max_drop) is None
        since = known_queries(ledger, release(anchor, "a"), by_name(reaches(anchor, wrong)))
        problem = problem_of_known("the anchor", since, settings.max_drop)
        assert (problem is not None) == (wrong == 3)
        if problem is None:
            assert not beats(ledger, release(anchor, "a"), scores, by_name(scores[gate.CHALLENGER]))
            kept = Reference(4, torch.zeros(4), torch.eye(4), ["d1"], torch.eye(4)[:1])
            ledger.keep_reference(cycle, kept, by_name(scores[gate.CHALLENGER]))
            champion = cycle
    assert (anchor, champion) == (1, 3)
