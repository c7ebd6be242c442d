"""Pairs of query and document, and how much the clicks on them count.

Shapes: E entries (pair and rank), sorted by query, document and rank; J pairs, K ranks, Q queries, R query and rank.
"""

from typing import NamedTuple

import numpy as np

from smec_core.clicks.propensity import Propensities, estimate, power_law
from smec_core.clicks.reading import Read
from smec_core.clicks.rules import ClickRules
from smec_core.clicks.tally import MOST_RANK


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
            "none: the log has ranks, but not what was shown and not clicked (clicked), by which they are estimated; "
            "give --set eta=1 to correct for a usual position bias"
        )
    found = estimate(*train, ranks=ranks)
    if found is None:
        return None, (
            "none: too few documents were shown at several ranks for the same query, and clicked, to estimate them; "
            "give --set eta=1 to correct for a usual position bias"
        )
    return found, found.source


class Pairs(NamedTuple):
    """Pairs of query and document of one part of a log, sorted.

    Attributes:
        query_J, doc_J: rows of the dataset.
        clicks_J: clicks.
        shown_J: how often the document was shown; of clicks alone, as often as it was clicked.
        weight_J: what the clicks count together.
        looks_J: how often it was looked at; None where the log does not say what was shown, and where.
    """

    query_J: np.ndarray
    doc_J: np.ndarray
    clicks_J: np.ndarray
    shown_J: np.ndarray
    weight_J: np.ndarray
    looks_J: np.ndarray | None

    @classmethod
    def of(
        cls,
        p_K: np.ndarray | None,
        has_shown: bool,
        max_weight: float,
        query_E: np.ndarray,
        doc_E: np.ndarray,
        rank_E: np.ndarray,
        clicks_E: np.ndarray,
        shown_E: np.ndarray,
    ) -> "Pairs":
        """Adds up entries, and weighs their clicks.

        A click counts 1 / propensity, at most `max_weight` (inverse propensity scoring, Joachims, Swaminathan and
        Schnabel, WSDM 2017). The propensity of a pair is the mean, over all times that its query was asked, of the
        propensity of the rank at which the document was shown, 0 where it was not (the policy-aware one of Oosterhuis
        and de Rijke, SIGIR 2020, arXiv 2005.09035): so what is shown now and then does not count less either. Where the
        log has clicks only, it is that of the rank.

        Args:
            p_K: propensities by rank; None where each click counts 1.
            has_shown: whether the entries have what was shown and not clicked, too.
            max_weight: most that a click counts.
            query_E: rows of the queries, sorted by query, document and rank.
            doc_E: rows of the documents.
            rank_E: from 1.
            clicks_E: clicks.
            shown_E: how often it was shown.
        """
        pair_E = query_E.astype(np.int64) << 32 | doc_E
        first_J = np.unique(pair_E, return_index=True)[1]
        if not len(first_J):
            none = np.empty(0, np.int64)
            return cls(none, none, none, none, none, none)
        query_J, doc_J = query_E[first_J], doc_E[first_J]
        clicks_J, shown_J = (np.add.reduceat(column, first_J) for column in (clicks_E, shown_E))
        if p_K is None:
            return cls(query_J, doc_J, clicks_J, shown_J, clicks_J.astype(np.float64), None)
        p_E = p_K[rank_E - 1]
        if not has_shown:
            with np.errstate(divide="ignore"):
                weight_E = np.minimum(1 / p_E, max_weight)
            weight_J = np.round(np.add.reduceat(clicks_E * weight_E, first_J), 4)
            return cls(query_J, doc_J, clicks_J, shown_J, weight_J, None)
        looks_J = np.add.reduceat(shown_E * p_E, first_J)
        asked_J = _asked(query_E, rank_E, shown_E)[first_J]
        ratio_J = np.divide(asked_J, looks_J, out=np.full(len(first_J), np.inf), where=looks_J > 0)
        weight_J = np.round(clicks_J * np.minimum(ratio_J, max_weight), 4)
        return cls(query_J, doc_J, clicks_J, shown_J, weight_J, looks_J)


def _asked(query_E: np.ndarray, rank_E: np.ndarray, shown_E: np.ndarray) -> np.ndarray:
    """How often the query of each entry (E) was asked: each time shows one document at a rank.

    What stands for all ranks from there on is left out, unless a query has no other.
    """
    is_last_E = rank_E == MOST_RANK
    is_alone_E = ~np.isin(query_E, query_E[~is_last_E])
    use_E = ~is_last_E | is_alone_E
    asked_U = _most_shown(query_E[use_E], rank_E[use_E], shown_E[use_E])
    asked_E: np.ndarray = asked_U[np.searchsorted(query_E[use_E], query_E)]
    return asked_E


def _most_shown(query_E: np.ndarray, rank_E: np.ndarray, shown_E: np.ndarray) -> np.ndarray:
    """For each entry (E), the most that any rank of its query was shown."""
    order = np.lexsort((rank_E, query_E))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(query_E[order]) != 0) | (np.diff(rank_E[order]) != 0)
    shown_R = np.add.reduceat(shown_E[order], np.flatnonzero(is_first))
    query_Q, of_query_R = np.unique(query_E[order][is_first], return_inverse=True)
    asked_Q = np.zeros(len(query_Q), np.int64)
    np.maximum.at(asked_Q, of_query_R, shown_R)
    asked_E: np.ndarray = asked_Q[np.searchsorted(query_Q, query_E)]
    return asked_E
