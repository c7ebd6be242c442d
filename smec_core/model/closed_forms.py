"""Linear maps from second moments alone: in seconds, without a gradient.

Moments are sums over rows, so that those of shards and ranks add up, and those of the block that a linear map gives
follow by algebra: W C W^T needs no pass over the rows.

Shapes: D dims, N rows, P pairs of a query and a relevant document.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SPECTRUM_SHRINKAGE = 0.1
"""Share of their mean in the eigenvalues that `white` divides by: the smallest are mostly noise."""


@dataclass(frozen=True)
class Moments:
    """Uncentred second moments, float64.

    Attributes:
        docs_DD: mean of d d^T over unit documents.
        queries_DD: mean of q q^T over unit train queries; None without queries.
        differences_DD: mean of (q - d) (q - d)^T over pairs of a query and a relevant document, where the pairs of a
            query weigh 1 together; None without judgements.
    """

    docs_DD: Tensor
    queries_DD: Tensor | None = None
    differences_DD: Tensor | None = None

    @property
    def pooled_DD(self) -> Tensor:
        """Half documents, half queries."""
        return self.docs_DD if self.queries_DD is None else (self.docs_DD + self.queries_DD) / 2

    def of_block(self, matrix_dD: Tensor) -> "Moments":
        """Those of the outputs of a linear map."""
        matrix_dD = matrix_dD.double()

        def project(moment_DD: Tensor | None) -> Tensor | None:
            return None if moment_DD is None else matrix_dD @ moment_DD @ matrix_dD.T

        docs_dd = project(self.docs_DD)
        assert docs_dd is not None
        return Moments(docs_dd, project(self.queries_DD), project(self.differences_DD))


class ClosedForm(NamedTuple):
    """A closed form and its constants.

    Attributes:
        name: `pca`, `white` (whitening in part, no labels) or `within` (relevant component analysis, Bar-Hillel et
            al., JMLR 2005: whitens what pairs of a query and its document differ by).
        moment: what is kept most of: of documents, or of documents and queries alike.
        power: 0 leaves the spectrum as it is, 1 makes it white.
        shrinkage: share of the mean in the spectrum that `within` divides by.
    """

    name: Literal["pca", "white", "within"]
    moment: Literal["docs", "pooled"] = "docs"
    power: float = 0.0
    shrinkage: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}({self.moment}, power {self.power:g}, shrinkage {self.shrinkage:g})"

    def matrix(self, moments: Moments) -> Tensor:
        """The map (D, D), float64: a row an output, the strongest first."""
        moment_DD = moments.docs_DD if self.moment == "docs" else moments.pooled_DD
        if self.name == "pca":
            return principal(moment_DD)
        if self.name == "white":
            value_D, rotation_DD = _spectrum(moment_DD)
            value_D = (1 - SPECTRUM_SHRINKAGE) * value_D + SPECTRUM_SHRINKAGE * value_D.mean()
            return value_D.pow(-self.power / 2)[:, None] * rotation_DD
        assert moments.differences_DD is not None
        value_D, rotation_DD = _spectrum(moments.differences_DD)
        value_D = (1 - self.shrinkage) * value_D + self.shrinkage * value_D.mean()
        white_DD = rotation_DD.T @ (value_D.pow(-self.power / 2)[:, None] * rotation_DD)
        return principal(white_DD @ moment_DD @ white_DD) @ white_DD


def principal(moment_DD: Tensor) -> Tensor:
    """Principal directions (D, D) as rows, the strongest first."""
    return _spectrum(moment_DD)[1]


def _spectrum(moment_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, none below 0, and eigenvectors as rows."""
    value_D, direction_DD = torch.linalg.eigh(moment_DD)
    direction_DD = direction_DD.flip(1).T
    # an eigenvector's sign is arbitrary: fix it, so that every machine and every rank starts alike
    signs_D1 = direction_DD.gather(1, direction_DD.abs().argmax(1, keepdim=True)).sign()
    return value_D.flip(0).clamp_min(0), (direction_DD * signs_D1).contiguous()


def rank_first(form: ClosedForm, moments: Moments, dim: int) -> Tensor:
    """A rotation (D, D) whose first `dim` outputs span what a closed form ranks first; either part is sorted by PCA.

    It changes no cosine of all D dims (METHOD section 2, the staged closed form).
    """
    span_Dd = torch.linalg.qr(form.matrix(moments)[:dim].T, mode="complete")[0]
    moment_DD = moments.docs_DD if form.moment == "docs" else moments.pooled_DD
    parts = [span_Dd[:, :dim].T, span_Dd[:, dim:].T]
    return torch.cat([principal(part @ moment_DD @ part.T) @ part for part in parts])
