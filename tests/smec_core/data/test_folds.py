"""Folds by documents: nothing that is scored as new has a document that the fold has learnt from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.data.folds import components, document_folds, is_seen
from smec_core.data.judgements import Judgements

PAIRS = st.sets(st.tuples(st.integers(0, 30), st.integers(0, 60)), min_size=8, max_size=60)


def judge(pairs: set[tuple[int, int]], own_doc_of: np.ndarray | None = None) -> Judgements:
    query_J, doc_J = np.array(sorted(pairs)).T
    # every third pair is judged irrelevant
    score_J = (np.arange(len(query_J)) % 3 > 0).astype(np.float32)
    return Judgements.from_pairs(query_J, doc_J, score_J, own_doc_of).with_positives()


def relevant(judgements: Judgements) -> set[tuple[int, int]]:
    is_relevant = judgements.score_J > 0
    query_J = judgements.query_row_Q[judgements.query_J][is_relevant]
    return set(zip(query_J.tolist(), judgements.doc_row_J[is_relevant].tolist(), strict=True))


@given(PAIRS, st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=100)
def test_new_documents_are_in_no_pair_that_is_learnt_from(pairs: set[tuple[int, int]], count: int, seed: int) -> None:
    judgements = judge(pairs)
    scored: set[tuple[int, int]] = set()
    folds = list(document_folds(judgements, count, seed))
    for fold in folds:
        assert len(fold.fit)
        learnt = {doc for _, doc in relevant(fold.fit)}
        assert not learnt & {doc for _, doc in relevant(fold.new)}
        assert is_seen(fold.fit, fold.recurring).all()
        assert not {query for query, _ in relevant(fold.recurring)} & {query for query, _ in relevant(fold.fit)}
        assert not set(fold.left_out.tolist()) & {doc for _, doc in relevant(fold.new)}
        scored |= relevant(fold.new)
    # each relevant pair is new to one of the folds, but for folds that left nothing to learn from
    assert scored == relevant(judgements) or len(folds) < count


def test_a_component_is_in_one_fold_whole() -> None:
    # chains of three queries, each of which shares a document with the next
    judgements = judge(
        {(3 * chain + link, 4 * chain + link + step) for chain in range(20) for link in range(3) for step in range(2)}
    )
    component_Q = components(judgements)
    assert len(set(component_Q.tolist())) >= 20
    for fold in document_folds(judgements, 4, 0):
        new = set(component_Q[np.isin(judgements.query_row_Q, fold.new.query_row_Q)].tolist())
        assert not new & set(component_Q[np.isin(judgements.query_row_Q, fold.fit.query_row_Q)].tolist())


def test_a_query_that_is_a_document_joins_what_it_is_relevant_to() -> None:
    pairs = {(0, 10), (1, 0), (2, 30)}
    query_J, doc_J = np.array(sorted(pairs)).T
    alone = Judgements.from_pairs(query_J, doc_J, np.ones(3, np.float32))
    assert len(set(components(alone).tolist())) == 3
    # query 0 is document 0, which query 1 searches for
    same = Judgements.from_pairs(query_J, doc_J, np.ones(3, np.float32), np.array([0, -1, -1]))
    assert len(set(components(same).tolist())) == 2


@pytest.mark.parametrize("seed", range(3))
def test_one_large_component_is_cut_by_documents(seed: int) -> None:
    # a click log: every query has clicked on many of the same documents
    rng = np.random.default_rng(seed)
    pairs = {(query, int(doc)) for query in range(40) for doc in rng.choice(50, 8, replace=False)}
    judgements = judge(pairs)
    assert len(set(components(judgements).tolist())) == 1
    for fold in document_folds(judgements, 4, seed):
        assert min(len(fold.fit), len(fold.new), len(fold.recurring)) > 0
        learnt = {doc for _, doc in relevant(fold.fit)}
        assert not learnt & {doc for _, doc in relevant(fold.new)}
        # all others are left out of the search for the new ones
        assert set(judgements.doc_row_J.tolist()) - set(fold.left_out.tolist()) >= {
            doc for _, doc in relevant(fold.new)
        }
        assert learnt <= set(fold.left_out.tolist())


def test_a_fold_with_nothing_left_to_learn_from_is_left_out() -> None:
    # all queries have the one document, which one of the folds holds out
    judgements = Judgements.from_pairs(np.arange(20), np.zeros(20, np.int64), np.ones(20, np.float32))
    folds = list(document_folds(judgements, 4, 0))
    assert len(folds) == 3
    assert all(len(fold.fit) and len(fold.recurring) and not len(fold.new) for fold in folds)
