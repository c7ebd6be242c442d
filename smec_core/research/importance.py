"""WARE, how much the similarity of pairs depends on each dim (paper section 4.4).

Shapes: M pairs, D dims.
"""

import torch
from torch import Tensor


def ware(a_MD: Tensor, b_MD: Tensor) -> Tensor:
    """Weighted average reconstruction error (D) of each dim, over pairs of vectors.

    The mean over pairs of |before - after| / |after|, the cosine of the pair before and after the dim is removed from
    both. A larger value means a more important dim.

    Args:
        a_MD: one side of each pair, any scale.
        b_MD: the other side.
    """
    product_MD = a_MD * b_MD
    square_a_MD, square_b_MD = a_MD.square(), b_MD.square()
    dot_M1 = product_MD.sum(1, keepdim=True)
    norm_a_M1, norm_b_M1 = square_a_MD.sum(1, keepdim=True), square_b_MD.sum(1, keepdim=True)
    before_M1 = dot_M1 / (norm_a_M1 * norm_b_M1).sqrt()
    rest_MD = (norm_a_M1 - square_a_MD).clamp_min(1e-12) * (norm_b_M1 - square_b_MD).clamp_min(1e-12)
    after_MD = (dot_M1 - product_MD) / rest_MD.sqrt()
    return ((before_M1 - after_MD).abs() / after_MD.abs().clamp_min(1e-12)).mean(0)


def achievement_rate(kept: Tensor, ware_D: Tensor) -> float:
    """Share of the most important dims by WARE that a selection keeps (paper figure 6).

    Args:
        kept: the dims that it keeps.
        ware_D: WARE of every dim.
    """
    best = ware_D.topk(len(kept)).indices
    return torch.isin(kept, best).double().mean().item()
