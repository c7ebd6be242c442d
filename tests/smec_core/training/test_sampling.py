"""The steps of an epoch, for any judgements and any batch size."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.config import TrainConfig
from smec_core.data.judgements import Judgements
from smec_core.training.sampling import Batch, LabelledSampler, UnlabelledSampler

DOCS = 30
JUDGED = st.dictionaries(
    st.tuples(st.integers(0, 20), st.integers(0, DOCS - 1)), st.integers(0, 2), min_size=1, max_size=80
).filter(lambda grades: any(grades.values()))
Grades = dict[tuple[int, int], int]


def judge(grades: Grades) -> Judgements:
    query_J, doc_J = np.array(list(grades)).T
    return Judgements.from_pairs(query_J, doc_J, np.array(list(grades.values()), np.float32)).with_positives()


def epoch(grades: Grades, key: tuple[int, ...], **options: int) -> list[Batch]:
    return list(LabelledSampler(judge(grades), DOCS, TrainConfig(dims=(1,), **options)).epoch(key))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    grades=JUDGED,
    batch_size=st.integers(1, 25),
    positives=st.integers(1, 3),
    hard_negatives=st.integers(0, 3),
    negatives=st.integers(0, 10),
)
def test_an_epoch_keeps_its_promises(
    grades: Grades, batch_size: int, positives: int, hard_negatives: int, negatives: int
) -> None:
    batches = epoch(
        grades,
        (3, 1),
        batch_size=batch_size,
        positives=positives,
        hard_negatives=hard_negatives,
        negatives=negatives,
    )
    seen = np.concatenate([batch.query_row_B for batch in batches])
    relevant = {query for (query, _), grade in grades.items() if grade}
    assert sorted(seen) == sorted(relevant), "every query once"
    for batch in batches:
        assert len(batch.query_row_B) <= batch_size
        assert len(set(batch.doc_row_N)) == len(batch.doc_row_N), "a document twice"
        drawn = list(zip(batch.query_row_B[batch.pair_query_P], batch.doc_row_N[batch.pair_doc_P], strict=True))
        for query in batch.query_row_B:
            mine = {doc for (q, doc), grade in grades.items() if q == query and grade}
            pairs = [doc for q, doc in drawn if q == query]
            assert len(set(pairs)) == len(pairs) == min(positives, len(mine))
            assert set(pairs) <= mine
            explicit = {doc for (q, doc), grade in grades.items() if q == query and not grade}
            brought = np.flatnonzero(np.isin(batch.doc_row_N, list(explicit)))
            assert len(brought) >= min(hard_negatives, len(explicit)), "hard negatives are missing"
            of_query = batch.query_row_B[batch.pair_query_P] == query
            assert (batch.weight_PN[of_query][:, brought] > 0).all(), "a hard negative without weight"


@settings(deadline=None, derandomize=True, max_examples=30)
@given(JUDGED, st.sampled_from([1, 3, 5]), st.integers(1, 3))
def test_weights_of_small_grades_are_their_differences_to_the_last_bit(
    grades: Grades, unit: int, positives: int
) -> None:
    graded = {pair: grade * unit for pair, grade in grades.items()}
    for batch in epoch(graded, (0,), batch_size=8, positives=positives, negatives=10):
        for pair, (b, n) in enumerate(zip(batch.pair_query_P, batch.pair_doc_P, strict=True)):
            query = batch.query_row_B[b]
            grade_N = np.array([graded.get((query, doc), 0) for doc in batch.doc_row_N], np.float32)
            expected_N = np.maximum(grade_N[n] - grade_N, 0)
            assert batch.weight_PN[pair].tobytes() == expected_N.tobytes()


def test_no_count_of_clicks_outweighs_the_other_queries() -> None:
    counts = np.minimum(np.random.default_rng(0).zipf(1.3, 40), 10**6).tolist()
    grades = {(query, query % DOCS): count for query, count in enumerate(counts)} | {(0, 7): 1, (3, 8): 0}
    (batch,) = epoch(grades, (0,), batch_size=40, negatives=10)
    most_P = batch.weight_PN.max(axis=1)
    first_of_query = np.unique(batch.pair_query_P, return_index=True)[1]
    assert most_P.max() == 1
    assert (np.maximum.reduceat(most_P, first_of_query) == 1).all(), "a query counts less than others"


@settings(deadline=None, derandomize=True, max_examples=20)
@given(seed=st.integers(0, 2**40), number=st.integers(0, 100))
def test_the_key_alone_decides_the_steps(seed: int, number: int) -> None:
    grades = {(query, query): 1 for query in range(20)}
    first = epoch(grades, (seed, number), batch_size=8, negatives=5)
    assert same(first, epoch(grades, (seed, number), batch_size=8, negatives=5))
    assert not same(first, epoch(grades, (seed, number + 1), batch_size=8, negatives=5))
    assert not same(first, epoch(grades, (seed + 1, number), batch_size=8, negatives=5))


def test_all_positives_of_a_query_get_their_turn() -> None:
    grades = {(0, doc): 1 for doc in range(6)}
    drawn: set[int] = set()
    for number in range(30):
        (batch,) = epoch(grades, (0, number), positives=2, negatives=0)
        assert len(batch.pair_doc_P) == 2
        drawn |= set(batch.doc_row_N.tolist())
    assert drawn == set(range(6))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(rows=st.sets(st.integers(0, 99), min_size=1), batch_size=st.integers(1, 20), negatives=st.integers(0, 20))
def test_without_judgements_every_document_comes_once_an_epoch(rows: set[int], batch_size: int, negatives: int) -> None:
    config = TrainConfig(dims=(1,), batch_size=batch_size, negatives=negatives)
    sampler = UnlabelledSampler(np.array(sorted(rows)), config)
    batches = list(sampler.epoch((0, 0)))
    assert len(batches) == sampler.epoch_steps
    assert sorted(np.concatenate([batch.doc_row_N for batch in batches]).tolist()) == sorted(rows)
    assert all(not len(batch.query_row_B) and not batch.weight_PN.size for batch in batches)


def test_a_query_that_is_a_document_is_no_negative_of_itself() -> None:
    rng = np.random.default_rng(0)
    query_J, doc_J = np.repeat(np.arange(20), 2), rng.integers(0, DOCS, 40)
    own_doc_of = np.where(np.arange(20) % 4, np.arange(20), -1)
    judged = Judgements.from_pairs(query_J, doc_J, np.ones(40, np.float32), own_doc_of).with_positives()
    assert not (judged.doc_row_J == own_doc_of[judged.query_row_Q[judged.query_J]]).any(), "own document judged"
    met = 0
    for batch in LabelledSampler(judged, DOCS, TrainConfig(dims=(1,), batch_size=8, negatives=30)).epoch((0,)):
        own_P = own_doc_of[batch.query_row_B[batch.pair_query_P]]
        is_own_PN = batch.doc_row_N[None, :] == own_P[:, None]
        assert not batch.weight_PN[is_own_PN].any()
        met += int(is_own_PN.sum())
        others = batch.weight_PN[~is_own_PN]
        assert others.sum() > 0
    assert met, "no query met its own document"
    assert (
        judged.merge(judged).own_doc_of is own_doc_of
        and judged.select(np.ones(len(judged), bool)).own_doc_of is own_doc_of
    )
