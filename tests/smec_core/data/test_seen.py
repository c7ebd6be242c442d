"""Which queries count as seen, and what is kept of it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements
from smec_core.data.seen import SeenDocuments, joined, parts_of


def known(*names: str) -> TableIds:
    """A table of these ids, all of which judgements name."""
    return TableIds(np.arange(len(names)), pa.array(names), "", None)


DOCS = known(*(f"d{row}" for row in range(6)), *(f"ä{row}" for row in range(6, 10)))
QUERIES = known(*(f"q{row}" for row in range(6)))
JUDGED = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 9)), st.sampled_from([-1, 0, 1, 2]), min_size=1)


def judge(scores: dict[tuple[int, int], int]) -> Judgements:
    query_J, doc_J = np.array(list(scores)).T
    return Judgements.from_pairs(query_J, doc_J, np.array(list(scores.values()), np.float32))


@given(JUDGED, JUDGED)
@settings(max_examples=50)
def test_a_query_is_seen_where_a_relevant_document_of_it_was_relevant_in_training(
    train: dict[tuple[int, int], int], test: dict[tuple[int, int], int]
) -> None:
    seen = SeenDocuments.of(judge(train), DOCS, QUERIES)
    learnt = {doc for (_, doc), score in train.items() if score > 0}
    judgements = judge(test)
    expected = [
        any(query == row and doc in learnt and score > 0 for (query, doc), score in test.items())
        for row in judgements.query_row_Q
    ]
    assert seen.seen_queries(judgements, DOCS).tolist() == expected
    assert seen.has(DOCS.id_U.to_pylist()).tolist() == [doc in learnt for doc in range(10)]


def test_queries_that_are_documents_are_seen_too() -> None:
    own_doc_of = np.array([5, -1, -1, -1, -1, -1])
    train = Judgements.from_pairs(np.array([0]), np.array([1]), np.array([1], np.float32), own_doc_of)
    seen = SeenDocuments.of(train, DOCS, known("d5", "q1"))
    assert seen.has(["d1", "d5", "d0"]).tolist() == [True, True, False]


def test_what_is_seen_in_several_trainings_is_known_only_where_each_knows() -> None:
    one, other = (SeenDocuments.of(judge({(0, doc): 1}), DOCS, QUERIES) for doc in (1, 2))
    both = joined([one, other])
    assert both is not None
    assert both.has(["d1", "d2", "d3"]).tolist() == [True, True, False]
    assert joined([one, None]) is None


@pytest.mark.parametrize(("seen", "unseen", "labels"), [(3, 4, ["seen", "unseen"]), (0, 7, []), (7, 0, [])])
def test_parts_are_told_where_there_is_more_than_one(seen: int, unseen: int, labels: list[str]) -> None:
    evaluation = {"seen": {"queries": seen}, "unseen": {"queries": unseen}}
    assert list(parts_of(evaluation)) == labels
    alone = evaluation | {"unseen_documents": {"queries": 2}}
    assert list(parts_of(alone)) == ["seen", *["unseen"] * (unseen > 0), "unseen-documents-only"] or not seen
