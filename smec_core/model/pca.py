"""Uncentred PCA of unit vectors: where a stage starts, and the baseline to beat.

Shapes: N rows, D dims, S dims of a strip, H dims up to its end.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from smec_core.distributed.group import Group
from smec_core.distributed.resident import Rows

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

    def rotation(self, part: slice = slice(None)) -> Tensor:
        """Principal directions of some dims, all by default, as rows, strongest first."""
        directions_DD = torch.linalg.eigh(self.sum_DD[part, part])[1].flip(1).T
        # an eigenvector's sign is arbitrary: fix it, so that every machine and every rank starts alike
        signs_D = directions_DD.gather(1, directions_DD.abs().argmax(1, keepdim=True)).sign()
        return (directions_DD * signs_D).float().contiguous()


def principal_rotation(rows: Rows, group: Group, cuts: Sequence[int] = ()) -> Tensor:
    """Principal directions (D, D) of all rows, each rank reading its share of them. Collective.

    Args:
        rows: the rows.
        group: the ranks.
        cuts: ascending; dims between two of them are rotated among themselves only.
    """
    gram = Gram(rows.dim)
    for block_ND in rows.own_blocks():
        gram.add(block_ND)
    group.sum_(gram.sum_DD)
    blocks = [gram.rotation(slice(*block)) for block in pairwise((0, *cuts, rows.dim))]
    return group.from_first_(torch.block_diag(*blocks))
