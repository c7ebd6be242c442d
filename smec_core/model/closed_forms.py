"""Linear maps from second moments alone, without a gradient.

Moments are sums over rows, so that those of shards and ranks add up.

Shapes: D dims.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from smec_core.model.pca import signed, spectrum

MomentName = Literal["docs", "pooled"]
MOMENTS: tuple[MomentName, ...] = get_args(MomentName)

SPECTRUM_SHRINKAGE = 0.1
"""Share of their mean in the eigenvalues that `white` divides by: the smallest are mostly noise."""


@dataclass(frozen=True)
class Moments:
    """Uncentred second moments, float64 unless made otherwise by `to`.

    Attributes:
        docs_DD: mean of d d^T over unit documents.
        queries_DD: mean of q q^T over unit train queries.
        differences_DD: mean of (q - d) (q - d)^T, both unit, over pairs of a query and a relevant document, where the
            pairs of a query weigh 1 together.
    """

    docs_DD: Tensor
    queries_DD: Tensor
    differences_DD: Tensor
    _along: dict[MomentName, Tensor] = field(default_factory=dict, init=False, repr=False)

    def to(self, dtype: torch.dtype) -> "Moments":
        """The same in another precision."""
        return Moments(self.docs_DD.to(dtype), self.queries_DD.to(dtype), self.differences_DD.to(dtype))

    @property
    def pooled_DD(self) -> Tensor:
        """Half documents, half queries."""
        return (self.docs_DD + self.queries_DD) / 2

    @cached_property
    def differences(self) -> tuple[Tensor, Tensor]:
        """Spectrum of the differences, which many forms divide by."""
        return spectrum(self.differences_DD)

    def moment(self, name: MomentName) -> Tensor:
        """A moment by its name."""
        return self.docs_DD if name == "docs" else self.pooled_DD

    def along_differences(self, name: MomentName) -> Tensor:
        """A moment in the basis of the differences' spectrum."""
        if name not in self._along:
            self._along[name] = self.differences[1] @ self.moment(name) @ self.differences[1].T
        return self._along[name]


class ClosedForm(NamedTuple):
    """A closed form and its constants.

    Attributes:
        name: `pca`, `white` (whitening in part, no labels) or `within` (relevant component analysis, Bar-Hillel et
            al., JMLR 2005: whitens what pairs of a query and its document differ by); `identity`, of which no map is
            made, names the order that dims have.
        moment: what is kept most of: of documents, or of documents and queries alike.
        power: 0 leaves the spectrum as it is, 1 makes it white.
        shrinkage: share of the mean in the spectrum that `within` divides by.
    """

    name: Literal["identity", "pca", "white", "within"]
    moment: MomentName = "docs"
    power: float = 0.0
    shrinkage: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}({self.moment}, power {self.power:g}, shrinkage {self.shrinkage:g})"

    def matrix(self, moments: Moments) -> Tensor:
        """The map (D, D), in the precision of the moments: a row an output, the strongest first."""
        moment_DD = moments.moment(self.moment)
        if self.name == "pca":
            return spectrum(moment_DD)[1]
        if self.name == "white":
            value_D, rotation_DD = spectrum(moment_DD)
            value_D = (1 - SPECTRUM_SHRINKAGE) * value_D + SPECTRUM_SHRINKAGE * value_D.mean()
            return value_D.pow(-self.power / 2)[:, None] * rotation_DD
        value_D, rotation_DD = moments.differences
        if value_D.mean() <= 0:
            # queries that equal their documents: there is nothing to whiten by
            return spectrum(moment_DD)[1]
        value_D = (1 - self.shrinkage) * value_D + self.shrinkage * value_D.mean()
        scale_D = value_D.pow(-self.power / 2)
        # PCA(W C W) W of W = S^(-power/2), in the basis of S, where W is a diagonal
        white_DD = scale_D[:, None] * moments.along_differences(self.moment) * scale_D
        return signed((spectrum(white_DD)[1] * scale_D) @ rotation_DD)
