"""Closed forms from moments: what they do to the spectrum, and what a projection of moments is."""

import pytest
import torch
from torch import Tensor

from smec_core.model.closed_forms import SPECTRUM_SHRINKAGE, ClosedForm, Moments, rank_first

DIM = 8


def second_moment(x_ND: Tensor) -> Tensor:
    return x_ND.double().T @ x_ND.double() / len(x_ND)


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale_D = torch.linspace(2, 0.2, DIM)
    docs_ND = torch.randn(400, DIM, generator=generator) * scale_D
    # queries are their documents and noise, the strongest in the first dims
    noise_ND = torch.randn(400, DIM, generator=generator) * torch.linspace(1, 0.05, DIM)
    return docs_ND, docs_ND + noise_ND


@pytest.fixture(scope="module")
def moments(rows: tuple[Tensor, Tensor]) -> Moments:
    docs_ND, queries_ND = rows
    return Moments(second_moment(docs_ND), second_moment(queries_ND), second_moment(queries_ND - docs_ND))


def test_whitening_in_full_leaves_the_shrunk_spectrum(moments: Moments) -> None:
    matrix_DD = ClosedForm("white", "pooled", 1.0).matrix(moments)
    value_D = torch.linalg.eigvalsh(moments.pooled_DD).flip(0)
    shrunk_D = (1 - SPECTRUM_SHRINKAGE) * value_D + SPECTRUM_SHRINKAGE * value_D.mean()
    made_DD = matrix_DD @ moments.pooled_DD @ matrix_DD.T
    assert torch.allclose(made_DD, torch.diag(value_D / shrunk_D), atol=1e-9)
    # in no part at all it is PCA
    assert torch.allclose(ClosedForm("white", "docs", 0.0).matrix(moments), ClosedForm("pca").matrix(moments))


@pytest.mark.parametrize("moment", ["docs", "pooled"])
def test_within_whitens_what_pairs_differ_by_and_sorts_what_is_left(moments: Moments, moment: str) -> None:
    form = ClosedForm("within", moment, 1.0, 0.0)  # type: ignore[arg-type]
    block = moments.of_block(form.matrix(moments))
    assert block.differences_DD is not None
    assert torch.allclose(block.differences_DD, torch.eye(DIM, dtype=torch.float64), atol=1e-9)
    kept_DD = block.docs_DD if moment == "docs" else block.pooled_DD
    assert torch.allclose(kept_DD, torch.diag(kept_DD.diag()), atol=1e-9)
    assert (kept_DD.diag().diff() <= 1e-9).all()


def test_full_shrinkage_is_pca(moments: Moments) -> None:
    matrix_DD = ClosedForm("within", "docs", 1.0, 1.0).matrix(moments)
    assert torch.allclose(matrix_DD / torch.linalg.norm(matrix_DD[0]), ClosedForm("pca").matrix(moments), atol=1e-9)


def test_moments_of_a_block_are_those_of_its_rows(rows: tuple[Tensor, Tensor], moments: Moments) -> None:
    matrix_dD = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1))
    block = moments.of_block(matrix_dD)
    docs_Nd, queries_Nd = (x_ND @ matrix_dD.T for x_ND in rows)
    assert torch.allclose(block.docs_DD, second_moment(docs_Nd), atol=1e-5)
    assert block.differences_DD is not None
    assert torch.allclose(block.differences_DD, second_moment(queries_Nd - docs_Nd), atol=1e-5)


def test_what_is_ranked_first_is_a_rotation_that_keeps_that_span_in_front(moments: Moments) -> None:
    form = ClosedForm("within", "docs", 1.0, 0.1)
    rotation_DD = rank_first(form, moments, 3)
    assert torch.allclose(rotation_DD @ rotation_DD.T, torch.eye(DIM, dtype=torch.float64), atol=1e-9)
    span_3D = form.matrix(moments)[:3]
    assert torch.allclose(span_3D @ rotation_DD[:3].T @ rotation_DD[:3], span_3D, atol=1e-9)
