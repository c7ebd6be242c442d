"""The chain of stages: trainable while a stage is learnt, frozen afterwards, folded into one matrix where linear.

Shapes: N rows, I dims that a stage takes (`d_in`), H hidden units, D input dims of the chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smec_core.config import Projection
from smec_core.model.ads import keep_places
from smec_core.model.cayley import cayley_rows

MLP_TENSORS = ("up", "up_bias", "down", "down_bias")


PRESERVING: tuple[Projection, ...] = ("rotation", "selection")
"""Projections that change no cosine of the whole block, and so of no earlier prefix."""


@dataclass(frozen=True)
class FrozenStage:
    """A trained stage. Its outputs come in order of ADS importance: the first `dim` are kept, the rest is the tail.

    Attributes:
        dim: dims that go on to the next stage.
        projection: what kind of projection it is.
        tensors: `weight` (I, I) and `logits` (I), both in stored order; for residual_mlp also `up` (H, I),
            `up_bias` (H), `down` (I, H) and `down_bias` (I).
    """

    dim: int
    projection: Projection
    tensors: dict[str, Tensor]

    @property
    def d_in(self) -> int:
        """Dims that the stage takes."""
        return self.tensors["weight"].shape[0]

    @property
    def is_linear(self) -> bool:
        """Whether the stage is one matrix."""
        return self.projection != "residual_mlp"

    def apply(self, y_NI: Tensor) -> Tensor:
        """Outputs (N, I) of the stage for its inputs (N, I)."""
        z_NI = y_NI @ self.tensors["weight"].T
        if not self.is_linear:
            hidden_NH = torch.relu(y_NI @ self.tensors["up"].T + self.tensors["up_bias"])
            z_NI = z_NI + hidden_NH @ self.tensors["down"].T + self.tensors["down_bias"]
        return z_NI

    def keep(self, y_NI: Tensor) -> Tensor:
        """The outputs (N, dim) that go on to the next stage."""
        rows = {"weight", "down", "down_bias"}
        cut = {name: t[: self.dim] if name in rows else t for name, t in self.tensors.items()}
        return FrozenStage(self.dim, self.projection, cut).apply(y_NI)

    def to(self, device: torch.device | str) -> "FrozenStage":
        """A copy with its tensors on a device."""
        return FrozenStage(self.dim, self.projection, {name: t.to(device) for name, t in self.tensors.items()})


def apply_chain(stages: Sequence[FrozenStage], x_ND: Tensor) -> Tensor:
    """The nested vector (N, D): every stage on the block that the one before it kept, each tail frozen behind it."""
    kept = x_ND
    tails: list[Tensor] = []
    for stage in stages:
        z = stage.apply(kept)
        kept, tail = z[:, : stage.dim], z[:, stage.dim :]
        tails.insert(0, tail)
    return torch.cat([kept, *tails], dim=1)


def fold(stages: Sequence[FrozenStage], input_dim: int) -> Tensor | None:
    """The one matrix A (D, D) with z = A x that a chain of linear stages equals; None where a stage does not fold."""
    if not all(stage.is_linear for stage in stages):
        return None
    device = stages[0].tensors["weight"].device if stages else None
    matrix_DD = torch.eye(input_dim, dtype=torch.float64, device=device)
    for stage in stages:
        weight = stage.tensors["weight"].double()
        matrix_DD = torch.cat([weight @ matrix_DD[: stage.d_in], matrix_DD[stage.d_in :]])
    return matrix_DD.float()


def nearest_rotation(weight_II: Tensor) -> Tensor:
    """The rotation nearest to a weight (I, I) that is one but for rounding."""
    weight_II = weight_II.double()
    eye_II = torch.eye(len(weight_II), dtype=weight_II.dtype, device=weight_II.device)
    # Newton-Schulz steps, each of which squares the error
    for _ in range(2):
        weight_II = weight_II @ (3 * eye_II - weight_II.T @ weight_II) / 2
    return weight_II.float()


class Stage(nn.Module):
    """A trainable stage: a projection (paper section 3.1, the sub-FC layer) and the logits of ADS."""

    def __init__(self, projection: Projection, dim: int, start_II: Tensor, logits_I: Tensor, hidden_dim: int) -> None:
        super().__init__()
        d_in = start_II.shape[0]
        self.projection: Projection = projection
        self.dim = dim
        self.d_in = d_in
        self.logits = nn.Parameter(logits_I.clone())
        self.start: Tensor
        if projection == "rotation":
            self.register_buffer("start", start_II.clone())
            self.skew = nn.Parameter(torch.zeros(d_in, d_in))
        elif projection == "selection":
            self.register_buffer("matrix", start_II.clone())
        else:
            self.matrix = nn.Parameter(start_II.clone())
        if projection == "residual_mlp":
            self.up = nn.Linear(d_in, hidden_dim)
            self.down = nn.Linear(hidden_dim, d_in)
            # a zero last layer: the stage starts as its linear start, like every other kind
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    @classmethod
    def resumed(cls, frozen: FrozenStage) -> "Stage":
        """A trainable stage that starts where a trained one stands, its outputs in stored order."""
        tensors = frozen.tensors
        hidden_dim = len(tensors["up"]) if frozen.projection == "residual_mlp" else 1
        stage = cls(frozen.projection, frozen.dim, tensors["weight"], tensors["logits"], hidden_dim)
        if frozen.projection == "residual_mlp":
            layers = {"up.weight": "up", "up.bias": "up_bias", "down.weight": "down", "down.bias": "down_bias"}
            stage.load_state_dict({name: tensors[stored] for name, stored in layers.items()}, strict=False)
        return stage

    @property
    def preserves_cosines(self) -> bool:
        """Whether the cosines of the whole block, and so of every earlier prefix, cannot change."""
        return self.projection in PRESERVING

    def projection_parameters(self) -> list[nn.Parameter]:
        """All parameters but the ADS logits."""
        return [parameter for name, parameter in self.named_parameters() if name != "logits"]

    def weight(self) -> Tensor:
        """The linear part (I, I); for a rotation, the Cayley map of the skew parameter times the start."""
        if self.projection != "rotation":
            return self.matrix
        return cayley_rows(self.skew, torch.arange(self.d_in, device=self.skew.device)) @ self.start

    def project(self, y_NI: Tensor, order: Tensor) -> Tensor:
        """Outputs of the stage at the dims that `order` names, in that order."""
        if self.projection == "rotation":
            rows_dI = cayley_rows(self.skew, order)
            # whichever takes fewer products: the start is frozen, so that applying it to the rows has no way back
            is_short = len(y_NI) < 2 * len(order)
            return (y_NI @ self.start.T) @ rows_dI.T if is_short else y_NI @ (rows_dI @ self.start).T
        z = y_NI @ self.weight().index_select(0, order).T
        if self.projection == "residual_mlp":
            z = z + self.down(torch.relu(self.up(y_NI))).index_select(1, order)
        return z

    @torch.no_grad()
    def freeze(self, in_place: bool = False) -> FrozenStage:
        """The stage as it stands.

        Args:
            in_place: kept and dropped outputs each stay in their order, in which a stage that looks ahead trains
                them; else all come in order of importance.
        """
        order = self.logits.argsort(descending=True, stable=True)
        if in_place:
            order = keep_places(order, self.dim)
        tensors = {"weight": self.weight()[order], "logits": self.logits[order]}
        if self.projection == "residual_mlp":
            tensors |= {
                "up": self.up.weight,
                "up_bias": self.up.bias,
                "down": self.down.weight[order],
                "down_bias": self.down.bias[order],
            }
        return FrozenStage(self.dim, self.projection, {name: t.detach().clone() for name, t in tensors.items()})
