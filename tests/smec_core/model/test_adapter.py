"""Stages in training and frozen, the chain of them, and the one matrix that it folds into."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smec_core.config import Projection
from smec_core.model.adapter import FrozenStage, Stage, apply_chain, fold

CHAIN = ((12, 12), (12, 6), (6, 3), (3, 2))


def random_rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)))[0]


def trained_stage(kind: Projection, d_in: int, dim: int, seed: int = 0) -> Stage:
    """A stage some steps of gradient descent away from its start."""
    generator = torch.Generator().manual_seed(seed)
    stage = Stage(kind, dim, random_rotation(d_in, seed), torch.randn(d_in, generator=generator), hidden_dim=5)
    x_NI, target_NI = torch.randn(2, 40, d_in, generator=generator)
    optimizer = torch.optim.SGD(stage.projection_parameters(), lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        (stage.project(x_NI, torch.arange(d_in)) - target_NI).square().mean().backward()
        optimizer.step()
    return stage


def vectors(dim: int, rows: int = 20) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(9)), dim=1)


def cosines(x_ND: Tensor) -> Tensor:
    unit_ND = F.normalize(x_ND, dim=1)
    return unit_ND @ unit_ND.T


@pytest.mark.parametrize("kinds", [["linear"] * 4, ["rotation"] * 4, ["linear", "rotation", "linear", "rotation"]])
def test_the_folded_matrix_equals_the_chain(kinds: list[Projection]) -> None:
    stages = [trained_stage(kind, d_in, dim).freeze() for kind, (d_in, dim) in zip(kinds, CHAIN, strict=True)]
    x_ND = vectors(12)
    matrix_DD = fold(stages, 12)
    assert matrix_DD is not None
    torch.testing.assert_close(x_ND @ matrix_DD.T, apply_chain(stages, x_ND), atol=1e-5, rtol=1e-5)


def test_a_later_stage_leaves_the_tail_alone() -> None:
    first, second = trained_stage("linear", 12, 6).freeze(), trained_stage("linear", 6, 3).freeze()
    x_ND = vectors(12)
    torch.testing.assert_close(apply_chain([first, second], x_ND)[:, 6:], apply_chain([first], x_ND)[:, 6:])


def test_an_empty_chain_is_the_identity() -> None:
    x_ND = vectors(12)
    assert torch.equal(apply_chain([], x_ND), x_ND)
    matrix_DD = fold([], 12)
    assert matrix_DD is not None
    assert torch.equal(matrix_DD, torch.eye(12))


@pytest.mark.parametrize("dim", [2, 12, 64])
def test_a_rotation_keeps_all_cosines_of_its_block_after_training(dim: int) -> None:
    stage = trained_stage("rotation", dim, dim // 2)
    assert stage.preserves_cosines
    assert (stage.skew != 0).any()
    x_ND = vectors(dim)
    frozen = stage.freeze()
    assert not torch.allclose(
        frozen.apply(x_ND), x_ND @ random_rotation(dim, 0)[stage.logits.argsort(descending=True)].T
    )
    torch.testing.assert_close(cosines(frozen.apply(x_ND)), cosines(x_ND), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["linear", "rotation", "residual_mlp", "selection"])
def test_freezing_orders_the_outputs_by_their_logits(kind: Projection) -> None:
    stage = Stage("selection", 4, random_rotation(12, 0), torch.randn(12), 5)
    if kind != "selection":
        stage = trained_stage(kind, 12, 4)
    frozen = stage.freeze()
    order = stage.logits.argsort(descending=True)
    x_ND = vectors(12)
    assert (frozen.tensors["logits"].diff() <= 0).all()
    torch.testing.assert_close(frozen.apply(x_ND), stage.project(x_ND, torch.arange(12))[:, order].detach())


@pytest.mark.parametrize("kind", ["linear", "rotation", "residual_mlp", "selection"])
def test_every_kind_starts_as_its_linear_start(kind: Projection) -> None:
    start_II = random_rotation(6, 1)
    stage = Stage(kind, 3, start_II, torch.zeros(6), hidden_dim=4)
    torch.testing.assert_close(stage.freeze().apply(torch.eye(6)), start_II.T, atol=1e-6, rtol=0)


def test_freezing_takes_a_copy() -> None:
    stage = trained_stage("linear", 6, 3)
    frozen = stage.freeze()
    before = frozen.apply(torch.eye(6))
    with torch.no_grad():
        stage.matrix.zero_()
        stage.logits.zero_()
    assert torch.equal(frozen.apply(torch.eye(6)), before)
    assert (frozen.tensors["logits"] != 0).any()


def test_a_residual_mlp_does_not_fold_but_applies() -> None:
    stages: list[FrozenStage] = [trained_stage("linear", 12, 6).freeze(), trained_stage("residual_mlp", 6, 3).freeze()]
    assert fold(stages, 12) is None
    x_ND = vectors(12)
    # not linear: the sum of two inputs does not go to the sum of their outputs
    together = apply_chain(stages, x_ND[:1] + x_ND[1:2])
    assert not torch.allclose(together, apply_chain(stages, x_ND[:1]) + apply_chain(stages, x_ND[1:2]), atol=1e-4)
