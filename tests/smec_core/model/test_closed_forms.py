"""Closed forms from moments: what they do to the spectrum."""

import pytest
import torch
from torch import Tensor

from smec_core.model.closed_forms import SPECTRUM_SHRINKAGE, ClosedForm, Moments

DIM = 8


def second_moment(x_ND: Tensor) -> Tensor:
    return x_ND.double().T @ x_ND.double() / len(x_ND)


@pytest.fixture(scope="module")
def moments() -> Moments:
    generator = torch.Generator().manual_seed(0)
    scale_D = torch.linspace(2, 0.2, DIM)
    docs_ND = torch.randn(400, DIM, generator=generator) * scale_D
    # queries are their documents and noise, the strongest in the first dims
    noise_ND = torch.randn(400, DIM, generator=generator) * torch.linspace(1, 0.05, DIM)
    return Moments(second_moment(docs_ND), second_moment(docs_ND + noise_ND), second_moment(noise_ND))


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
    matrix_DD = form.matrix(moments)
    differences_DD = matrix_DD @ moments.differences_DD @ matrix_DD.T
    assert torch.allclose(differences_DD, torch.eye(DIM, dtype=torch.float64), atol=1e-9)
    kept_DD = matrix_DD @ (moments.docs_DD if moment == "docs" else moments.pooled_DD) @ matrix_DD.T
    assert torch.allclose(kept_DD, torch.diag(kept_DD.diag()), atol=1e-9)
    assert (kept_DD.diag().diff() <= 1e-9).all()


def test_full_shrinkage_is_pca(moments: Moments) -> None:
    matrix_DD = ClosedForm("within", "docs", 1.0, 1.0).matrix(moments)
    assert torch.allclose(matrix_DD / torch.linalg.norm(matrix_DD[0]), ClosedForm("pca").matrix(moments), atol=1e-9)
