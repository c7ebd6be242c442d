"""How much the clicks on a document count.

Shapes: E entries (pair and rank), sorted by query, document and rank; J pairs, K ranks, Q queries, R query and rank.
"""

import numpy as np

from smec_core.clicks.propensity import Propensities, estimate, power_law
from smec_core.clicks.reading import Read
from smec_core.clicks.rules import ClickRules


def propensities_for(
    read: Read, rules: ClickRules, ranks: int, train: list[np.ndarray]
) -> tuple[Propensities | None, str]:
    """What is divided by, and what to tell of it."""
    if rules.weight == "clicks":
        return None, "none, since weight=clicks"
    if "rank" not in read.present:
        return None, "none, since the log has no ranks"
    if rules.eta is not None:
        given = power_law(rules.eta, max(ranks, 1))
        return given, given.source
    if "clicked" not in read.present:
        return None, (
            "none: the log has ranks, but not what was shown and not clicked (clicked), by which they are "
            "estimated; give "
            "--set eta=1 to correct for a usual position bias"
        )
    found = estimate(*train)
    if found is None:
        return None, (
            "none: too few documents were shown at several ranks for the same query, and clicked, to estimate "
            "them; give "
            "--set eta=1 to correct for a usual position bias"
        )
    return found, found.source


def weights_of(
    rules: ClickRules,
    read: Read,
    p_K: np.ndarray | None,
    query_E: np.ndarray,
    rank_E: np.ndarray,
    clicks_E: np.ndarray,
    shown_E: np.ndarray,
    first_J: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight of the clicks of each pair (J), and how often it was looked at, where the log says what was shown.

    A click counts 1 / propensity, at most `max_weight` (inverse propensity scoring, Joachims, Swaminathan and Schnabel,
    WSDM 2017). The propensity of a pair is the mean, over all times that its query was asked, of the propensity of the
    rank at which the document was shown, 0 where it was not (the policy-aware one of Oosterhuis and de Rijke, SIGIR
    2020,
    arXiv 2005.09035): so a document that is shown now and then does not count less either. Where the log has clicks
    only, it is that of the rank alone.
    """
    if p_K is None:
        return np.add.reduceat(clicks_E, first_J).astype(np.float64), None
    p_E = p_K[rank_E - 1]
    if "clicked" not in read.present:
        with np.errstate(divide="ignore"):
            weight_E = np.minimum(1 / p_E, rules.max_weight)
        return np.round(np.add.reduceat(clicks_E * weight_E, first_J), 4), None
    # each time that a query is asked it shows one document at a rank
    place = np.lexsort((rank_E, query_E))
    is_first = np.ones(len(place), bool)
    is_first[1:] = (np.diff(query_E[place]) != 0) | (np.diff(rank_E[place]) != 0)
    shown_at = np.add.reduceat(shown_E[place], np.flatnonzero(is_first))
    query_R = query_E[place][is_first]
    query_Q, of_query_R = np.unique(query_R, return_inverse=True)
    asked_Q = np.zeros(len(query_Q), np.int64)
    np.maximum.at(asked_Q, of_query_R, shown_at)
    asked_J = asked_Q[np.searchsorted(query_Q, query_E[first_J])]
    looks_J = np.add.reduceat(shown_E * p_E, first_J)
    weight_J = np.divide(asked_J, looks_J, out=np.full(len(first_J), np.inf), where=looks_J > 0)
    clicks_J = np.add.reduceat(clicks_E, first_J)
    return np.round(clicks_J * np.minimum(weight_J, rules.max_weight), 4), looks_J
