"""Scores of judgements as grades: how they are spread, and what the ranking loss makes of them.

Shapes: Q judged queries, J judgements.
"""

from typing import Any

import numpy as np

from smec_core.data.judgements import Judgements

HEAVY_TAIL = 5
"""Scores whose largest is more than so many times the low ones have a heavy tail: they are counts, as of clicks, rather
than grades, which have up to five steps. The low ones are the lowest tenth of those above 0."""
MOST_VALUES = 10
"""Distinct scores that are counted one by one; of more, the quantiles are told."""
QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def tail_of(score_J: np.ndarray) -> float:
    """How many times the low scores above 0, their p10, the largest is; 0 where none is above 0."""
    quantiles = _quantiles(score_J)
    return quantiles["max"] / quantiles["p10"] if quantiles else 0.0


def loss_grades(judged: Judgements) -> np.ndarray:
    """The grades y (J) whose differences y_ij - y_ik are the weights of the ranking loss (paper equation 9).

    They are the scores, except where these have a heavy tail (see `HEAVY_TAIL`). There a score s above 0 becomes
    log(1 + s / m) / log(1 + h / m), with m the median of all scores above 0 and h the highest score of the query. So
    the highest grade of each query is 1, every query counts alike, as in the mean of nDCG, and order is kept. With
    counts as weights, training would learn from a few queries only.
    """
    score_J = judged.score_J
    if tail_of(score_J) <= HEAVY_TAIL:
        return score_J
    is_positive_J = score_J > 0
    level_J = np.log1p(np.maximum(score_J, 0) / np.median(score_J[is_positive_J]), dtype=np.float64)
    most_J = np.maximum.reduceat(level_J, judged.offset_Q1[:-1])[judged.query_J]
    grade_J = np.divide(level_J, most_J, out=score_J.astype(np.float64), where=is_positive_J)
    return grade_J.astype(np.float32)


def score_figures(judged: Judgements) -> dict[str, Any]:
    """How the scores of a split are spread, for people and for --json.

    Returns:
        `values`: how often each score is there; or, where more than MOST_VALUES differ, `quantiles` of those above 0.
        `tail`: the largest by p10 of those above 0; more than HEAVY_TAIL is a heavy tail.
    """
    value, count = np.unique(judged.score_J, return_counts=True)
    figures: dict[str, Any] = {"tail": tail_of(judged.score_J)}
    if len(value) <= MOST_VALUES:
        return figures | {"values": dict(zip(map(shown, value), count.tolist(), strict=True))}
    return figures | {"quantiles": _quantiles(judged.score_J)}


def _quantiles(score_J: np.ndarray) -> dict[str, float]:
    positive = score_J[score_J > 0].astype(np.float64)
    if not len(positive):
        return {}
    return dict(zip(QUANTILES, np.quantile(positive, list(QUANTILES.values())).tolist(), strict=True))


def shown(score: float) -> str:
    """A score as people write it: 3 and not 3.0."""
    return np.format_float_positional(np.float32(score), trim="-")
