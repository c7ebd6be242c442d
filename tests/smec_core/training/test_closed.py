"""Which closed form is started from, and which is kept."""

import numpy as np
import pytest
import torch

from smec_core.config import Favour, TrainConfig
from smec_core.data.folds import is_seen
from smec_core.data.judgements import Judgements
from smec_core.distributed.resident import Node
from smec_core.evaluation.dev_set import dev_parts, make_dev_set
from smec_core.model.closed_forms import ClosedForm
from smec_core.training.closed import PLAIN, Tried, best_form
from tests.smec_core.generated import generate, resident

LEVEL, STRONG, LIGHT = (ClosedForm("within", "docs", 1.0, shrinkage) for shrinkage in (1.0, 0.8, 0.1))
NOISE = np.random.default_rng(0).normal(0, 0.1, 200)


def tried(queries: tuple[int, int] = (200, 200)) -> dict[ClosedForm, Tried]:
    """LEVEL and STRONG are level for new documents, LIGHT is worse for these and best for recurring ones."""
    means = {LEVEL: (0.5, 0.6), STRONG: (0.6, 0.6), LIGHT: (0.9, 0.5)}
    return {
        form: Tried(*(NOISE[:count, None] + mean for count, mean in zip(queries, both, strict=True)))
        for form, both in means.items()
    }


@pytest.mark.parametrize(
    ("favour", "start", "kept"),
    [("all", STRONG, LIGHT), ("both", STRONG, LIGHT), ("recurring", LIGHT, LIGHT), ("new", LEVEL, LEVEL)],
)
def test_a_start_generalises_and_what_is_kept_counts_by_both_parts(
    favour: Favour, start: ClosedForm, kept: ClosedForm
) -> None:
    assert best_form(tried(), favour, is_trained=True, tolerance=0.005) == start
    assert best_form(tried(), favour, is_trained=False, tolerance=0.005) == kept


def test_parts_of_few_queries_decide_nothing() -> None:
    assert best_form(tried((200, 29)), "both", is_trained=True, tolerance=0.005) == LIGHT
    assert best_form(tried((200, 29)), "new", is_trained=True, tolerance=0.005) == LIGHT
    assert best_form(tried((29, 200)), "recurring", is_trained=True, tolerance=0.005) == LEVEL
    assert best_form(tried((29, 29)), "both", is_trained=True, tolerance=0.005) == LEVEL, "the first"


def test_a_form_below_pca_at_a_prefix_is_not_taken() -> None:
    def scores(new: list[float]) -> Tried:
        return Tried(np.full((200, 2), 0.5), NOISE[:, None] + np.array(new))

    # against PCA, LIGHT loses at one prefix what it gains at the other
    both = {PLAIN: scores([0.5, 0.5]), STRONG: scores([0.52, 0.5]), LIGHT: scores([0.7, 0.49])}
    assert best_form(both, "both", is_trained=False, tolerance=0.005) == STRONG
    assert best_form(both, "both", is_trained=False, tolerance=0.02) == LIGHT
    assert best_form(both, "recurring", is_trained=False, tolerance=0.005) == PLAIN, "both parts are protected"


def judged(docs: list[int]) -> Judgements:
    return Judgements.from_pairs(np.arange(len(docs)), np.array(docs), np.ones(len(docs), np.float32))


def test_recurring_and_new_dev_queries_weigh_alike() -> None:
    train, dev = judged(list(range(50))), judged([*[0] * 30, *range(100, 190)])

    def weights(favour: Favour, dev: Judgements = dev) -> torch.Tensor | None:
        return dev_parts(train, dev, TrainConfig(dims=(2,), favour=favour)).weight_Q

    weight_Q, new_Q = weights("both"), weights("new")
    assert weight_Q is not None
    assert weight_Q.mean().item() == pytest.approx(1)
    assert weight_Q[:30].sum().item() == pytest.approx(weight_Q[30:].sum().item())
    assert new_Q is not None
    assert (new_Q[:30] == 0).all()
    assert new_Q.mean().item() == pytest.approx(1)
    assert weights("all") is None
    # 29 recurring ones are too few to count by themselves
    few = judged([*[0] * 29, *range(100, 190)])
    assert weights("both", few) is None
    assert weights("recurring", few) is None
    assert weights("new", few) is not None


def test_what_favour_asks_for_decides_what_is_kept() -> None:
    """Scores of .25 for recurring and .75 for new queries."""
    data = generate(torch.arange(4), 12, docs=400, queries=500, noise_scale=1.0, mixed=True)
    # half of the dev queries search for documents that train queries have
    train, dev = data.train, data.dev.merge(data.train.select(np.arange(len(data.train)) % 4 == 0))
    recurring_Q = is_seen(train, dev)
    assert min(recurring_Q.sum(), (~recurring_Q).sum()) >= 30
    docs, queries = resident(data.docs_ND), resident(data.queries_QD)
    value_Q = torch.from_numpy(np.where(recurring_Q, 0.25, 0.75))
    for favour, mean in (("recurring", 0.25), ("new", 0.75), ("both", 0.5)):
        config = TrainConfig(dims=(4,), favour=favour)
        made = make_dev_set(queries, docs, dev, np.empty(0, np.int64), config, Node(), dev_parts(train, dev, config))
        assert made.weighted({4: value_Q})[4].mean().item() == pytest.approx(mean)
