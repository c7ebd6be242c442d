"""The two losses of SMEC: each as it is defined, and with gradients written out, which the training uses.

Shapes: B queries, N documents, P pairs, K prefixes, I dims of all of them, b dims between two; A anchors, U distinct
memory items.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

KINK = 1e-2
LEAST_SQUARE = 1e-24


class RankedPairs(NamedTuple):
    """What the ranking loss compares.

    Attributes:
        query_P: row of the query of each positive pair.
        doc_P: row of its document.
        weight_PN: grade of the pair's document less grade of document n for the pair's query, never below 0; what the
            grades are is in `smec_core.data.grades.loss_grades`.
    """

    query_P: Tensor
    doc_P: Tensor
    weight_PN: Tensor


def defined_rank_loss(
    q_BI: Tensor, d_NI: Tensor, prefixes: Sequence[tuple[int, float]], pairs: RankedPairs, temperature: float
) -> Tensor:
    """What `rank_loss` computes, by autograd: the definition (paper equation 9), which takes 1.6 times as long."""
    total = q_BI.sum() * 0
    for dim, weight in prefixes:
        sim_BN = F.normalize(q_BI[:, :dim], dim=1) @ F.normalize(d_NI[:, :dim], dim=1).T / temperature
        margin_PN = sim_BN[pairs.query_P] - sim_BN[pairs.query_P, pairs.doc_P].unsqueeze(1)
        total = total + weight * (pairs.weight_PN * F.softplus(margin_PN)).sum()
    return total


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


class _Slopes(NamedTuple):
    """Gradients of the losses of all prefixes, the shortest first.

    Attributes:
        dot_K: by each dot product.
        left_K: what times a query or an anchor is its gradient through its norm.
        right_K: the same of a document or a memory item.
    """

    dot_K: Tensor
    left_K: Tensor
    right_K: Tensor

    def summed(self) -> "_Slopes":
        """Of the dims between two prefixes: the sum over all prefixes that have them, their own and the longer ones."""
        return _Slopes(*(slope_K.flip(0).cumsum(0).flip(0) if len(slope_K) > 1 else slope_K for slope_K in self))


class _RankLoss(torch.autograd.Function):
    """The slopes are known with the loss; going back, only products are left to do."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BI: Tensor,
        d_NI: Tensor,
        prefixes: list[tuple[int, float]],
        pairs: RankedPairs,
        temperature: float,
    ) -> Tensor:
        query_P, doc_P, weight_PN = pairs
        scale_KB, scale_KN = _scales(q_BI, prefixes), _scales(d_NI, prefixes)
        dot_KBN = q_BI.new_zeros(len(prefixes), len(q_BI), len(d_NI))
        for place, part in enumerate(_parts(prefixes)):
            torch.addmm(dot_KBN[max(place - 1, 0)], q_BI[:, part], d_NI[:, part].T, out=dot_KBN[place])
        scale_KBN = scale_KB[:, :, None] * scale_KN[:, None] / temperature
        sim_KBN = dot_KBN * scale_KBN
        positive_P = query_P * len(d_NI) + doc_P
        margin_KPN = sim_KBN.index_select(1, query_P) - sim_KBN.flatten(1).index_select(1, positive_P)[:, :, None]
        weight_K = torch.tensor([weight for _, weight in prefixes], dtype=q_BI.dtype).to(q_BI.device)
        slope_KPN = margin_KPN.sigmoid().mul_(weight_K[:, None, None] * weight_PN)
        slope_KBN = torch.zeros_like(dot_KBN).index_add_(1, query_P, slope_KPN)
        slope_KBN.flatten(1).index_add_(1, positive_P, slope_KPN.sum(2), alpha=-1)
        slope_KBN *= scale_KBN
        by_norm_KBN = slope_KBN * dot_KBN
        slopes = _Slopes(slope_KBN, -by_norm_KBN.sum(2) * scale_KB.square(), -by_norm_KBN.sum(1) * scale_KN.square())
        ctx.save_for_backward(q_BI, d_NI, *slopes.summed())
        ctx.prefixes = prefixes
        return F.softplus(margin_KPN).mul_(weight_PN).sum((1, 2)) @ weight_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q_BI, d_NI, slope_KBN, slope_KB, slope_KN = ctx.saved_tensors
        # the champion's documents, which compatible queries are to find, are not trained
        grad_BI, grad_NI = torch.zeros_like(q_BI), torch.zeros_like(d_NI) if ctx.needs_input_grad[1] else None
        slope_KBN, slope_KB, slope_KN = (slope_K * grad for slope_K in (slope_KBN, slope_KB, slope_KN))
        for place, part in enumerate(_parts(ctx.prefixes)):
            q_Bb, d_Nb = q_BI[:, part], d_NI[:, part]
            torch.addmm(q_Bb * slope_KB[place, :, None], slope_KBN[place], d_Nb, out=grad_BI[:, part])
            if grad_NI is not None:
                torch.addmm(d_Nb * slope_KN[place, :, None], slope_KBN[place].T, q_Bb, out=grad_NI[:, part])
        return grad_BI, grad_NI, None, None, None


