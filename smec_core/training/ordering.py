"""The order of dims: rotations that make the first dims of a block useful before training.

Shapes: N rows, D input dims, I dims of the block.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import pairwise

import torch
from torch import Tensor

from smec_core.distributed.resident import Rows
from smec_core.evaluation.dev_set import QueryScores
from smec_core.model.adapter import FrozenStage
from smec_core.model.closed_forms import MOMENTS, ClosedForm, Moments
from smec_core.model.pca import block_rotation
from smec_core.training.context import PassContext
from smec_core.training.guard import Z_OTHER, is_real
from smec_core.training.moments import MomentSums

AS_THEY_ARE = ClosedForm("identity")
ORDERS = (
    AS_THEY_ARE,
    *(ClosedForm("pca", moment) for moment in MOMENTS),
    ClosedForm("within", "docs", 1.0, 0.3),
    *(ClosedForm("within", "pooled", power, shrinkage) for power, shrinkage in ((1.0, 0.1), (1.0, 0.5), (0.5, 0.3))),
)
"""What is tried beside the usual order."""


class Orders:
    """Rotations of one block."""

    def __init__(self, context: PassContext, y_docs: Rows, y_queries: Rows, cuts: Sequence[int] = ()) -> None:
        """Takes the block, and computes nothing.

        Args:
            context: what the stages share.
            y_docs: blocks of the documents.
            y_queries: those of the queries.
            cuts: ascending; PCA rotates dims between two of them among themselves only.
        """
        self._context, self._cuts, self._dim = context, cuts, y_docs.dim
        is_first = y_docs is context.x_docs
        self._sums = MomentSums(y_docs, y_queries, context.group, context.docs_DD if is_first else None)

    def rotation(self, order: ClosedForm) -> Tensor:
        """The rotation (I, I) whose prefixes span what those of a closed form of the block span. Collective."""
        if order == AS_THEY_ARE:
            return torch.eye(self._dim)
        if order.name == "pca":
            moment_II = self._sums.docs_DD
            if order.moment == "pooled":
                moment_II = (moment_II + self._sums.queries_DD(self._context.judgements)) / 2
            rotation_II = block_rotation(moment_II, self._cuts)
        else:
            rotation_II = nested_rotation(order.matrix(self._moments)).float()
        return self._context.group.from_first_(rotation_II)

    def best(
        self, usual: ClosedForm, dims: Sequence[int], protected: Sequence[int], block_ID: Tensor | None = None
    ) -> ClosedForm:
        """The order that is best on dev; without dev the usual one. Collective.

        Another than the usual one has to gain more than twice the error of the difference in the mean of all dims, must
        cost no more than `guard_tolerance` at the largest, which nothing later makes up for, and on no part of dev may
        it fall below a reference there where the usual one does not.

        Args:
            usual: one of them.
            dims: prefixes of the block, the largest first.
            protected: prefixes that references have.
            block_ID: what gives the block where dev has the input of a map that is not on top of it yet.
        """
        context, largest = self._context, dims[0]
        if context.dev is None:
            return usual
        scores = partial(self._scores, dims=dims, block_ID=block_ID)
        held = {largest} & {*protected}
        start = scores(usual)
        losses, start_Q = context.references.losses(start, held), self._mean_Q(start)
        found, found_Q = usual, start_Q
        for order in (order for order in ORDERS if order != usual):
            values = scores(order)
            mean_Q = self._mean_Q(values)
            cost = self._mean_Q({largest: start[largest] - values[largest]}).mean()
            is_held = cost <= context.config.guard_tolerance and context.references.losses(values, held) <= losses
            if is_held and mean_Q.mean() > found_Q.mean():
                found, found_Q = order, mean_Q
        return found if is_real(found_Q - start_Q, Z_OTHER) else usual

    def _scores(self, order: ClosedForm, dims: Sequence[int], block_ID: Tensor | None) -> QueryScores:
        dev, device = self._context.dev, self._context.device
        assert dev is not None
        rotation_II = self.rotation(order).to(device)
        weight_ID = rotation_II if block_ID is None else rotation_II @ block_ID.to(device)
        return dev.score(FrozenStage(dims[0], "linear", {"weight": weight_ID}).keep, weight_ID.shape[1], dims)

    def _mean_Q(self, values: QueryScores) -> Tensor:
        dev = self._context.dev
        assert dev is not None
        return torch.stack(list(dev.weighted(values).values())).mean(0)

    @cached_property
    def _moments(self) -> Moments:
        return self._sums.of(self._context.judgements)


def put_in_order(
    context: PassContext, matrix_DD: Tensor, dims: Sequence[int], orders: Sequence[ClosedForm] = ()
) -> tuple[Tensor, list[ClosedForm]]:
    """A map whose prefixes are rotated, the largest first, into the order that is best on dev. Collective.

    Args:
        context: what the stages share.
        matrix_DD: the map.
        dims: its prefixes, descending, from D.
        orders: of each prefix but the smallest, where they are known; else dev chooses, and without dev all stay.

    Returns:
        The map, and the orders.
    """
    if not orders and context.dev is None:
        return matrix_DD, []
    found: list[ClosedForm] = []
    y_docs, y_queries = context.x_docs, context.x_queries
    weight_II = matrix_DD
    for number, (d_in, _) in enumerate(pairwise(dims)):
        stage = FrozenStage(d_in, "linear", {"weight": weight_II[:d_in].to(context.device)})
        y_docs, y_queries = y_docs.project(stage), y_queries.project(stage)
        block = Orders(context, y_docs, y_queries)
        below = dims[number + 1 :]
        found.append(orders[number] if orders else block.best(AS_THEY_ARE, below, below, matrix_DD[:d_in]))
        weight_II = block.rotation(found[-1])
        matrix_DD = torch.cat([weight_II @ matrix_DD[:d_in], matrix_DD[d_in:]])
    return matrix_DD, found


def nested_rotation(matrix_II: Tensor) -> Tensor:
    """The rotation (I, I) whose first rows span what the first rows of a matrix span, for any number of them."""
    basis_II, upper_II = torch.linalg.qr(matrix_II.T)
    # QR leaves the signs open: as the rows have them
    return (basis_II * upper_II.diagonal().sign()).T.contiguous()
