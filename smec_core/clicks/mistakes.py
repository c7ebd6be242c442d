"""How many clicks are mistakes: rates of clicks on relevant and on other documents, where these are looked at.

Shapes: J pairs of query and document.
"""

from typing import NamedTuple

import numpy as np

STEPS, CLOSE = 1000, 1e-6
LEAST_RATIO = 2.0
"""Rates that are nearer to each other tell no two kinds of documents."""
_TINY = 1e-12


class ClickRates(NamedTuple):
    """What a log says of mistakes.

    Attributes:
        relevant: clicks a look at a relevant document.
        other: clicks a look at another one.
        share: of the pairs, that are relevant.
    """

    relevant: float
    other: float
    share: float

    def certainty(self, clicks_J: np.ndarray, looks_J: np.ndarray) -> np.ndarray:
        """Probability (J) that a pair is relevant, given its clicks and how often it was looked at."""
        log_ratio_J = (
            clicks_J * np.log(self.relevant / max(self.other, _TINY))
            - looks_J * (self.relevant - self.other)
            + np.log(self.share / (1 - self.share))
        )
        # beyond that it is 0 or 1, and the exponential would overflow
        certainty_J: np.ndarray = 1 / (1 + np.exp(-np.clip(log_ratio_J, -50, 50)))
        return certainty_J


def fit_rates(clicks_J: np.ndarray, looks_J: np.ndarray) -> ClickRates | None:
    """The rates under which the clicks are most likely.

    Documents that are looked at are clicked with one probability where they are relevant and with a smaller one where
    they are not: the model of Joachims, Swaminathan and Schnabel (WSDM 2017, section 4.3), whose epsilon+ and epsilon-
    these are. Clicks are taken as Poisson counts with a mean of rate times looks, so that a log is a mixture of two of
    them, which expectation maximisation fits.

    Args:
        clicks_J: clicks.
        looks_J: how often it was looked at, by its propensities.

    Returns:
        None where the log does not tell two kinds of documents apart.
    """
    looked_J = looks_J > 0
    clicks_J, looks_J = clicks_J[looked_J].astype(np.float64), looks_J[looked_J]
    if not clicks_J.sum():
        return None
    mean = clicks_J.sum() / looks_J.sum()
    rates = ClickRates(mean * 4, mean / 2, 0.1)
    for _ in range(STEPS):
        weight_J = rates.certainty(clicks_J, looks_J)
        looks = float((weight_J * looks_J).sum()), float(((1 - weight_J) * looks_J).sum())
        if min(looks) <= 0:
            return None
        clicks = float((weight_J * clicks_J).sum())
        share = float(np.clip(weight_J.mean(), _TINY, 1 - _TINY))
        new = ClickRates(clicks / looks[0], (clicks_J.sum() - clicks) / looks[1], share)
        if new.relevant <= _TINY:
            return None
        is_close = np.abs(np.array(new) - rates).max() < CLOSE
        rates = new
        if is_close:
            break
    if rates.relevant < LEAST_RATIO * rates.other:
        return None
    # so that the last bits of an exponential, which differ between machines, do not count
    relevant, other, share = (float(f"{value:.5g}") for value in rates)
    return ClickRates(relevant, other, float(np.clip(share, _TINY, 1 - _TINY)))
