"""What the gate lets through."""

import re
from collections.abc import Mapping

import numpy as np
import pytest

from smec_core.data.segments import Segments
from smec_core.evaluation.gate import ANCHOR, CHALLENGER, CHAMPION, OLD_DOCUMENTS, judge
from smec_core.evaluation.gate_settings import GateSettings

DIMS = (8, 4)
QUERIES = 200
RNG = np.random.default_rng(0)
NOISE = {name: RNG.normal(0, 0.05, QUERIES) for name in (CHALLENGER, CHAMPION, "pca", "truncation", OLD_DOCUMENTS)}


def scores(means: Mapping[str, float | tuple[float, float]]) -> dict[str, dict[int, np.ndarray]]:
    """Noisy scores with exactly these means, one for all dims or one for each."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for name, mean in {"pca": 0.3, "truncation": 0.2, **means}.items():
        by_dim = mean if isinstance(mean, tuple) else (mean, mean)
        noise_Q = NOISE[name] - NOISE[name].mean()
        found[name] = {dim: noise_Q + value for dim, value in zip(DIMS, by_dim, strict=True)}
    return found


def test_a_better_challenger_may_take_over() -> None:
    verdict = judge(scores({CHALLENGER: 0.52, CHAMPION: 0.5}), GateSettings())

    assert verdict.holds
    assert verdict.gain == pytest.approx(0.02)
    assert verdict.p < 0.01
    assert verdict.reason == (
        "PASSED: +0.0200 nDCG@10, mean over the dims and 200 gate queries, against the champion (at least 0.0 asked "
        "for), p < 0.001 (at most 0.05 asked for); no dim loses more than 0.01"
    )
    assert verdict.as_json()["ndcg@10"][CHAMPION]["8"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("means", "settings", "problem"),
    [
        ({CHALLENGER: 0.49, CHAMPION: 0.5}, {}, "the mean over the dims gains -0.0100, gate.min_gain asks for 0.0"),
        ({CHALLENGER: 0.52, CHAMPION: 0.5}, {"min_gain": 0.03}, "gains +0.0200, gate.min_gain asks for 0.03"),
        ({CHALLENGER: 0.501, CHAMPION: 0.5}, {}, "the gain may be luck (p = "),
        ({CHALLENGER: (0.6, 0.48), CHAMPION: 0.5}, {}, "4 dims lose 0.0200 against champion"),
        ({CHALLENGER: 0.52, CHAMPION: 0.5, "pca": (0.1, 0.55)}, {}, "4 dims lose 0.0300 against pca"),
        ({CHALLENGER: 0.52, CHAMPION: 0.5, "pca": 0.525}, {}, "0.5200, is below pca's 0.5250"),
        ({CHALLENGER: 0.52, CHAMPION: 0.5, "truncation": (0.6, 0.1)}, {}, "8 dims lose 0.0800 against truncation"),
        ({CHALLENGER: 0.52, CHAMPION: 0.5, OLD_DOCUMENTS: 0.47}, {}, "new queries lose 0.0300 on old documents"),
        ({CHALLENGER: 0.29}, {}, "0.2900, is below pca's 0.3000"),
    ],
)
def test_what_keeps_a_challenger_out(
    means: dict[str, float | tuple[float, float]], settings: dict[str, float], problem: str
) -> None:
    verdict = judge(scores(means), GateSettings.model_validate(settings))

    assert not verdict.holds
    assert verdict.reason.startswith("REFUSED: ")
    assert problem in verdict.reason


def test_what_is_allowed_is_no_problem() -> None:
    below = judge(scores({CHALLENGER: 0.295}), GateSettings(max_below=0.01))
    assert below.holds
    assert "it is not below the baselines by more than 0.01: mean nDCG@10 of pca 0.3000" in below.reason
    means: dict[str, float | tuple[float, float]] = {CHALLENGER: (0.6, 0.48), CHAMPION: 0.5, OLD_DOCUMENTS: 0.47}
    assert judge(scores(means), GateSettings(max_loss=0.03, max_old_loss=0.05)).holds
    lucky = judge(scores({CHALLENGER: 0.501, CHAMPION: 0.5}), GateSettings(significance=1))
    assert lucky.holds
    assert f"p = {lucky.p:.3f} (not asked for)" in lucky.reason


def test_the_first_challenger_has_no_champion_to_beat_and_the_reason_names_no_p() -> None:
    first = judge(scores({CHALLENGER: 0.3}), GateSettings(min_gain=0.1))
    assert first.holds
    assert first.reason == (
        "PASSED: there is no champion to beat yet, and it is not below the baselines: mean nDCG@10 of pca 0.3000, "
        "truncation 0.2000, challenger 0.3000 on 200 gate queries"
    )


def test_a_loss_on_unseen_queries_alone_keeps_a_challenger_out() -> None:
    found = scores({CHALLENGER: 0.6, CHAMPION: 0.5})
    unseen_Q = np.arange(QUERIES) < 50
    for value_Q in found[CHALLENGER].values():
        value_Q[unseen_Q] -= 0.15
    assert judge(found, GateSettings()).holds
    verdict = judge(found, GateSettings(), ~unseen_Q)
    assert all(" on unseen queries, gate.max_loss is 0.01" in problem for problem in verdict.problems)
    assert len(verdict.problems) == len(DIMS)
    assert verdict.as_json()["unseen"]["queries"] == 50
    # too few to decide by
    assert judge(found, GateSettings(min_queries=60), ~unseen_Q).holds
    assert set(judge(found, GateSettings(min_queries=60), ~unseen_Q).as_json()) >= {"seen", "queries"}


def test_losses_that_the_champion_does_not_notice_add_up_against_the_anchor() -> None:
    """Each challenger loses .006 at the smallest dim, which max_loss allows, and gains as much at the largest."""
    settings = GateSettings(significance=1)
    first = scores({CHALLENGER: 0.5})[CHALLENGER]
    champion = first
    for number in range(1, 4):
        step = {max(DIMS): 0.007, min(DIMS): -0.006}
        challenger = {dim: value_Q + step.get(dim, 0) for dim, value_Q in champion.items()}
        baselines = {name: {dim: value_Q - 0.1 for dim, value_Q in first.items()} for name in ("truncation", "pca")}
        found = {CHALLENGER: challenger, CHAMPION: champion, **baselines}
        assert judge(found, settings).holds
        verdict = judge({**found, ANCHOR: first}, settings)
        assert verdict.holds == (number == 1)
        if not verdict.holds:
            assert verdict.problems == [
                f"{min(DIMS)} dims lose {0.006 * number:.4f} against anchor, gate.max_loss is 0.01"
            ]
        champion = challenger


def divided(sizes: Mapping[str | None, int]) -> Segments:
    """Segments of so many queries each, most first, of all the queries."""
    assert sum(sizes.values()) == QUERIES
    ends = np.cumsum(list(sizes.values()))
    return Segments("language", list(sizes), np.split(np.arange(QUERIES), ends[:-1]))


def test_a_segment_that_loses_keeps_a_challenger_out_whatever_the_mean_gains() -> None:
    found = scores({CHALLENGER: 0.6, CHAMPION: 0.5})
    segments = divided({"de": 120, None: 40, "en": 40})
    for value_Q in found[CHALLENGER].values():
        value_Q[120:160] -= 0.2
    without, verdict = judge(found, GateSettings()), judge(found, GateSettings(), None, segments)
    assert without.holds and "segments" not in without.as_json()
    [problem] = verdict.problems
    assert re.fullmatch(
        r"\d dims lose 0\.\d{4} against champion on the 40 queries of language \(null\) \(the largest of 2 losses "
        r"there\), gate\.max_loss is 0\.01",
        problem,
    )
    assert verdict.reason.endswith("; by language: 1 of 3 segments lose more than gate.max_loss")
    held = verdict.as_json()["segments"]["held"]
    assert [(one["value"], one["queries"], one["holds"]) for one in held] == [
        ("de", 120, True),
        (None, 40, False),
        ("en", 40, True),
    ]
    expected = found[CHALLENGER][8][120:160].mean()
    assert held[1]["ndcg@10"][CHALLENGER]["8"] == pytest.approx(expected)
    assert judge(found, GateSettings(max_loss=0.3), None, segments).holds


def test_segments_with_too_few_queries_decide_nothing_and_are_counted() -> None:
    found = scores({CHALLENGER: 0.6, CHAMPION: 0.5})
    for value_Q in found[CHALLENGER].values():
        value_Q[171:] -= 0.2
    verdict = judge(found, GateSettings(), None, divided({"de": 171, "en": 29}))
    assert verdict.holds
    told = "0 of 1 segments lose more than gate.max_loss; 1 more with fewer than 30 queries"
    assert verdict.reason.endswith(f"; by language: {told}")
    assert verdict.as_json()["segments"]["left"] == {"segments": 1, "queries": 29}
    assert not judge(found, GateSettings(min_queries=29), None, divided({"de": 171, "en": 29})).holds


def test_figures_of_segments_have_names_of_their_own() -> None:
    values = ["a/b", "a_b", "..", "", None, "(null)", "\x1b[2J", "x" * 100]
    names: dict[str | None, int] = dict.fromkeys(values, 25)
    verdict = judge(scores({CHALLENGER: 0.6, CHAMPION: 0.5}), GateSettings(min_queries=5), None, divided(names))
    found = [name for name, dim, _ in verdict.figures() if name.startswith("loss/")]
    assert len(set(found)) == len(values)
    assert all(re.fullmatch(r"loss/language [\w. -]+", name) for name in found)
    losses = [loss for name, _, loss in verdict.figures() if name.startswith("loss/")]
    assert losses == sorted(losses, reverse=True)


def test_settings_without_segments_are_what_they_were() -> None:
    assert "by" not in GateSettings().identity()
    assert GateSettings(by="language").identity()["by"] == "language"
