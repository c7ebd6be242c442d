"""Which closed form is started from, and which is kept."""

import numpy as np
import pytest

from smec_core.config import Favour
from smec_core.data.judgements import Judgements
from smec_core.evaluation.dev_set import dev_weights
from smec_core.model.closed_forms import ClosedForm
from smec_core.training.closed import WITHOUT_LABELS, Tried, best_form

PLAIN, STRONG, LIGHT = (ClosedForm("within", "docs", 1.0, shrinkage) for shrinkage in (1.0, 0.8, 0.1))
NOISE = np.random.default_rng(0).normal(0, 0.1, 200)


def tried(queries: tuple[int, int] = (200, 200)) -> dict[ClosedForm, Tried]:
    """PLAIN and STRONG are level for new documents, LIGHT is worse for these and best for recurring ones."""
    means = {PLAIN: (0.5, 0.6), STRONG: (0.6, 0.6), LIGHT: (0.9, 0.5)}
    return {
        form: Tried(*(NOISE[:count] + mean for count, mean in zip(queries, both, strict=True)))
        for form, both in means.items()
    }


@pytest.mark.parametrize(
    ("favour", "start", "kept"),
    [("all", STRONG, LIGHT), ("both", STRONG, LIGHT), ("recurring", LIGHT, LIGHT), ("new", PLAIN, PLAIN)],
)
def test_a_start_generalises_and_what_is_kept_counts_by_both_parts(
    favour: Favour, start: ClosedForm, kept: ClosedForm
) -> None:
    assert best_form(tried(), favour, is_trained=True) == start
    assert best_form(tried(), favour, is_trained=False) == kept


def test_parts_of_few_queries_decide_nothing() -> None:
    assert best_form(tried((200, 29)), "both", is_trained=True) == LIGHT
    assert best_form(tried((200, 29)), "new", is_trained=True) == LIGHT
    assert best_form(tried((29, 200)), "recurring", is_trained=True) == PLAIN
    assert best_form(tried((29, 29)), "both", is_trained=True) == WITHOUT_LABELS


def judged(docs: list[int]) -> Judgements:
    return Judgements.from_pairs(np.arange(len(docs)), np.array(docs), np.ones(len(docs), np.float32))


def test_recurring_and_new_dev_queries_weigh_alike() -> None:
    train, dev = judged(list(range(50))), judged([*[0] * 30, *range(100, 190)])
    weight_Q = dev_weights(train, dev, "both")
    assert weight_Q is not None
    assert weight_Q.mean() == pytest.approx(1)
    assert weight_Q[:30].sum() == pytest.approx(weight_Q[30:].sum())
    new_Q = dev_weights(train, dev, "new")
    assert new_Q is not None
    assert (new_Q[:30] == 0).all()
    assert new_Q[30:].mean() * 90 / 120 == pytest.approx(1)
    assert dev_weights(train, dev, "all") is None
    # 29 recurring ones are too few to count by themselves
    assert dev_weights(train, judged([*[0] * 29, *range(100, 190)]), "both") is None
