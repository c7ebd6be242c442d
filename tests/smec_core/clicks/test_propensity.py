"""Propensities are recovered from logs of users who follow the position-based model."""

import numpy as np
import pytest

from smec_core.clicks.propensity import MOST_ERROR, estimate, power_law

RANKS = 10


def clicks_of(p_K: np.ndarray, pairs: int, shown: int, seed: int, least_rank: int = 0) -> tuple[np.ndarray, ...]:
    """Pair, rank, clicks and impressions of pairs that are shown around a rank of their own, the better ones higher."""
    rng = np.random.default_rng(seed)
    relevance_P = rng.beta(0.5, 2, pairs)
    # what is relevant is shown higher up, as a good ranker does: ranks and relevance are not independent
    centre_P = np.clip(RANKS * (1 - relevance_P) + rng.normal(0, 1, pairs), 0, RANKS - 1)
    rank_PS = np.clip(np.rint(centre_P[:, None] + rng.normal(0, 1.5, (pairs, shown))), least_rank, RANKS - 1).astype(
        int
    )
    click_PS = rng.random((pairs, shown)) < p_K[rank_PS] * relevance_P[:, None]
    cell = (np.arange(pairs)[:, None] * RANKS + rank_PS).ravel()
    shown_E, clicks_E = np.bincount(cell, minlength=pairs * RANKS), np.bincount(cell, click_PS.ravel(), pairs * RANKS)
    place = np.flatnonzero(shown_E)
    return place // RANKS, place % RANKS + 1, clicks_E[place].astype(np.int64), shown_E[place]


@pytest.mark.parametrize(
    "p_K",
    [
        np.arange(1, RANKS + 1) ** -1.0,
        np.arange(1, RANKS + 1) ** -0.4,
        # no power law: a first screen, and what must be scrolled to
        np.array([1, 0.95, 0.9, 0.3, 0.28, 0.26, 0.24, 0.22, 0.2, 0.18]),
    ],
)
def test_a_large_log_gives_the_propensities_that_made_it(p_K: np.ndarray) -> None:
    found = estimate(*clicks_of(p_K, pairs=100_000, shown=40, seed=1))
    assert found is not None
    np.testing.assert_allclose(found.p_K, p_K, rtol=0.05)
    # and says how far it may be wrong, from the rank with most clicks
    off_K = np.log(found.p_K / p_K)
    assert (np.abs(off_K - off_K[found.error_K.argmin()]) <= 4 * found.error_K + 1e-5).all()
    assert found.error_K.max() < 0.05


def test_naive_shares_of_clicks_would_be_wrong() -> None:
    """What the estimate is for: better documents are shown higher, so clicks by rank fall faster than looks."""
    p_K = np.arange(1, RANKS + 1) ** -0.4
    _, rank, clicks, shown = clicks_of(p_K, pairs=20_000, shown=40, seed=1)
    share_K = np.bincount(rank - 1, clicks) / np.bincount(rank - 1, shown)
    assert share_K[-1] / share_K[0] < 0.5 * p_K[-1]


def test_order_does_not_matter_but_for_rounding() -> None:
    columns = clicks_of(np.arange(1, RANKS + 1) ** -1.0, pairs=500, shown=40, seed=2)
    order = np.random.default_rng(0).permutation(len(columns[0]))
    one, other = estimate(*columns), estimate(*(column[order] for column in columns))
    assert one is not None and other is not None
    np.testing.assert_allclose(one.p_K, other.p_K, atol=2e-6)


def test_too_little_gives_no_estimate() -> None:
    assert estimate(*[np.empty(0, np.int64)] * 4) is None
    # each pair at one rank only: relevance and position cannot be told apart
    pair = np.arange(100)
    assert estimate(pair, pair % 5 + 1, np.full(100, 50), np.full(100, 100)) is None
    # two ranks, and a handful of clicks
    assert estimate(np.array([0, 0]), np.array([1, 2]), np.array([3, 1]), np.array([9, 9])) is None


def test_a_rank_that_tells_too_little_follows_the_power_law_of_the_others() -> None:
    p_K = np.arange(1, RANKS + 1) ** -1.0
    pair, rank, clicks, shown = clicks_of(p_K, pairs=20_000, shown=40, seed=3)
    # ranks 8 to 10 hardly ever
    rare = (rank >= 8) & (np.random.default_rng(0).random(len(rank)) < 0.999)
    found = estimate(pair[~rare], rank[~rare], clicks[~rare], shown[~rare])
    assert found is not None
    assert np.isnan(found.error_K[7:]).all() and (found.error_K[:7] < MOST_ERROR).all()
    np.testing.assert_allclose(found.p_K, p_K, rtol=0.1)
    assert "for 7 ranks" in found.source and "for 3 others" in found.source


def test_ranks_that_no_pair_links_are_not_compared() -> None:
    """Two devices whose pages have no document in common at a rank: one scale would be a guess."""
    pair, rank = np.repeat(np.arange(200), 2), np.tile([1, 2], 200)
    rank[200:] += 2
    shown = np.full(400, 1000)
    clicks = np.where(rank % 2 == 1, 400, 200)
    clicks[200:] //= 2
    found = estimate(pair, rank, clicks, shown)
    assert found is not None
    assert np.isfinite(found.error_K[:2]).all() and np.isnan(found.error_K[2:]).all()
    np.testing.assert_allclose(found.p_K, [1, 1 / 2, 1 / 3, 1 / 4], atol=1e-5)


def test_the_power_law_is_that_of_the_paper() -> None:
    np.testing.assert_allclose(power_law(1, 4).p_K, [1, 1 / 2, 1 / 3, 1 / 4], atol=1e-6)
    np.testing.assert_allclose(power_law(0, 3).p_K, 1)
