"""Uncentred PCA, whole and in parts."""

import itertools

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smec_core.distributed.group import Group
from smec_core.model.pca import Gram, block_rotation, mean_of_squares, principal_rotation
from tests.smec_core.generated import resident


def rows(count: int, dim: int, seed: int = 0) -> Tensor:
    """Vectors with a mean and a different spread in every direction."""
    generator = torch.Generator().manual_seed(seed)
    spread_DD = torch.randn(dim, dim, generator=generator) * torch.linspace(2, 0.1, dim)
    return torch.randn(count, dim, generator=generator) @ spread_DD + torch.randn(dim, generator=generator)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(cuts=st.sets(st.integers(0, 60), max_size=4), seed=st.integers(0, 100))
def test_a_gram_of_parts_equals_the_whole(cuts: set[int], seed: int) -> None:
    x_ND = rows(60, 6, seed)
    parts, whole = Gram(6), Gram(6)
    ends = sorted(cuts | {0, 60})
    for start, stop in itertools.pairwise(ends):
        parts.add(x_ND[start:stop])
    whole.add(x_ND)
    torch.testing.assert_close(parts.sum_DD, whole.sum_DD, atol=1e-5, rtol=1e-5)


def test_the_sum_of_many_dims_is_that_of_the_products() -> None:
    x_ND, gram = rows(50, 401), Gram(401)
    gram.add(x_ND)
    unit_ND = F.normalize(x_ND, dim=1).double()
    torch.testing.assert_close(gram.sum_DD, unit_ND.T @ unit_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(gram.sum_DD, gram.sum_DD.T, atol=1e-5, rtol=0)


def test_directions_are_orthonormal_and_strongest_first() -> None:
    x_ND = rows(300, 16)
    rotation_DD = principal_rotation(resident(x_ND), Group())
    torch.testing.assert_close(rotation_DD @ rotation_DD.T, torch.eye(16), atol=1e-5, rtol=0)
    energy_D = (F.normalize(x_ND, dim=1) @ rotation_DD.T).square().mean(0)
    assert (energy_D.diff() <= 1e-6).all()
    # no other directions hold more: those of the singular value decomposition hold the same
    singular_D = torch.linalg.svdvals(F.normalize(x_ND, dim=1))
    torch.testing.assert_close(energy_D, singular_D.square() / len(x_ND), atol=1e-5, rtol=1e-4)


def test_dims_between_two_cuts_are_rotated_among_themselves() -> None:
    x_ND = rows(300, 16)
    rotation_DD = block_rotation(mean_of_squares(resident(x_ND), Group()), (4, 10))
    blocks = [slice(0, 4), slice(4, 10), slice(10, 16)]
    torch.testing.assert_close(rotation_DD, torch.block_diag(*(rotation_DD[block, block] for block in blocks)))
    energy_D = (F.normalize(x_ND, dim=1) @ rotation_DD.T).square().mean(0)
    assert all((energy_D[block].diff() <= 1e-6).all() for block in blocks)
    torch.testing.assert_close(rotation_DD @ rotation_DD.T, torch.eye(16), atol=1e-5, rtol=0)


def test_the_scale_of_a_row_does_not_matter() -> None:
    x_ND = rows(50, 5)
    scale_N1 = torch.linspace(0.1, 10, 50)[:, None]
    torch.testing.assert_close(
        principal_rotation(resident(x_ND * scale_N1), Group()), principal_rotation(resident(x_ND), Group())
    )


def test_signs_are_fixed() -> None:
    # of -v and v the same comes out, whatever the decomposition returned
    x_ND = rows(50, 5)
    rotation_DD = principal_rotation(resident(x_ND), Group())
    largest_D = rotation_DD.gather(1, rotation_DD.abs().argmax(1, keepdim=True))
    assert (largest_D > 0).all()
