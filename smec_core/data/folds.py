"""Folds of judged queries by documents: what a fold scores, the others have not seen; and what is held out as dev.

Shapes: Q judged queries, J judgements.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from smec_core.config import TrainConfig
from smec_core.data.judgements import Judgements

Labels = tuple[Judgements | None, Judgements | None]
"""Judgements to learn from and to choose by."""

MOST_IN_ONE = 0.5
"""Share of the queries in one component from which on folds are cut by documents instead."""


class Fold(NamedTuple):
    """A part of the judgements to learn from, and what to score by.

    Attributes:
        fit: to learn from.
        recurring: other queries, with a relevant document that a query of `fit` has, too.
        new: other queries, without such a document.
        left_out: rows of documents that are not to be searched for `new`: where documents are divided, all judged ones
            of other folds, so that what is found is new, and no other relevant document counts as a wrong result.
    """

    fit: Judgements
    recurring: Judgements
    new: Judgements
    left_out: np.ndarray


def components(judgements: Judgements) -> np.ndarray:
    """Component (Q) of each query in the graph of queries and their relevant documents, by number.

    A query that is itself a document is one node with it.
    """
    relevant_J = judgements.score_J > 0
    query_E, doc_E = judgements.query_J[relevant_J], judgements.doc_row_J[relevant_J]
    if judgements.own_doc_row_Q is not None:
        own_Q = judgements.own_doc_row_Q
        query_E = np.append(query_E, np.flatnonzero(own_Q >= 0))
        doc_E = np.append(doc_E, own_Q[own_Q >= 0])
    doc_U, place_E = np.unique(doc_E, return_inverse=True)
    nodes = len(judgements) + len(doc_U)
    graph = coo_array((np.ones(len(place_E)), (query_E, len(judgements) + place_E)), shape=(nodes, nodes))
    component: np.ndarray = connected_components(graph, directed=False)[1][: len(judgements)]
    return component


def document_folds(judgements: Judgements, count: int, seed: int) -> Iterator[Fold]:
    """Folds that score queries for new documents, and others for recurring ones.

    A fold holds out whole components, and as large a share of all queries. Where one component holds most queries, as
    in a click log, it holds out documents instead: pairs with these are not learnt from, and every query that has some
    is scored by them alone. A fold with nothing left to learn from is left out.

    Args:
        judgements: all of them, with positives.
        count: how many folds.
        seed: of the division.
    """
    rng = np.random.default_rng((seed, 4))
    component_Q = components(judgements)
    fold_Q = rng.permutation(len(judgements)) % count
    if np.bincount(component_Q).max() > MOST_IN_ONE * len(judgements):
        doc_U, place_J = np.unique(judgements.doc_row_J, return_inverse=True)
        fold_J = (rng.permutation(len(doc_U)) % count)[place_J]
        for fold in range(count):
            found = _by_documents(judgements, fold_Q == fold, fold_J == fold)
            if len(found.fit):
                yield found
        return
    fold_C = rng.permutation(component_Q.max() + 1) % count
    for fold in range(count):
        out_Q = (fold_C[component_Q] == fold) | (fold_Q == fold)
        if out_Q.all():
            continue
        fit, out = judgements.select(~out_Q), judgements.select(out_Q)
        seen_Q = is_seen(fit, out)
        yield Fold(fit, out.select(seen_Q), out.select(~seen_Q), np.empty(0, np.int64))


def _by_documents(judgements: Judgements, out_Q: np.ndarray, out_J: np.ndarray) -> Fold:
    kept, held = _some(judgements, ~out_J), _some(judgements, out_J)
    is_out = np.isin(kept.query_row_Q, judgements.query_row_Q[out_Q])
    fit = kept.select(~is_out)
    recurring = kept.select(is_out)
    return Fold(fit, recurring.select(is_seen(fit, recurring)), held, np.unique(judgements.doc_row_J[~out_J]))


def _some(judgements: Judgements, keep_J: np.ndarray) -> Judgements:
    """Some of the judgements, of the queries that still have a relevant document."""
    row_J = judgements.query_row_Q[judgements.query_J]
    pairs = (row_J[keep_J], judgements.doc_row_J[keep_J], judgements.score_J[keep_J])
    return Judgements.from_pairs(*pairs, judgements.own_doc_of).with_positives()


def is_seen(fit: Judgements, judgements: Judgements) -> np.ndarray:
    """Whether a relevant document of each query (Q) is relevant to a query of `fit`, too, or is such a query itself."""
    learnt = fit.doc_row_J[fit.score_J > 0]
    if fit.own_doc_row_Q is not None:
        learnt = np.append(learnt, fit.own_doc_row_Q)
    relevant_J = (judgements.score_J > 0) & np.isin(judgements.doc_row_J, learnt)
    return np.bincount(judgements.query_J[relevant_J], minlength=len(judgements)) > 0


def held_out_as_dev(judgements: Judgements, share_Q: np.ndarray, config: TrainConfig) -> Labels:
    """Divides judgements by queries: what is learnt from, and of the lowest hashes what is chosen by.

    Args:
        judgements: of at least two queries.
        share_Q: hashes of the queries' ids, 0 to 1.
        config: settings of the method.
    """
    ordered_Q = np.sort(share_Q)
    # at least one query on either side, whatever the hashes say
    last = ordered_Q[min(config.dev_queries - 1, len(judgements) - 2)]
    threshold = np.clip(config.dev_fraction, ordered_Q[0], last)
    return judgements.select(share_Q > threshold), judgements.select(share_Q <= threshold)
