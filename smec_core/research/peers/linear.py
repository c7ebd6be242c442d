"""Methods without a gradient: truncation, random projection, PCA, and closed forms from second moments.

Shapes: N rows, D input dims, d dims asked for.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.errors import SmecError
from smec_core.model.pca import principal_rotation
from smec_core.research.peers.peer import Fitted
from smec_core.training.closed import FORMS, ClosedStart
from smec_core.training.context import TrainingData, pass_context
from smec_core.training.schedule import prefix_dims
from smec_core.training.tracker import NullTracker


def nested(matrix_DD: Tensor, parameters: int) -> Fitted:
    """One matrix whose outputs serve every dim as a prefix."""
    return Fitted(lambda x_ND, dim: x_ND @ matrix_DD[:dim].T, parameters, 0)


@dataclass(frozen=True)
class Truncation:
    """The first dims of the embeddings as they are."""

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Learns nothing."""
        return Fitted(lambda x_ND, dim: x_ND[:, :dim], 0, 0)


@dataclass(frozen=True)
class RandomProjection:
    """A random rotation, cut: keeps distances as the Johnson-Lindenstrauss lemma has it."""

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Draws the rotation by the seed."""
        noise_DD = torch.randn(data.docs.dim, data.docs.dim, generator=torch.Generator().manual_seed(config.seed))
        return nested(torch.linalg.qr(noise_DD)[0].to(data.node.device), 0)


@dataclass(frozen=True)
class Pca:
    """Uncentred PCA of the corpus."""

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Decomposes the sum of x x^T over the corpus."""
        rotation_DD = principal_rotation(data.docs, data.node.group).to(data.node.device)
        return nested(rotation_DD, rotation_DD.numel())


@dataclass(frozen=True)
class ClosedPeer:
    """The best of some closed forms by folds of train and dev, made of all that SMEC learns from in the end."""

    name: Literal["white", "within"]

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Sums second moments, and tries the forms on each fold."""
        forms = [form for form in FORMS if form.name == self.name]
        untrained = config.model_copy(update={"epochs": 0})
        start = ClosedStart(data, untrained, prefix_dims(data.docs.dim, config.dims), lambda text: None, forms)
        learnt = data if config.refit else replace(data, dev=None)
        # a pass without dev leaves the form as it is, whose dims SMEC puts in order
        matrix_DD, _ = start.make(pass_context(learnt, untrained, "refit", NullTracker()))
        return nested(matrix_DD.to(data.node.device), matrix_DD.numel())


@dataclass(frozen=True)
class FaissPca:
    """PCA by FAISS, to check ours."""

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Trains a faiss.PCAMatrix on the corpus and its negatives, whose mean is zero: FAISS centres what it gets.

        Raises:
            SmecError: FAISS is not installed here.
        """
        try:
            import faiss
        except ImportError as error:
            raise SmecError("method faiss-pca needs FAISS: pip install faiss-cpu, or leave it out") from error
        dim = data.docs.dim
        x_ND = torch.cat(list(data.docs.own_blocks())).cpu()
        pca = faiss.PCAMatrix(dim, dim)
        pca.max_points_per_d = len(x_ND) * 2
        pca.train(torch.cat([x_ND, -x_ND]).numpy())
        matrix_DD = torch.from_numpy(faiss.vector_to_array(pca.A)).view(dim, dim).to(data.node.device)
        return nested(matrix_DD, matrix_DD.numel())
