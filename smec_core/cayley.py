"""Rotations by the Cayley map, at the speed of matrix products.

Shapes: I dims, d rows that are asked for.
"""

from typing import Any

import torch
from torch import Tensor

BASE_DIM = 64


def cayley_rows(skew_II: Tensor, row_d: Tensor) -> Tensor:
    """The named rows (d, I) of the rotation (I - H)^-1 (I + H), H the skew-symmetric matrix of a lower triangle.

    Args:
        skew_II: twice the entries of H below its diagonal; what is on and above the diagonal does nothing.
        row_d: the rows.
    """
    rows_dI: Tensor = _CayleyRows.apply(skew_II, row_d)
    return rows_dI


class _CayleyRows(torch.autograd.Function):
    """(I - H)^-1 (I + H) = 2 (I - H)^-1 - I, so that the inverse is all that is computed, going back, too."""

    @staticmethod
    def forward(ctx: Any, skew_II: Tensor, row_d: Tensor) -> Tensor:
        lower_II = skew_II.tril(-1)
        half_II = (lower_II.T - lower_II) / 2
        half_II.diagonal().fill_(1)
        inverse_II = inverse_without_pivots(half_II)
        ctx.save_for_backward(inverse_II, row_d)
        rows_dI = 2 * inverse_II.index_select(0, row_d)
        rows_dI[torch.arange(len(row_d), device=row_d.device), row_d] -= 1
        return rows_dI

    @staticmethod
    def backward(ctx: Any, grad_dI: Tensor) -> Any:
        inverse_II, row_d = ctx.saved_tensors
        grad_II = inverse_II.index_select(0, row_d).T @ (grad_dI @ inverse_II.T)
        # each entry of the triangle stands twice in H, halved, and the inverse doubled
        return (grad_II - grad_II.T).tril(-1), None


def inverse_without_pivots(matrix_II: Tensor) -> Tensor:
    """The inverse of a matrix whose symmetric part is positive definite, by blocks.

    Such a matrix needs no pivots, and its Schur complements are of the same kind, so that nearly all of the work is
    products of large blocks: LAPACK's inverse takes more than twice the time at 768 dims.
    """
    dim = len(matrix_II)
    if dim <= BASE_DIM:
        return torch.linalg.inv(matrix_II)
    half = dim // 2
    first = inverse_without_pivots(matrix_II[:half, :half])
    above, below = first @ matrix_II[:half, half:], matrix_II[half:, :half] @ first
    last = inverse_without_pivots(torch.addmm(matrix_II[half:, half:], matrix_II[half:, :half], above, alpha=-1))
    below = last @ below
    inverse_II = torch.empty_like(matrix_II)
    inverse_II[half:, half:], inverse_II[half:, :half] = last, -below
    torch.mm(above, last, out=inverse_II[:half, half:]).neg_()
    torch.addmm(first, above, below, out=inverse_II[:half, :half])
    return inverse_II
