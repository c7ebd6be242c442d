"""Adaptive dimension selection (paper section 3.2): a learned top-d of a stage's dims, by Gumbel-Softmax.

Shapes: I dims to choose from, d dims kept.
"""

import torch
from torch import Tensor


def initial_logits(d_in: int, ordered: bool) -> Tensor:
    """Logits (I) before training.

    Args:
        d_in: dims to choose from.
        ordered: whether the first dims are to be kept at first, since they are the strongest (a PCA start) or trained
            already (looked ahead to); else all dims start equal.
    """
    return torch.linspace(2, -2, d_in) if ordered else torch.zeros(d_in)


def gumbel(shape: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise (I), drawn on the CPU so that every rank and device sees the same."""
    uniform = torch.rand(shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def sample_selection(logits_I: Tensor, dim: int, tau: float, noise_I: Tensor) -> tuple[Tensor, Tensor]:
    """A noisy top-d selection with a straight-through gradient (paper section 3.2).

    A dropped dim meets only zeros in every product of the loss, so its own gate has no gradient and is not returned;
    its logit moves through the softmax that all dims share.

    Returns:
        order (I): the kept dims first, strongest first, then the dropped ones.
        gate (d): 1 in the forward pass; in the backward pass d * softmax((w + noise) / tau) of the kept dims.
    """
    soft_I = torch.softmax((logits_I + noise_I) / tau, dim=-1)
    # by the logits, not by their softmax, which underflows to ties where tau is small
    order = (logits_I + noise_I).detach().argsort(descending=True, stable=True)
    soft_d = soft_I[order[:dim]]
    return order, 1 + dim * (soft_d - soft_d.detach())


def keep_places(order: Tensor, dim: int) -> Tensor:
    """Sorts the kept dims, and then the dropped ones, into their order before the selection."""
    return torch.cat([order[:dim].sort().values, order[dim:].sort().values])
