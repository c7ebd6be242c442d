"""Which stages there are, and how the learning rate runs within one."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.optim.lr_scheduler import OneCycleLR

from smec_core.config import Projection, TrainConfig
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage


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


def stage_shapes(input_dim: int, config: TrainConfig, labelled: bool, base: Sequence[FrozenStage]) -> list[list[int]]:
    """Dims that each stage takes and keeps.

    Raises:
        InputError: a dim above the data's dims, or one that the base cannot give any more.
    """
    if base:
        if config.schedule == "parallel":
            raise InputError("schedule: dims are added to a base model by stages; leave it sequential")
        smallest = base[-1].dim
        offered = {input_dim, *(stage.dim for stage in base)}
        lost = [dim for dim in config.dims if dim >= smallest and dim not in offered]
        if lost:
            raise InputError(
                f"dims: the base model has no prefix of {lost[0]} dims, and only dims below its smallest, {smallest}, "
                "can be added"
            )
        added = [dim for dim in config.dims if dim < smallest]
        if not added:
            raise InputError(f"dims: none is below {smallest}, the smallest block of the base model; add a smaller one")
        if config.projection not in ("auto", "rotation"):
            raise InputError(
                f"projection: {config.projection} would change the base model's dims; only rotations are added to it"
            )
        dims = chain_dims(smallest, added)
        return [list(shape) for shape in pairwise(dims)]
    if not labelled and not config.unsupervised_weight(labelled):
        raise InputError(
            "alpha: without judgements the unsupervised loss is all there is to learn from; give it a weight"
        )
    dims = chain_dims(input_dim, config.dims)
    widths = [input_dim, dims[-1]] if config.schedule == "parallel" else [input_dim, *dims]
    shapes = [list(shape) for shape in pairwise(widths)]
    if config.projection in ("rotation", "selection") or not labelled:
        # from D to D these change no cosine, and without judgements the original cosines are the target
        shapes = [shape for shape in shapes if shape[0] != shape[1]]
    return shapes


def stage_kinds(d_in: int, dim: int, config: TrainConfig, extends: bool) -> list[Projection]:
    """Projections that a stage tries; `extends` where it adds dims to a base model."""
    if extends:
        return ["rotation"]
    if config.projection == "auto":
        return ["linear"] if d_in == dim else ["rotation", "linear"]
    return [config.projection]


def ahead_dims(shapes: Sequence[Sequence[int]], number: int, config: TrainConfig, labelled: bool) -> tuple[int, ...]:
    """Smaller dims that stage `number` trains, too, descending."""
    d_in, dim = shapes[number]
    # selected as they are, dims have no order to look ahead in
    looks_ahead = config.projection != "selection" and config.lookahead_weight(labelled) > 0
    return tuple(kept for _, kept in shapes[number + 1 :]) if looks_ahead and d_in > dim else ()


def stages_in_one(input_dim: int, config: TrainConfig) -> int:
    """Stages of the chain that one stage stands for."""
    return len(chain_dims(input_dim, config.dims)) if config.schedule == "parallel" else 1


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
