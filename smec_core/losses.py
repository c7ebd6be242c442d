"""The two losses of SMEC.

Shapes: B queries, N documents, P pairs, I dims of all prefixes, b dims between two prefixes; A anchors, U distinct
memory items, d dims of one prefix.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

KINK = 1e-2
LEAST_SQUARE = 1e-24


class RankedPairs(NamedTuple):
    """What the ranking loss compares.

    Attributes:
        query_P: row of the query of each positive pair.
        doc_P: row of its document.
        weight_PN: grade of the pair's document less grade of document n for the pair's query, never below 0.
    """

    query_P: Tensor
    doc_P: Tensor
    weight_PN: Tensor


def rank_loss(
    q_BI: Tensor, d_NI: Tensor, prefixes: Sequence[tuple[int, float]], pairs: RankedPairs, temperature: float
) -> Tensor:
    """Sum over positive pairs and documents of weight * softplus((s_ik - s_ij) / T), s the cosine (paper equation 9).

    At several prefixes at once: products and squared norms of a prefix are those of the next shorter one and of the
    dims between the two, and so are gradients, so that all cost hardly more than the longest.

    Args:
        q_BI: queries of any norm.
        d_NI: documents of any norm.
        prefixes: dims of each, and the weight of its loss; none twice.
        pairs: what is compared.
        temperature: T.

    Returns:
        The weighted sum, a scalar; divide by the sum of all weights of the global step.
    """
    total: Tensor = _RankLoss.apply(q_BI, d_NI, sorted(prefixes), pairs, temperature)
    return total


class _Slope(NamedTuple):
    """Gradient of the loss of one prefix.

    Attributes:
        dot: by each dot product.
        left: what times a query or an anchor is its gradient through its norm.
        right: the same of a document or a memory item.
    """

    dot: Tensor
    left: Tensor
    right: Tensor


class _RankLoss(torch.autograd.Function):
    """The slope of a prefix is known with its loss; going back, only products are left to do."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BI: Tensor,
        d_NI: Tensor,
        prefixes: list[tuple[int, float]],
        pairs: RankedPairs,
        temperature: float,
    ) -> Tensor:
        dot_BN = q_BI.new_zeros(len(q_BI), len(d_NI))
        square_B, square_N = q_BI.new_zeros(len(q_BI)), q_BI.new_zeros(len(d_NI))
        total = q_BI.new_zeros(())
        slopes = []
        for part, (_, weight) in zip(_parts(prefixes), prefixes, strict=True):
            q_Bb, d_Nb = q_BI[:, part], d_NI[:, part]
            dot_BN.addmm_(q_Bb, d_Nb.T)
            square_B, square_N = square_B + q_Bb.square().sum(1), square_N + d_Nb.square().sum(1)
            loss, slope = _loss_and_slope(dot_BN, square_B, square_N, weight, pairs, temperature)
            total += loss
            slopes.append(slope)
        ctx.save_for_backward(q_BI, d_NI, *(tensor for slope in slopes for tensor in slope))
        ctx.prefixes = prefixes
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q_BI, d_NI, *saved = ctx.saved_tensors
        grad_BI, grad_NI = torch.zeros_like(q_BI), torch.zeros_like(d_NI)
        for part, slope in _summed(ctx.prefixes, saved):
            q_Bb, d_Nb = q_BI[:, part], d_NI[:, part]
            torch.addmm(q_Bb * slope.left[:, None], slope.dot, d_Nb, out=grad_BI[:, part])
            torch.addmm(d_Nb * slope.right[:, None], slope.dot.T, q_Bb, out=grad_NI[:, part])
        return grad_BI.mul_(grad), grad_NI.mul_(grad), None, None, None


def _parts(prefixes: list[tuple[int, float]]) -> list[slice]:
    """For each prefix the dims that it has and the next shorter one has not."""
    widths = [width for width, _ in prefixes]
    return [slice(*part) for part in pairwise((0, *widths))]


def _summed(prefixes: list[tuple[int, float]], saved: Sequence[Tensor]) -> Iterator[tuple[slice, _Slope]]:
    """Dims, the last first, and the sum of the slopes of all prefixes that have them: their own and the longer ones."""
    slopes = [_Slope(*saved[place : place + 3]) for place in range(0, len(saved), 3)]
    total: _Slope | None = None
    for part, own in reversed(list(zip(_parts(prefixes), slopes, strict=True))):
        total = own if total is None else _Slope(*(longer + one for longer, one in zip(total, own, strict=True)))
        yield part, total


def _loss_and_slope(
    dot_BN: Tensor, square_B: Tensor, square_N: Tensor, weight: float, pairs: RankedPairs, temperature: float
) -> tuple[Tensor, _Slope]:
    """Of one prefix, by the dot products and the squared norms of its vectors."""
    query_P, doc_P, weight_PN = pairs
    scale_B, scale_N = (square.clamp_min(LEAST_SQUARE).rsqrt() for square in (square_B, square_N))
    scale_BN = scale_B[:, None] * scale_N
    cos_BN = dot_BN * scale_BN
    margin_PN = (cos_BN.index_select(0, query_P) - cos_BN[query_P, doc_P].unsqueeze(1)) / temperature
    slope_PN = margin_PN.sigmoid().mul_(weight_PN)
    slope_BN = torch.zeros_like(dot_BN).index_add_(0, query_P, slope_PN)
    slope_BN.index_put_((query_P, doc_P), -slope_PN.sum(1), accumulate=True)
    slope_BN *= scale_BN * (weight / temperature)
    by_norm_BN = slope_BN * dot_BN
    slope = _Slope(slope_BN, -by_norm_BN.sum(1) * scale_B.square(), -by_norm_BN.sum(0) * scale_N.square())
    return weight * F.softplus(margin_PN).mul_(weight_PN).sum(), slope


