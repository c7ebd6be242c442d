"""Orders of dims: closed forms and blocks whose first dims serve before anything is trained."""

import dataclasses
from typing import Any

import pytest
import torch

from smec_core.config import TrainConfig
from smec_core.model.closed_forms import ClosedForm
from smec_core.model.pca import principal_rotation
from smec_core.training.closed import ClosedStart
from smec_core.training.context import PassContext, pass_context
from smec_core.training.guard import References
from smec_core.training.ordering import ORDERS, Orders, nested_rotation, put_in_order
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train
from tests.smec_core.generated import Generated, generate

DIM = 24
DIMS = [DIM, 8, 4]
PCA = ClosedForm("pca")


@pytest.fixture(scope="module")
def data() -> Generated:
    """Documents whose strongest dims say nothing of relevance, so that PCA puts first what serves least."""
    return generate(torch.arange(12, 22), DIM, docs=600, queries=1200, noise_scale=1.3, mixed=True)


@pytest.fixture
def context(data: Generated) -> PassContext:
    return pass_context(data.training_data(), settings(), "first", NullTracker())


def settings(**changes: Any) -> TrainConfig:
    quick = {"dims": (8, 4), "epochs": 8, "batch_size": 64, "negatives": 32, "queue_size": 100}
    return TrainConfig.model_validate({**quick, **changes})


def score(context: PassContext, matrix_DD: torch.Tensor, dim: int) -> float:
    assert context.dev is not None
    return context.dev.score(lambda x_ND: x_ND @ matrix_DD.T, DIM, [dim])[dim].mean().item()


@pytest.mark.parametrize("dim", [1, 5, 12])
def test_prefixes_of_a_nested_rotation_span_what_those_of_the_matrix_span(dim: int) -> None:
    matrix_II = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation_II = nested_rotation(matrix_II)
    torch.testing.assert_close(rotation_II @ rotation_II.T, torch.eye(12, dtype=torch.float64))
    within = rotation_II[:dim].T @ rotation_II[:dim]
    torch.testing.assert_close(matrix_II[:dim] @ within, matrix_II[:dim])
    assert ((rotation_II * matrix_II).sum(1) > 0).all(), "rows point where those of the matrix do"


def test_the_order_of_relevance_is_found_where_that_of_variance_misleads(context: PassContext) -> None:
    pca_DD = principal_rotation(context.x_docs, context.group)
    matrix_DD, orders = put_in_order(context, pca_DD, DIMS)
    assert len(orders) == 2 and orders[0].name == "within"
    torch.testing.assert_close(matrix_DD @ matrix_DD.T, torch.eye(DIM), atol=1e-5, rtol=0)
    assert all(score(context, matrix_DD, dim) > score(context, pca_DD, dim) + 0.2 for dim in DIMS[1:])
    again_DD, same = put_in_order(context, pca_DD, DIMS, orders)
    assert same == orders and torch.equal(again_DD, matrix_DD)


def test_a_gain_that_may_be_luck_changes_nothing() -> None:
    # all dims say the same of relevance, so that no order is better than another
    alike = generate(torch.arange(DIM), DIM, docs=300, queries=900, noise_scale=1.0, mixed=True)
    context = pass_context(alike.training_data(), settings(), "first", NullTracker())
    block = Orders(context, context.x_docs, context.x_queries)
    scores = {order: score(context, block.rotation(order), 8) for order in ORDERS}
    assert max(scores, key=lambda order: scores[order]) != PCA
    assert block.best(PCA, [8], DIMS) == PCA


def test_no_order_falls_below_a_reference_that_the_usual_one_keeps(context: PassContext) -> None:
    block = Orders(context, context.x_docs, context.x_queries)
    assert context.dev is not None
    found = block.best(PCA, DIMS[1:], DIMS)
    assert found in ORDERS and found != PCA
    best = context.dev.score(lambda x_ND: x_ND @ block.rotation(found).T, DIM, DIMS)
    usual = context.dev.score(lambda x_ND: x_ND @ block.rotation(PCA).T, DIM, DIMS)
    # queries that the best order is bad at and the usual one good
    mask_Q = usual[8] > best[8]
    assert mask_Q.sum() >= 2
    context.references = References([usual], [mask_Q], 0.0)
    assert block.best(PCA, DIMS[1:], DIMS) != found


def test_without_dev_all_stay_as_they_are(data: Generated) -> None:
    context = pass_context(data.training_data(), settings(guard=False), "first", NullTracker())
    matrix_DD = torch.eye(DIM)
    assert put_in_order(context, matrix_DD, DIMS) == (matrix_DD, [])
    assert Orders(context, context.x_docs, context.x_queries).best(PCA, DIMS[1:], DIMS) == PCA


@pytest.mark.parametrize("changes", [{}, {"epochs": 0, "schedule": "parallel"}], ids=str)
def test_the_refit_takes_the_orders_that_the_first_pass_has_found(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = generate(torch.arange(8), DIM, docs=300, queries=600, noise_scale=1.0, mixed=True)
    taken: dict[str, list[ClosedForm]] = {"first": [], "refit": []}
    best, rotation = Orders.best, Orders.rotation

    def found(block: Orders, *args: Any, **kwargs: Any) -> ClosedForm:
        order = best(block, *args, **kwargs)
        taken[block._context.pass_name].append(order)
        return order

    def replayed(block: Orders, order: ClosedForm) -> torch.Tensor:
        if block._context.pass_name == "refit":
            taken["refit"].append(order)
        return rotation(block, order)

    monkeypatch.setattr(Orders, "best", found)
    monkeypatch.setattr(Orders, "rotation", replayed)
    trained = train(data.training_data(), settings(**changes), NullTracker())
    assert taken["refit"] == taken["first"]
    start = trained.metrics["start"]
    assert "kept" not in start
    orders = [*start["orders"], *(stage["order"] for stage in trained.metrics["stages"] if "order" in stage)]
    assert [ClosedForm(**order) for order in orders] == taken["first"]
    assert len(orders) == (2 if changes else 5), "of the prefixes, and of the stages 12, 8 and 4"


def test_a_closed_form_that_is_kept_without_a_refit_has_not_learnt_from_dev(data: Generated) -> None:
    whole = data.training_data()
    config = settings(refit=False, epochs=1, lr=1e-9)
    trained = train(whole, config, NullTracker())
    assert trained.metrics["start"]["kept"] == "closed"
    closed = ClosedStart(whole, config, DIMS, lambda text: None)
    closed.chosen = {**trained.metrics["start"]}
    without_dev = dataclasses.replace(whole, dev=None)
    matrix_DD, _ = closed.make(pass_context(without_dev, config, "refit", NullTracker()))
    torch.testing.assert_close(trained.stages[0].tensors["weight"], matrix_DD)
    of_both_DD, _ = closed.make(pass_context(whole, config, "refit", NullTracker()))
    assert (of_both_DD - matrix_DD).abs().max() > 1e-3
