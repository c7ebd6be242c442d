"""What the ranking loss takes scores for, and what is told of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.data.grades import HEAVY_TAIL, loss_grades, score_figures, shown
from smec_core.data.judgements import Judgements

Judged = dict[tuple[int, int], float]
PAIRS = st.tuples(st.integers(0, 6), st.integers(0, 9))
# as a click log has them: counts and shares over many orders of magnitude, and some judged irrelevant
SCORES = st.one_of(st.integers(-1, 3).map(float), st.integers(1, 10**7).map(float), st.floats(2**-10, 2**20, width=32))


def judge(scores: Judged) -> Judgements:
    query_J, doc_J = np.array(list(scores)).T
    return Judgements.from_pairs(query_J, doc_J, np.array(list(scores.values()), np.float32))


def one_query_each(*scores: float) -> Judgements:
    return judge({(query, query): score for query, score in enumerate(scores)})


@pytest.mark.parametrize(
    "scores",
    [(0, 1), (0, 1, 2), (-1, 0, 1, 2, 3), tuple(range(6)), (100, 200, 300), (0, 0.5, 1.7), (0.001, 0.003), (0, -2)],
    ids=str,
)
def test_grades_are_the_scores_to_the_last_bit(scores: tuple[float, ...]) -> None:
    judged = judge({(query, doc): scores[(query + doc) % len(scores)] for query in range(9) for doc in range(5)})
    assert loss_grades(judged).dtype == np.float32
    assert loss_grades(judged).tobytes() == judged.score_J.tobytes()


def test_counts_become_logarithms_and_the_highest_of_each_query_is_1() -> None:
    # their median is 2
    counts = {(0, 0): 1e6, (0, 1): 1000, (0, 2): 0, (1, 0): 4, (1, 1): 1, (2, 5): 1, (3, 0): -1, (4, 4): 2, (5, 1): 1}
    expected = [1, math.log(501) / math.log(500_001), 0, 1, math.log(1.5) / math.log(3), 1, -1, 1, 1]
    np.testing.assert_allclose(loss_grades(judge(counts)), expected, rtol=1e-6)


def test_counts_are_known_where_most_of_them_are_large() -> None:
    grade_J = loss_grades(one_query_each(*[1000] * 12, *[1] * 8))
    assert (grade_J == 1).all()


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1000.0])
def test_the_unit_of_counts_does_not_matter(unit: float) -> None:
    counts = [1, 3, 1, 7, 2, 50_000]
    grade_J = loss_grades(one_query_each(*(unit * count for count in counts)))
    assert (grade_J == 1).all(), "each query has one document, and counts alike"
    several: Judged = {(number % 2, number): count for number, count in enumerate(counts)}
    in_units = {pair: unit * count for pair, count in several.items()}
    np.testing.assert_allclose(loss_grades(judge(in_units)), loss_grades(judge(several)), rtol=1e-5)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.dictionaries(PAIRS, SCORES, min_size=1, max_size=40))
def test_grades_keep_order_and_sign_and_do_not_grow(scores: Judged) -> None:
    judged = judge(scores)
    grade_J = loss_grades(judged)
    assert (np.sign(grade_J) == np.sign(judged.score_J)).all()
    positive_J = judged.score_J > 0
    if positive_J.any():
        assert grade_J.max() <= HEAVY_TAIL * np.quantile(judged.score_J[positive_J], 0.1).clip(1) * (1 + 1e-6)
    for query in range(len(judged)):
        of_query = judged.query_J == query
        score, grade = judged.score_J[of_query], grade_J[of_query]
        assert (np.diff(grade[np.argsort(score)]) >= 0).all()
        above = score[:, None] > score * (1 + 1e-5)
        assert (grade[:, None] > grade)[above & (score > 0)].all(), "different counts became one"


def test_few_scores_are_counted_and_many_told_by_quantiles() -> None:
    figures = score_figures(one_query_each(0, 0, 1, 0.5, 1, 3))
    assert figures == {"tail": pytest.approx(3 / 0.65), "values": {"0": 2, "0.5": 1, "1": 2, "3": 1}}
    figures = score_figures(one_query_each(0, -1, *range(1, 101), 2_000_000))
    assert figures["quantiles"] == pytest.approx(
        {"min": 1, "p10": 11, "median": 51, "p90": 91, "p99": 100, "max": 2_000_000}
    )
    assert figures["tail"] == pytest.approx(2_000_000 / 11)
    assert score_figures(one_query_each(0, -1)) == {"tail": 0.0, "values": {"-1": 1, "0": 1}}


def test_scores_are_shown_in_full() -> None:
    assert [shown(score) for score in (1.0, 0.1, 20_000_000.0, -2.0)] == ["1", "0.1", "20000000", "-2"]