class Pairs:
    """Listed (anchor, memory item) pairs of a step, by anchor and by item, for sparse products.

    Attributes:
        anchor_P: row of each pair's anchor.
        item_P: row of its memory item.
        target_P: cosine of its frozen embeddings.
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
        self.anchor_P, self.item_P, self.target_P = anchor_P, item_P, target_P
        self._shape = (anchors, items)
        self._begin_A1 = _begins(anchor_P, anchors)
        self._by_item_P = item_P.argsort(stable=True)
        self._begin_U1, self._anchor_by_item_P = _begins(item_P, items), anchor_P[self._by_item_P]

    @classmethod
    def none(cls, device: torch.device) -> Self:
        """No pairs at all."""
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return cls(nothing, nothing, nothing.float(), 0, 0)

    def __len__(self) -> int:
        return len(self.target_P)

    def by_anchor(self, value_P: Tensor) -> Tensor:
        """Sparse matrix (A, U) of a value for each pair."""
        return torch.sparse_csr_tensor(self._begin_A1, self.item_P, value_P, self._shape, check_invariants=False)

    def by_item(self, value_P: Tensor) -> Tensor:
        """Its transpose (U, A)."""
        shape, value_P = self._shape[::-1], value_P[self._by_item_P]
        return torch.sparse_csr_tensor(self._begin_U1, self._anchor_by_item_P, value_P, shape, check_invariants=False)


def _begins(row_P: Tensor, rows: int) -> Tensor:
    return F.pad(torch.bincount(row_P, minlength=rows).cumsum(0), (1, 0))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch says that its sparse tensors are a beta
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        yield


def unsupervised_loss(a_AI: Tensor, m_UI: Tensor, prefixes: Sequence[tuple[int, float]], pairs: Pairs) -> Tensor:
    """Sum over anchors and their neighbours of |cos(x_i, x_j) - cos(z_i, z_j)| (paper equation 10).

    At several prefixes at once, as `rank_loss`; and no vector is copied for every pair that it is in.

    The absolute value is rounded off below KINK (Huber's loss over KINK). A stage starts where the cosines of its whole
    block are kept exactly, and there the sign of the difference, and so the whole gradient, would be rounding noise.

    Args:
        a_AI: anchors of any norm.
        m_UI: memory items of any norm, each once.
        prefixes: dims of each, and the weight of its loss; none twice.
        pairs: which anchor has which neighbours.

    Returns:
        The sum, a scalar; divide by the number of pairs of the global step.
    """
    if not len(pairs):
        # nothing, but a part of the graph, so that every rank takes part in what is collective going back
        return a_AI.sum() * 0
    total: Tensor = _UnsupervisedLoss.apply(a_AI, m_UI, sorted(prefixes), pairs)
    return total


class _UnsupervisedLoss(torch.autograd.Function):
    """As `_RankLoss`, with the products of listed pairs only."""

    @staticmethod
    def forward(ctx: Any, a_AI: Tensor, m_UI: Tensor, prefixes: list[tuple[int, float]], pairs: Pairs) -> Tensor:
        dot_P = torch.zeros_like(pairs.target_P)
        square_A, square_U = a_AI.new_zeros(len(a_AI)), a_AI.new_zeros(len(m_UI))
        total = a_AI.new_zeros(())
        slopes = []
        for part, (_, weight) in zip(_parts(prefixes), prefixes, strict=True):
            a_Ab, m_Ub = a_AI[:, part], m_UI[:, part]
            with _quiet():
                dot_P = torch.sparse.sampled_addmm(pairs.by_anchor(dot_P), a_Ab, m_Ub.T).values()
            square_A, square_U = square_A + a_Ab.square().sum(1), square_U + m_Ub.square().sum(1)
            scale_A, scale_U = (square.clamp_min(LEAST_SQUARE).rsqrt() for square in (square_A, square_U))
            scale_P = scale_A[pairs.anchor_P] * scale_U[pairs.item_P]
            error_P = dot_P * scale_P - pairs.target_P
            total += weight * F.smooth_l1_loss(error_P, torch.zeros_like(error_P), reduction="sum", beta=KINK)
            slope_P = (error_P / KINK).clamp_(-1, 1) * scale_P * weight
            by_norm_P = slope_P * dot_P
            norm_A = torch.zeros_like(scale_A).index_add_(0, pairs.anchor_P, by_norm_P)
            norm_U = torch.zeros_like(scale_U).index_add_(0, pairs.item_P, by_norm_P)
            slopes.append(_Slope(slope_P, -norm_A * scale_A.square(), -norm_U * scale_U.square()))
        ctx.save_for_backward(a_AI, m_UI, *(tensor for slope in slopes for tensor in slope))
        ctx.prefixes, ctx.pairs = prefixes, pairs
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a_AI, m_UI, *saved = ctx.saved_tensors
        grad_AI, grad_UI = torch.zeros_like(a_AI), torch.zeros_like(m_UI)
        for part, slope in _summed(ctx.prefixes, saved):
            a_Ab, m_Ub = a_AI[:, part], m_UI[:, part]
            with _quiet():
                grad_AI[:, part] = ctx.pairs.by_anchor(slope.dot) @ m_Ub
                grad_UI[:, part] = ctx.pairs.by_item(slope.dot) @ a_Ab
            grad_AI[:, part].addcmul_(a_Ab, slope.left[:, None])
            grad_UI[:, part].addcmul_(m_Ub, slope.right[:, None])
        return grad_AI.mul_(grad), grad_UI.mul_(grad), None, None
