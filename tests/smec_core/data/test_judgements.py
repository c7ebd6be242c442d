"""Judgements grouped by query, whatever order they came in."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.data.judgements import Judgements

Triples = list[tuple[int, int, int]]
TRIPLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(-1, 3)), min_size=1, max_size=40)


def judge(triples: Triples) -> Judgements:
    query_J, doc_J, score_J = np.array(triples).T
    return Judgements.from_pairs(query_J, doc_J, score_J.astype(np.float32))


def triples_of(judgements: Judgements) -> Triples:
    query_J = judgements.query_row_Q[judgements.query_J]
    return list(
        zip(query_J.tolist(), judgements.doc_row_J.tolist(), judgements.score_J.astype(int).tolist(), strict=True)
    )


def highest(triples: Triples) -> Triples:
    best: dict[tuple[int, int], int] = {}
    for query, doc, score in triples:
        best[query, doc] = max(score, best.get((query, doc), score))
    return sorted((query, doc, score) for (query, doc), score in best.items())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(TRIPLES, TRIPLES)
def test_grouping_merging_and_selecting_keep_every_judgement_once(first: Triples, second: Triples) -> None:
    assert triples_of(judge(first)) == highest(first)
    assert triples_of(judge(first).merge(judge(second))) == highest(first + second)

    relevant = {query for query, _, score in first if score > 0}
    assert triples_of(judge(first).with_positives()) == [t for t in highest(first) if t[0] in relevant]


def test_repeated_pairs_are_counted() -> None:
    judged = judge([(0, 1, 1), (0, 1, 3), (0, 1, 3), (1, 2, 1), (2, 2, 0), (2, 2, 0)])
    assert judged.repeated == 3
    assert triples_of(judged) == [(0, 1, 3), (1, 2, 1), (2, 2, 0)]
    assert judged.with_positives().repeated == 3, "what was read is told of whatever is left of it"
