"""Warm starts: the trained stages of a model in service (the champion), from which its challenger goes on.

Shapes: N documents, D input dims, I dims that a stage takes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage, apply_chain, fold, nearest_rotation
from smec_core.model.model import Model

LEAST_SHARE = 0.25
"""Of the most epochs of a stage, what it takes in a warm start at least, however few the champion kept."""


@dataclass(frozen=True)
class WarmStart:
    """What a challenger takes over from the champion.

    Attributes:
        input_dim: D.
        dims: its usable prefixes, D first, descending.
        stages: its chain; each stage of the challenger starts at the one in its place, with the dims in their places.
        epochs: that each stage of the champion kept.
    """

    input_dim: int
    dims: tuple[int, ...]
    stages: list[FrozenStage]
    epochs: list[int]

    @classmethod
    def of(cls, model: Model, name: str) -> "WarmStart":
        """Takes a champion.

        Args:
            model: the champion.
            name: its folder, for messages.

        Raises:
            InputError: its metrics.json does not tell the epochs of its stages, or a stage has nothing to go on with.
        """
        if not model.stages:
            raise InputError(f"warm_start: {name} has no stages to start from; train without warm_start")
        if any(stage.projection == "selection" for stage in model.stages):
            raise InputError(
                f"warm_start: {name} only selects dims (projection=selection), and a warm start keeps what is "
                "selected; train without warm_start"
            )
        told = model.metrics.get("stages", [])
        shapes = [(stage.d_in, stage.dim, stage.projection) for stage in model.stages]
        if [(one.get("d_in"), one.get("dim"), one.get("projection")) for one in told] != shapes:
            why = "the model that it extends has its own" if model.base is not None else "it is not of this model"
            raise InputError(
                f"warm_start: {name}/metrics.json does not tell how long each of the {len(shapes)} stages was "
                f"trained ({why}); train all its dims at once, without warm_start and --from"
            )
        stages = [_exact(stage) if stage.projection == "rotation" else stage for stage in model.stages]
        return cls(model.input_dim, model.dims, stages, [int(one["epochs"]) for one in told])

    def project(self, number: int, device: torch.device) -> "Projector":
        """What the champion makes of documents up to and with its stage `number`."""
        return Projector([stage.to(device) for stage in self.stages[: number + 1]], self.input_dim)


class Projector:
    """The block (N, I) that a stage of the champion gives, straight from the frozen embeddings.

    Computed for the documents of a step only: it takes no memory that grows with the corpus.
    """

    def __init__(self, stages: list[FrozenStage], input_dim: int) -> None:
        self._stages, self._width = stages, stages[-1].d_in
        matrix_DD = fold(stages, input_dim)
        self._matrix_ID = None if matrix_DD is None else matrix_DD[: self._width]

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Takes unit vectors (N, D)."""
        if self._matrix_ID is not None:
            return x_ND @ self._matrix_ID.T
        return apply_chain(self._stages, F.normalize(x_ND, dim=1))[:, : self._width]


def warm_epochs(kept: int, most: int) -> int:
    """Epochs of a stage whose champion kept `kept`, of at most `most`."""
    # what gained nothing on the champion's data, which may have been far less, would else never learn again
    return min(max(kept, math.ceil(LEAST_SHARE * most)), most)


def _exact(stage: FrozenStage) -> FrozenStage:
    """The stage with the rounding of its training taken out, which would add up over many warm starts."""
    return FrozenStage(
        stage.dim, stage.projection, {**stage.tensors, "weight": nearest_rotation(stage.tensors["weight"])}
    )
