"""Dims of the stages, and how the learning rate runs within one."""

import math
from collections.abc import Sequence

import torch
from torch.optim.lr_scheduler import OneCycleLR

from smec_core.errors import InputError


def chain_dims(input_dim: int, dims: Sequence[int]) -> list[int]:
    """Target dim of every stage: the input dim first, then by halves down to each of the user's dims.

    Example:
        >>> chain_dims(768, [100])
        [768, 384, 192, 100]

    Raises:
        InputError: a dim above the input dim.
    """
    if max(dims) > input_dim:
        raise InputError(f"dims: {max(dims)} is more than the {input_dim} dims of the data")
    chain = [input_dim]
    for dim in sorted(set(dims) - {input_dim}, reverse=True):
        while chain[-1] // 2 > dim:
            chain.append(chain[-1] // 2)
        chain.append(dim)
    return chain


def prefix_dims(input_dim: int, dims: Sequence[int]) -> tuple[int, ...]:
    """The usable prefixes: the input dim and the user's dims, descending."""
    return tuple(sorted({input_dim, *dims}, reverse=True))


def steps_per_epoch(items: int, batch_size: int) -> int:
    """Steps that see every item once."""
    return math.ceil(items / batch_size)


def one_cycle(optimizer: torch.optim.Optimizer, epochs: int, epoch_steps: int) -> OneCycleLR:
    """One-cycle schedule over the most steps a stage may take, a tenth of them warm-up; peak rates as in the groups."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    # one step more than is taken: the scheduler steps once after the last update
    total = epochs * epoch_steps + 1
    # the warm-up takes at least one step, without which the scheduler divides by zero
    return OneCycleLR(optimizer, peaks, total_steps=total, pct_start=max(0.1, 2 / total))
