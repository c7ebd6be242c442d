"""The listwise form of the unsupervised loss: near documents stay near, as a frozen teacher has them.

Where the paper compares single cosines (equation 10), this compares, for each anchor, the softmax of its cosines with
the step's other documents and with its neighbours in the S-XBM memory. The teacher is frozen while a stage is trained:
what the stage of all dims starts from, and from then on what that stage gives.

Shapes: N documents of the step, A anchors, F documents that may be in a list, U distinct memory items, K of them for
each anchor, C = F + K, I dims, D dims of the teacher.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smec_core.training.losses import LEAST_SQUARE
from smec_core.training.memory import Neighbours

HIDDEN = -1e30
"""Logit of what is not in a list."""


class Lists(NamedTuple):
    """What the anchors of this rank are compared with.

    Attributes:
        anchor_A: place of each anchor among the step's documents.
        doc_F: places of the step's documents that may be in a list.
        item_AK: place of each memory item among those that are used.
        hidden_AC: what is not in the anchor's list: itself, a document that is there twice, none at all.
        target_AC: the teacher's softmax.
        anchors: how many the global step has.
    """

    anchor_A: Tensor
    doc_F: Tensor
    item_AK: Tensor
    hidden_AC: Tensor
    target_AC: Tensor
    anchors: int


def used_items(found: Neighbours, row_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (U) of the neighbours that come into lists; place (A, K) of each among them; which (A, K) are in none.

    Args:
        found: neighbours of the anchors.
        row_N: rows of the step's documents, which come in by themselves, or are in a pair and in no list.
    """
    hidden_AK = ~found.live_AK | torch.isin(found.row_AK, row_N)
    used_U = torch.unique(found.row_AK[~hidden_AK])
    if not len(used_U):
        return used_U, found.row_AK.new_zeros(len(found.row_AK), 0), hidden_AK[:, :0]
    return used_U, torch.searchsorted(used_U, found.row_AK).clamp_max(len(used_U) - 1), hidden_AK


def make_lists(
    anchor_A: Tensor,
    doc_F: Tensor,
    item_AK: Tensor,
    hidden_AK: Tensor,
    t_ND: Tensor,
    t_UD: Tensor,
    anchors: int,
    temperature: float,
) -> Lists:
    """Lists with the teacher's view of them.

    Args:
        anchor_A: see `Lists`.
        doc_F: see `Lists`.
        item_AK: see `Lists`.
        hidden_AK: which memory items do not count.
        t_ND: the step's documents as the teacher has them, any norm.
        t_UD: the memory items.
        anchors: see `Lists`.
        temperature: of the softmax.
    """
    hidden_AC = torch.cat([anchor_A[:, None] == doc_F[None, :], hidden_AK], dim=1)
    lists = Lists(anchor_A, doc_F, item_AK, hidden_AC, t_ND, anchors)
    [logit_AC] = _logits(t_ND, t_UD, [(t_ND.shape[1], 1.0)], lists, temperature)
    return lists._replace(target_AC=logit_AC.softmax(1))


def listwise_loss(
    d_NI: Tensor, m_UI: Tensor, prefixes: Sequence[tuple[int, float]], lists: Lists, temperature: float
) -> Tensor:
    """Sum over this rank's anchors, and weighted over the prefixes, of KL(teacher || softmax(cosines / T)).

    Args:
        d_NI: the step's documents, any norm.
        m_UI: memory items, any norm, each once.
        prefixes: dims of each, and the weight of its loss.
        lists: what is compared.
        temperature: T.

    Returns:
        The weighted sum, a scalar; divide by the number of anchors of the global step.
    """
    total = d_NI.sum() * 0
    prefixes = sorted(prefixes)
    entropy = torch.xlogy(lists.target_AC, lists.target_AC).sum()
    for (_, weight), logit_AC in zip(prefixes, _logits(d_NI, m_UI, prefixes, lists, temperature), strict=True):
        total = total + weight * (entropy - (lists.target_AC * logit_AC.log_softmax(1)).sum())
    return total


def _logits(
    d_NI: Tensor, m_UI: Tensor, prefixes: Sequence[tuple[int, float]], lists: Lists, temperature: float
) -> list[Tensor]:
    """Cosines (A, C) over the temperature at each prefix, ascending; products of a prefix are used for the next."""
    a_AI, c_FI, m_AKI = d_NI[lists.anchor_A], d_NI[lists.doc_F], m_UI[lists.item_AK]
    dot_AC, below = a_AI.new_zeros(lists.hidden_AC.shape), 0
    square_A, square_AC = a_AI.new_zeros(len(a_AI)), torch.zeros_like(dot_AC)
    logits = []
    for dim, _ in prefixes:
        a_Ab, c_Fb, m_AKb = a_AI[:, below:dim], c_FI[:, below:dim], m_AKI[:, :, below:dim]
        dot_AC = dot_AC + torch.cat([a_Ab @ c_Fb.T, torch.einsum("ab,akb->ak", a_Ab, m_AKb)], dim=1)
        square_A = square_A + a_Ab.square().sum(1)
        square_F = c_Fb.square().sum(1).expand(len(a_AI), -1)
        square_AC = square_AC + torch.cat([square_F, m_AKb.square().sum(2)], dim=1)
        scale_AC = (square_A[:, None].clamp_min(LEAST_SQUARE) * square_AC.clamp_min(LEAST_SQUARE)).rsqrt()
        logits.append((dot_AC * scale_AC / temperature).masked_fill(lists.hidden_AC, HIDDEN))
        below = dim
    return logits
