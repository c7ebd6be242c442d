"""Models that go on where another one ends: what fits on a chain, and what it keeps of its base.

Shapes: I dims that a stage takes.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage, nearest_rotation

ROTATION_ERROR = 1e-2
"""Frobenius norm of W W' - I up to which a weight is a rotation, less the rounding of its training."""


class Base(NamedTuple):
    """The model that another one extends.

    Attributes:
        fingerprint: sha256 (hex) of its adapter.safetensors.
        dims: its usable prefixes, D first, descending.
        stages: how many stages it has: the first ones of the model that extends it.
    """

    fingerprint: str
    dims: tuple[int, ...]
    stages: int


def check_chain(stages: Sequence[FrozenStage], width: int, first: int = 0) -> None:
    """Refuses stages that do not fit together.

    Args:
        stages: the chain.
        width: dims that its first stage is to take.
        first: that stage's number, for messages.

    Raises:
        ValueError: a stage takes another number of dims than it is given.
    """
    for number, stage in enumerate(stages, first):
        if stage.d_in != width:
            raise ValueError(f"stage {number} takes {stage.d_in} dims, the one before gives {width}")
        width = stage.dim


def kept_dim(stages: Sequence[FrozenStage], input_dim: int) -> int:
    """Dims of the block that the last stage keeps, on which a further stage would work."""
    return stages[-1].dim if stages else input_dim


def read_base(record: Any, stages: Sequence[FrozenStage], dims: Sequence[int]) -> Base | None:
    """The `base` of a config.json.

    Raises:
        ValueError: it is no such record, or not of this model.
    """
    if record is None:
        return None
    if not isinstance(record, dict) or record.keys() != set(Base._fields):
        raise ValueError(f"base must hold {', '.join(Base._fields)}")
    base = Base(record["fingerprint"], tuple(record["dims"]), record["stages"])
    if not isinstance(base.fingerprint, str) or not re.fullmatch("[0-9a-f]{64}", base.fingerprint):
        raise ValueError(f"base: fingerprint {base.fingerprint!r} is no sha256")
    if type(base.stages) is not int or not 0 <= base.stages < len(stages):
        raise ValueError(f"base: has {base.stages} stages, of a model with {len(stages)}")
    block = stages[base.stages].d_in
    if not base.dims or not set(base.dims) <= {dim for dim in dims if dim >= block}:
        raise ValueError(f"base: its dims {base.dims} are not among those of {dims} that its stages give")
    for number, stage in enumerate(stages[base.stages :], base.stages):
        if stage.projection != "rotation":
            raise ValueError(f"stage {number} extends the base and must be a rotation, but is {stage.projection!r}")
    return base


def exact_rotation(stage: FrozenStage, number: int) -> FrozenStage:
    """A stage whose weight is the rotation that is nearest to it; `number` is its place in the chain.

    Raises:
        InputError: it is no rotation.
    """
    weight_II = stage.tensors["weight"].double()
    eye_II = torch.eye(stage.d_in, dtype=weight_II.dtype, device=weight_II.device)
    if stage.projection != "rotation" or torch.linalg.norm(weight_II @ weight_II.T - eye_II) > ROTATION_ERROR:
        raise InputError(
            f"the model cannot be extended: stage {number} ({stage.projection}) is no rotation and would change the "
            "results of the dims before it"
        )
    return FrozenStage(stage.dim, stage.projection, {**stage.tensors, "weight": nearest_rotation(weight_II)})
