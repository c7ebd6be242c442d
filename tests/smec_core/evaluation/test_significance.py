"""Intervals and the paired test against what is known by hand."""

import math

import numpy as np
import pytest

from smec_core.evaluation.significance import (
    advice,
    doubtful_dims,
    p_text,
    query_interval,
    randomisation_p,
    seed_interval,
    share_interval,
)


def test_the_interval_over_seeds_is_students() -> None:
    # three values of standard deviation 1: t(2, .975) = 4.3027 over sqrt(3)
    assert seed_interval([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert math.isnan(seed_interval([1.0]))


def test_the_interval_over_queries_covers_the_mean_in_19_of_20_samples() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.1, 1, (2000, 100))
    covered = [abs(sample.mean() - 0.1) <= query_interval(sample) for sample in samples]
    assert 0.93 < np.mean(covered) < 0.97


def test_the_interval_of_a_share_is_that_of_a_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    base_Q = rng.uniform(0, 1, 200)
    value_Q = np.clip(0.9 * base_Q + rng.normal(0, 0.1, 200), 0, 1)
    drawn = rng.integers(0, 200, (4000, 200))
    low, high = np.quantile(value_Q[drawn].mean(1) / base_Q[drawn].mean(1), [0.025, 0.975])
    half = share_interval(value_Q, base_Q)
    assert half == pytest.approx((high - low) / 2, rel=0.06)
    # far narrower than if the queries were not the same ones
    assert half < query_interval(value_Q) / base_Q.mean() / 2
    assert share_interval(base_Q, base_Q) == 0


def test_p_is_told_in_three_digits() -> None:
    assert (p_text(1e-4), p_text(0.1219)) == ("p < 0.001", "p = 0.122")


def test_p_of_few_queries_is_that_of_all_signs() -> None:
    # of the 16 ways to sign four equal gains, two are as far from zero
    assert randomisation_p(np.full(4, 0.5)) == pytest.approx(2 / 16, abs=0.01)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(1)
    p = [randomisation_p(rng.normal(size=50), rounds=500) for _ in range(300)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09
    assert 0.4 < np.mean(p) < 0.6


def test_a_clear_difference_is_significant_and_no_difference_is_not() -> None:
    rng = np.random.default_rng(2)
    assert randomisation_p(rng.normal(1, 1, 100)) < 0.001
    assert randomisation_p(np.zeros(10)) == 1.0


def test_originals_are_advised_where_nothing_is_gained() -> None:
    def report(*lows: float) -> dict[str, object]:
        return {"intervals": {"pca": {str(dim): [low, low + 0.1] for dim, low in enumerate(lows)}}}

    text = advice(report(-0.05, 0.0))
    assert text is not None
    assert text.endswith("keep your originals, or take PCA")
    assert advice(report(-0.05, 0.001)) is None
    # nothing is known
    assert advice({"intervals": {}}) is None
    assert advice({}) is None


def test_dims_without_a_clear_gain_are_told() -> None:
    def told(**intervals: tuple[float, float]) -> str | None:
        return doubtful_dims({"intervals": {"pca": {name[1:]: list(interval) for name, interval in intervals.items()}}})

    clear, worse, unsure = (0.01, 0.2), (-0.2, -0.01), (-0.01, 0.2)
    assert told(d8=clear, d4=clear) is None
    assert told(d8=(0.0, 0.0), d4=clear) is None
    assert told(d8=worse, d4=clear) == "at 8 dims it is below PCA, by more than chance would give"
    assert told(d8=unsure, d4=unsure, d2=worse, d1=clear) == (
        "at 2 dims it is below PCA, by more than chance would give; at 8, 4 dims a gain over PCA may be chance"
    )
    assert doubtful_dims({}) is None
