"""How far a new version of the data is from the one that a model was trained on.

Shapes: N documents, S documents of a sample, D dims.
"""

import json
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from smec_core.data.dataset import hash_share
from smec_core.data.scan import Scanned

SAMPLE = 2000
NEIGHBOURS = 10
LEAST_COMMON = 50
"""Documents that two versions must share for their vectors and neighbours to be compared."""
SAME_COSINE = 0.98
"""What the median document's vector must have in common with its earlier one. One embedding model gives an unchanged
text the same vector but for rounding (.999 and above, also in half precision); another model, something else."""


@dataclass(frozen=True)
class Reference:
    """What is kept of a version of the data, for later ones to be compared with.

    Attributes:
        rows: N.
        mean_D: mean of the unit document vectors.
        moment_DD: mean of their x x^T.
        ids: ids of the sample: those of the lowest hashes, so mostly the same ones in the next version.
        x_SD: unit vectors of the sample.
    """

    rows: int
    mean_D: Tensor
    moment_DD: Tensor
    ids: list[str]
    x_SD: Tensor

    @classmethod
    def of(cls, rows: int, docs: Scanned) -> Self:
        """What a scan of a corpus of so many rows has found, and a sample of its sample."""
        ids, x_KD = docs.id_K[: docs.drawn].to_pylist(), docs.x_KD[: docs.drawn]
        share = SAMPLE / docs.drawn
        place_S = [place for place, name in enumerate(ids) if hash_share(name, b"drift") < share]
        moments = torch.from_numpy(docs.mean_D), torch.from_numpy(docs.moment_DD)
        return cls(rows, *moments, [ids[place] for place in place_S], torch.from_numpy(x_KD[place_S]))

    @property
    def covariance_DD(self) -> Tensor:
        """Covariance of the unit document vectors."""
        return self.moment_DD - torch.outer(self.mean_D, self.mean_D)

    def to_bytes(self) -> bytes:
        """The content of a safetensors file."""
        ids = torch.frombuffer(bytearray(json.dumps(self.ids).encode()), dtype=torch.uint8)
        rows = torch.tensor(self.rows)
        return save({"rows": rows, "mean": self.mean_D, "moment": self.moment_DD, "ids": ids, "sample": self.x_SD})

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Reads it back."""
        tensors = load(content)
        ids = json.loads(tensors["ids"].numpy().tobytes())
        return cls(int(tensors["rows"]), tensors["mean"], tensors["moment"], ids, tensors["sample"])


@dataclass(frozen=True)
class Drift:
    """What has changed from one version of the data to another.

    Attributes:
        mean_shift: distance of the means of the unit document vectors; 0 to 2.
        covariance_shift: Frobenius norm of the difference of their covariances, as a share of the earlier one's.
        neighbours_kept: share of the ten nearest documents, among those of the sample that both versions have, that a
            document keeps; None where they share too few.
        same_cosine: median cosine of a document's vector with its earlier one; None likewise.
        common: documents of the sample that both versions have.
    """

    mean_shift: float
    covariance_shift: float
    neighbours_kept: float | None
    same_cosine: float | None
    common: int

    @classmethod
    def between(cls, before: Reference, after: Reference) -> Self:
        """Compares two versions of the same dims."""
        shift = torch.linalg.norm(after.covariance_DD - before.covariance_DD)
        place = {name: row for row, name in enumerate(before.ids)}
        common = [(place[name], row) for row, name in enumerate(after.ids) if name in place]
        kept = cosine = None
        if len(common) >= LEAST_COMMON:
            old_SD, new_SD = (
                x_SD[list(rows)]
                for x_SD, rows in zip((before.x_SD, after.x_SD), zip(*common, strict=True), strict=True)
            )
            cosine = F.cosine_similarity(old_SD, new_SD).median().item()
            kept = _neighbours_kept(old_SD, new_SD)
        return cls(
            mean_shift=torch.linalg.norm(after.mean_D - before.mean_D).item(),
            covariance_shift=(shift / torch.linalg.norm(before.covariance_DD)).item(),
            neighbours_kept=kept,
            same_cosine=cosine,
            common=len(common),
        )


def _neighbours_kept(old_SD: Tensor, new_SD: Tensor) -> float:
    nearest = []
    for x_SD in (old_SD, new_SD):
        sim_SS = (x_SD @ x_SD.T).fill_diagonal_(-2)
        is_near_SS = torch.zeros_like(sim_SS, dtype=torch.bool)
        nearest.append(is_near_SS.scatter_(1, sim_SS.topk(NEIGHBOURS).indices, True))
    return (nearest[0] & nearest[1]).sum().item() / (NEIGHBOURS * len(old_SD))
