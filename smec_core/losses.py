"""The two losses of SMEC on unit vectors of one prefix.

Shapes: B queries, N documents, P pairs, A anchors, U distinct memory items, d dims.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

KINK = 1e-2


def rank_loss(
    q_Bd: Tensor, d_Nd: Tensor, pair_query_P: Tensor, pair_doc_P: Tensor, weight_PN: Tensor, temperature: float
) -> Tensor:
    """Sum over positive pairs and documents of weight * softplus((s_ik - s_ij) / T), s the cosine (paper equation 9).

    Args:
        q_Bd: unit query vectors.
        d_Nd: unit document vectors.
        pair_query_P: row in `q_Bd` of each positive pair.
        pair_doc_P: row in `d_Nd` of each positive pair.
        weight_PN: grade of the pair's document less grade of document n for the pair's query, never below 0.
        temperature: T.

    Returns:
        The weighted sum, a scalar; divide by the sum of all weights of the global step.
    """
    sim_BN = q_Bd @ d_Nd.T / temperature
    margin_PN = sim_BN.index_select(0, pair_query_P) - sim_BN[pair_query_P, pair_doc_P].unsqueeze(1)
    return (F.softplus(margin_PN) * weight_PN).sum()


class Pairs:
    """Listed (anchor, memory item) pairs of a step, by anchor and by item, for sparse products.

    Attributes:
        target_P: cosine of each pair by the frozen embeddings.
    """

    def __init__(self, anchor_P: Tensor, item_P: Tensor, target_P: Tensor, anchors: int, items: int) -> None:
        """Takes pairs in ascending order of (anchor, item), none twice.

        Args:
            anchor_P: row of each pair's anchor.
            item_P: row of its memory item.
            target_P: cosine of its frozen embeddings.
            anchors: A.
            items: U.
        """
        self.target_P = target_P
        self._shape = (anchors, items)
        self._begin_A1, self._item_P = _begins(anchor_P, anchors), item_P
        self._by_item_P = item_P.argsort(stable=True)
        self._begin_U1, self._anchor_P = _begins(item_P, items), anchor_P[self._by_item_P]

    @classmethod
    def none(cls, device: torch.device) -> Self:
        """No pairs at all."""
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return cls(nothing, nothing, nothing.float(), 0, 0)

    def __len__(self) -> int:
        return len(self.target_P)

    def by_anchor(self, value_P: Tensor) -> Tensor:
        """Sparse matrix (A, U) of a value for each pair."""
        return torch.sparse_csr_tensor(self._begin_A1, self._item_P, value_P, self._shape, check_invariants=False)

    def by_item(self, value_P: Tensor) -> Tensor:
        """Its transpose (U, A)."""
        shape, value_P = self._shape[::-1], value_P[self._by_item_P]
        return torch.sparse_csr_tensor(self._begin_U1, self._anchor_P, value_P, shape, check_invariants=False)


def _begins(row_P: Tensor, rows: int) -> Tensor:
    return F.pad(torch.bincount(row_P, minlength=rows).cumsum(0), (1, 0))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch says that its sparse tensors are a beta
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        yield


class _PairProducts(torch.autograd.Function):
    """Dot products of listed pairs, without a copy of either vector for every pair."""

    @staticmethod
    def forward(ctx: Any, a_Ad: Tensor, m_Ud: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(a_Ad, m_Ud)
        ctx.pairs = pairs
        with _quiet():
            listed = pairs.by_anchor(torch.zeros_like(pairs.target_P))
            return torch.sparse.sampled_addmm(listed, a_Ad, m_Ud.T, beta=0.0).values()

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> Any:
        a_Ad, m_Ud = ctx.saved_tensors
        with _quiet():
            return ctx.pairs.by_anchor(grad_P) @ m_Ud, ctx.pairs.by_item(grad_P) @ a_Ad, None


def unsupervised_loss(a_Ad: Tensor, m_Ud: Tensor, pairs: Pairs) -> Tensor:
    """Sum over anchors and their neighbours of |cos(x_i, x_j) - cos(z_i, z_j)| (paper equation 10).

    The absolute value is rounded off below KINK (Huber's loss over KINK). A stage starts where the cosines of its whole
    block are kept exactly, and there the sign of the difference, and so the whole gradient, would be rounding noise.

    Args:
        a_Ad: unit anchors of the prefix.
        m_Ud: unit memory items of the prefix, each once.
        pairs: which anchor has which neighbours.

    Returns:
        The sum, a scalar; divide by the number of pairs of the global step.
    """
    if not len(pairs):
        # nothing, but a part of the graph, so that every rank takes part in what is collective going back
        return a_Ad.sum() * 0
    sim_P: Tensor = _PairProducts.apply(a_Ad, m_Ud, pairs)
    return F.smooth_l1_loss(sim_P, pairs.target_P, reduction="sum", beta=KINK)
