"""Rotations by the Cayley map, at the speed of matrix products.

Shapes: I dims, d rows that are asked for.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BASE_DIM = 64


def cayley_rows(skew_II: Tensor, row_d: Tensor) -> Tensor:
    """The named rows (d, I) of the rotation (I - H)^-1 (I + H), H half of a skew-symmetric matrix.

    The gradient is that by the entries below the diagonal, and its negative above it, so that what starts
    skew-symmetric and is trained entry by entry stays so.

    Args:
        skew_II: twice H.
        row_d: the rows.
    """
    rows_dI: Tensor = _CayleyRows.apply(skew_II, row_d)
    return rows_dI


class _CayleyRows(torch.autograd.Function):
    """(I - H)^-1 (I + H) = 2 (I - H)^-1 - I, so that the inverse is all that is computed, going back, too."""

    @staticmethod
    def forward(ctx: Any, skew_II: Tensor, row_d: Tensor) -> Tensor:
        matrix_II = skew_II * -0.5
        matrix_II.diagonal().fill_(1)
        inverse_II = inverse_without_pivots(matrix_II)
        inverse_dI = inverse_II.index_select(0, row_d)
        ctx.save_for_backward(inverse_II, inverse_dI)
        rows_dI = 2 * inverse_dI
        rows_dI[torch.arange(len(row_d), device=row_d.device), row_d] -= 1
        return rows_dI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_dI: Tensor) -> Any:
        inverse_II, inverse_dI = ctx.saved_tensors
        grad_II = inverse_dI.T @ (grad_dI @ inverse_II.T)
        # the inverse stands doubled in the rows; of H each entry stands twice, halved
        return grad_II - grad_II.T, None


def inverse_without_pivots(matrix_II: Tensor) -> Tensor:
    """The inverse of a matrix whose symmetric part is positive definite, by blocks.

    Such a matrix needs no pivots, and its Schur complements are of the same kind, so that nearly all of the work is
    products of large blocks: LAPACK's inverse takes more than twice the time at 768 dims.
    """
    inverse_II = torch.empty_like(matrix_II)
    _invert_into(inverse_II, matrix_II)
    return inverse_II


def _invert_into(inverse_II: Tensor, matrix_II: Tensor) -> None:
    dim = len(matrix_II)
    if dim <= BASE_DIM:
        inverse_II.copy_(torch.linalg.inv_ex(matrix_II).inverse)
        return
    half = dim // 2
    (first, above), (below, last) = (
        rows.split([half, dim - half], dim=1) for rows in inverse_II.split([half, dim - half])
    )
    _invert_into(first, matrix_II[:half, :half])
    first_above = first @ matrix_II[:half, half:]
    below_first = matrix_II[half:, :half] @ first
    _invert_into(last, torch.addmm(matrix_II[half:, half:], matrix_II[half:, :half], first_above, alpha=-1))
    torch.mm(last, below_first, out=below)
    torch.mm(first_above, last, out=above)
    first.addmm_(first_above, below)
    above.neg_()
    below.neg_()
