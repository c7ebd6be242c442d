"""The Cayley map by blocks against the plain formula."""

import pytest
import torch
from torch import Tensor

from smec_core.model.cayley import BASE_DIM, cayley_rows, inverse_without_pivots


def skew(dim: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    any_II = scale * torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim), dtype=dtype)
    return any_II.tril(-1) - any_II.tril(-1).T


def plain(lower_II: Tensor) -> Tensor:
    half_II, eye_II = (lower_II - lower_II.T) / 2, torch.eye(len(lower_II), dtype=lower_II.dtype)
    return torch.linalg.solve(eye_II - half_II, eye_II + half_II)


@pytest.mark.parametrize("dim", [1, BASE_DIM, BASE_DIM + 1, 4 * BASE_DIM + 3])
def test_rows_and_gradient_are_those_of_the_formula(dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    row_d = torch.randperm(dim, generator=generator)[: dim // 2 + 1]
    weight_dI = torch.randn(len(row_d), dim, generator=generator, dtype=torch.float64)
    skew_II = skew(dim).requires_grad_()
    lower_II = skew(dim).tril(-1).requires_grad_()
    rows_dI, expected_dI = cayley_rows(skew_II, row_d), plain(lower_II)[row_d]
    torch.testing.assert_close(rows_dI, expected_dI)
    (grad_II,) = torch.autograd.grad((rows_dI * weight_dI).sum(), skew_II)
    (expected_II,) = torch.autograd.grad((expected_dI * weight_dI).sum(), lower_II)
    torch.testing.assert_close(grad_II.tril(-1), expected_II.tril(-1))
    assert torch.equal(grad_II, -grad_II.T)


# entries of 1 are what 500 steps at the default learning rate can reach
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_a_rotation_stays_one_in_single_precision(scale: float) -> None:
    dim = 384
    rotation_II = cayley_rows(skew(dim, scale, torch.float32), torch.arange(dim))
    assert (rotation_II @ rotation_II.T - torch.eye(dim)).abs().max() < 2e-5


def test_the_inverse_needs_a_positive_symmetric_part_only() -> None:
    generator = torch.Generator().manual_seed(0)
    any_II = torch.randn(200, 200, generator=generator, dtype=torch.float64)
    matrix_II = any_II @ any_II.T / 200 + torch.eye(200) + 5 * (any_II - any_II.T)
    torch.testing.assert_close(inverse_without_pivots(matrix_II) @ matrix_II, torch.eye(200, dtype=torch.float64))
