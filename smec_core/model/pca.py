"""Uncentred PCA of unit vectors: where a stage starts, and the baseline to beat.

Shapes: N rows, Q of them, D dims, S dims of a strip, H dims up to its end.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smec_core.distributed.group import Group, rows_of_rank
from smec_core.distributed.resident import BLOCK_ROWS, Rows

STRIP_DIMS = 192


class Gram:
    """Sum of x x^T over unit rows, taken block by block; sums of parts of a data set add up to the whole."""

    def __init__(self, dim: int) -> None:
        self.sum_DD = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, x_ND: Tensor) -> None:
        """Adds rows of any scale."""
        unit_ND = F.normalize(x_ND, dim=1)
        for low in range(0, unit_ND.shape[1], STRIP_DIMS):
            high = low + STRIP_DIMS
            # the sum is symmetric: what is left of the diagonal says what is above it
            strip_SH = (unit_ND[:, low:high].T @ unit_ND[:, :high]).double()
            self.sum_DD[low:high, :high] += strip_SH
            self.sum_DD[:low, low:high] += strip_SH[:, :low].T


def spectrum(moment_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D), the largest first, none below 0, and eigenvectors (D, D) as rows."""
    value_D, direction_DD = torch.linalg.eigh(moment_DD)
    return value_D.flip(0).clamp_min(0), signed(direction_DD.flip(1).T)


def signed(direction_DD: Tensor) -> Tensor:
    """Directions as rows whose largest entry is positive: a sign is arbitrary, and every machine should start alike."""
    sign_D1 = direction_DD.gather(1, direction_DD.abs().argmax(1, keepdim=True)).sign()
    return (direction_DD * sign_D1).contiguous()


def mean_of_squares(rows: Rows, group: Group, some_Q: np.ndarray | None = None) -> Tensor:
    """Mean of x x^T (D, D), float64, over unit rows, each rank reading its share of them. Collective.

    Args:
        rows: the rows, of any scale.
        group: the ranks.
        some_Q: numbers (Q) of the rows that count; None for the sample.
    """
    gram = Gram(rows.dim)
    for block_ND in rows.own_blocks() if some_Q is None else _own_blocks_of(rows, group, some_Q):
        gram.add(block_ND)
    return group.sum_(gram.sum_DD) / (rows.drawn if some_Q is None else len(some_Q))


def _own_blocks_of(rows: Rows, group: Group, some_Q: np.ndarray) -> Iterator[Tensor]:
    for low in range(0, len(some_Q), BLOCK_ROWS):
        block_Q = some_Q[low : low + BLOCK_ROWS]
        own_Q = block_Q[slice(*rows_of_rank(len(block_Q), group.rank, group.size))]
        for part_Q in torch.from_numpy(own_Q).split(BLOCK_ROWS):
            yield rows.take(part_Q)


def principal_rotation(rows: Rows, group: Group) -> Tensor:
    """Principal directions (D, D) of all rows, each rank reading its share of them. Collective."""
    return group.from_first_(block_rotation(mean_of_squares(rows, group)))


def block_rotation(moment_DD: Tensor, cuts: Sequence[int] = ()) -> Tensor:
    """Principal directions (D, D) of a second moment.

    Args:
        moment_DD: the moment, of any scale.
        cuts: ascending; dims between two of them are rotated among themselves only.
    """
    parts = [slice(*block) for block in pairwise((0, *cuts, len(moment_DD)))]
    return torch.block_diag(*(spectrum(moment_DD[part, part])[1].float() for part in parts))
