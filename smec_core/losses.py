"""The two losses of SMEC on unit vectors of one prefix.

Shapes: B queries, N documents, P positive pairs, A anchors, K neighbours, U distinct memory items, d dims.
"""

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


def unsupervised_loss(a_Ad: Tensor, m_Ud: Tensor, where_AK: Tensor, target_AK: Tensor, live_AK: Tensor) -> Tensor:
    """Sum over anchors and their neighbours of |cos(x_i, x_j) - cos(z_i, z_j)| (paper equation 10).

    The absolute value is rounded off below KINK (Huber's loss over KINK). A stage starts where the cosines of its whole
    block are kept exactly, and there the sign of the difference, and so the whole gradient, would be rounding noise.

    Args:
        a_Ad: unit anchors of the prefix.
        m_Ud: unit memory items of the prefix, each once.
        where_AK: row in `m_Ud` of each neighbour.
        target_AK: cosine of the frozen embeddings.
        live_AK: 1 where the neighbour exists, 0 where the memory held fewer than K.

    Returns:
        The sum, a scalar; divide by the number of live pairs of the global step.
    """
    neighbours_AKd = m_Ud.index_select(0, where_AK.flatten()).view(*where_AK.shape, -1)
    sim_AK = torch.bmm(neighbours_AKd, a_Ad.unsqueeze(2)).squeeze(2)
    return (F.smooth_l1_loss(sim_AK, target_AK, reduction="none", beta=KINK) * live_AK).sum()
