"""How sure a difference is: intervals over seeds and over queries, and a paired test.

Shapes: S seeds, Q queries.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

ROUNDS = 10_000
_CHUNK = 1000
_SAME = 1e-6


def seed_interval(value_S: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean over seeds (Student's t); nan for one seed."""
    if len(value_S) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(value_S) - 1) * np.std(value_S, ddof=1) / math.sqrt(len(value_S)))


def query_interval(gain_Q: np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of a mean gain over queries; nan for one query."""
    if len(gain_Q) < 2:
        return math.nan
    return 1.96 * float(gain_Q.std(ddof=1)) / math.sqrt(len(gain_Q))


def share_interval(value_Q: np.ndarray, base_Q: np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of mean value / mean base over the same queries (delta method)."""
    mean = float(base_Q.mean())
    return query_interval(value_Q - value_Q.mean() / mean * base_Q) / mean if mean else math.nan


def randomisation_p(gain_Q: np.ndarray, rounds: int = ROUNDS) -> float:
    """Two-sided p of a paired randomisation test (Smucker et al., CIKM 2007).

    How often the mean of gains with random signs is at least as far from zero as theirs, theirs being counted, too.

    Args:
        gain_Q: difference of two systems at each query.
        rounds: how many random draws.
    """
    rng, observed, as_far = np.random.default_rng(0), abs(gain_Q.mean()), 1
    for start in range(0, rounds, _CHUNK):
        signs_RQ = rng.integers(0, 2, (min(_CHUNK, rounds - start), len(gain_Q)), dtype=np.int8) * 2.0 - 1
        # a draw of the same mean must count, whatever the order of its sum
        as_far += int((np.abs(signs_RQ @ gain_Q) / len(gain_Q) >= observed - 1e-12).sum())
    return as_far / (rounds + 1)


def p_text(p: float) -> str:
    """A p-value as text: `p < 0.001`, `p = 0.122`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def advice(report: Mapping[str, Any]) -> str | None:
    """What to do where a model gains nothing that the queries can show; None where it does, or nothing is known.

    Args:
        report: an evaluation, with its intervals.
    """
    gains = report.get("intervals", {}).get("pca", {})
    if not gains or any(low > 0 for low, _ in gains.values()):
        return None
    return "at no dim is the model's gain over PCA more than chance would give: keep your originals, or take PCA"


def doubtful_dims(report: Mapping[str, Any]) -> str | None:
    """At which dims a model falls below PCA, or gains no more than chance would give; None where at none.

    Args:
        report: an evaluation, with its intervals. Dims that score as PCA does at every query are left out.
    """
    gains = report.get("intervals", {}).get("pca", {})
    below = [dim for dim, (_, high) in gains.items() if high < 0]
    level = [dim for dim, (low, high) in gains.items() if low <= 0 <= high and high - low > _SAME]
    told = {"it is below PCA, by more than chance would give": below, "a gain over PCA may be chance": level}
    return "; ".join(f"at {', '.join(dims)} dims {text}" for text, dims in told.items() if dims) or None