def _parts(prefixes: list[tuple[int, float]]) -> list[slice]:
    """For each prefix the dims that it has and the next shorter one has not."""
    widths = [width for width, _ in prefixes]
    return [slice(*part) for part in pairwise((0, *widths))]


def _scales(x_NI: Tensor, prefixes: list[tuple[int, float]]) -> Tensor:
    """What brings each row's prefixes to norm 1 (K, N)."""
    square_NI = x_NI.square()
    square_KN = torch.stack([square_NI[:, part].sum(1) for part in _parts(prefixes)]).cumsum(0)
    return square_KN.clamp_min_(LEAST_SQUARE).rsqrt_()


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


def defined_unsupervised_loss(
    a_AI: Tensor, m_UI: Tensor, prefixes: Sequence[tuple[int, float]], pairs: Pairs
) -> Tensor:
    """What `unsupervised_loss` computes, by autograd: the definition (paper equation 10)."""
    total = a_AI.sum() * 0
    for dim, weight in prefixes:
        a_Pd, m_Pd = (F.normalize(x[:, :dim], dim=1) for x in (a_AI[pairs.anchor_P], m_UI[pairs.item_P]))
        cosine_P = (a_Pd * m_Pd).sum(1)
        total = total + weight * F.smooth_l1_loss(cosine_P, pairs.target_P, reduction="sum", beta=KINK)
    return total


class _UnsupervisedLoss(torch.autograd.Function):
    """As `_RankLoss`, with the products of listed pairs only."""

    @staticmethod
    def forward(ctx: Any, a_AI: Tensor, m_UI: Tensor, prefixes: list[tuple[int, float]], pairs: Pairs) -> Tensor:
        scale_KA, scale_KU = _scales(a_AI, prefixes), _scales(m_UI, prefixes)
        dots = [torch.zeros_like(pairs.target_P)]
        with _quiet():
            for part in _parts(prefixes):
                dots.append(
                    torch.sparse.sampled_addmm(pairs.by_anchor(dots[-1]), a_AI[:, part], m_UI[:, part].T).values()
                )
        dot_KP = torch.stack(dots[1:])
        scale_KP = scale_KA.index_select(1, pairs.anchor_P) * scale_KU.index_select(1, pairs.item_P)
        error_KP = dot_KP * scale_KP - pairs.target_P
        weight_K = torch.tensor([weight for _, weight in prefixes], dtype=a_AI.dtype).to(a_AI.device)
        slope_KP = (error_KP / KINK).clamp_(-1, 1).mul_(scale_KP).mul_(weight_K[:, None])
        by_norm_KP = slope_KP * dot_KP
        norm_KA = torch.zeros_like(scale_KA).index_add_(1, pairs.anchor_P, by_norm_KP, alpha=-1)
        norm_KU = torch.zeros_like(scale_KU).index_add_(1, pairs.item_P, by_norm_KP, alpha=-1)
        slopes = _Slopes(slope_KP, norm_KA * scale_KA.square(), norm_KU * scale_KU.square())
        ctx.save_for_backward(a_AI, m_UI, *slopes.summed())
        ctx.prefixes, ctx.pairs = prefixes, pairs
        none_KP = torch.zeros_like(error_KP)
        return F.smooth_l1_loss(error_KP, none_KP, reduction="none", beta=KINK).sum(1) @ weight_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        a_AI, m_UI, slope_KP, slope_KA, slope_KU = ctx.saved_tensors
        grad_AI, grad_UI = torch.zeros_like(a_AI), torch.zeros_like(m_UI)
        for place, part in enumerate(_parts(ctx.prefixes)):
            a_Ab, m_Ub = a_AI[:, part], m_UI[:, part]
            with _quiet():
                grad_AI[:, part] = ctx.pairs.by_anchor(slope_KP[place]) @ m_Ub
                grad_UI[:, part] = ctx.pairs.by_item(slope_KP[place]) @ a_Ab
            grad_AI[:, part].addcmul_(a_Ab, slope_KA[place, :, None])
            grad_UI[:, part].addcmul_(m_Ub, slope_KU[place, :, None])
        return grad_AI.mul_(grad), grad_UI.mul_(grad), None, None
