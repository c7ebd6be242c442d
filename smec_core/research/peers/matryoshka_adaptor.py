"""Matryoshka-Adaptor (arXiv 2407.20243): a residual MLP, with the losses of all dims at once.

Shapes: B queries, N documents, R = B + N rows, D input dims, d dims of a prefix, K neighbours.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smec_core.config import TrainConfig
from smec_core.research.peers.adaptor import AdaptorTraining, Recipe
from smec_core.research.peers.peer import Fitted, Step, most_steps
from smec_core.training.context import TrainingData
from smec_core.training.schedule import prefix_dims

NEIGHBOURS = 10


class ResidualMlp(nn.Module):
    """x + MLP(x), which starts as x."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Adapted vectors (N, D)."""
        return x_ND + self.down(torch.relu(self.up(x_ND)))


@dataclass(frozen=True)
class MatryoshkaAdaptor:
    """First L_topk + L_pair + L_rec on the corpus, then the same with L_rank, all of weight 1.

    The paper leaves open over which pairs L_pair and L_topk run in a step: here over all pairs of the step's rows, and
    over each row's ten nearest among them by the frozen embeddings.
    """

    recipe: Recipe

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Both phases, each stopped on dev; then the second again on train + dev, as long as it was good for."""
        training = AdaptorTraining(data, config, self.recipe)
        dims = prefix_dims(data.docs.dim, config.dims)
        module = training.seeded(lambda: ResidualMlp(data.docs.dim, config.hidden_dim))
        most = self.recipe.steps or most_steps(data, config, training.first.epoch_steps)

        def score() -> float:
            return training.score(module, dims)

        training.run(module, lambda step: _similarity_losses(module, step, dims), training.unlabelled, most, score)
        unsupervised = copy.deepcopy(module.state_dict())

        def loss(step: Step) -> Tensor:
            rank = _rank_losses(module, step, dims, training.temperature)
            if not self.recipe.hold:
                return rank
            return rank + self.recipe.hold * _similarity_losses(module, step, dims)

        stop = training.run(module, loss, training.first, most, score)
        if config.refit:
            module.load_state_dict(unsupervised)
            training.run(module, loss, training.refit, stop)
        parameters = sum(p.numel() for p in module.parameters())
        return Fitted(lambda x_ND, dim: module(x_ND)[:, :dim], parameters, training.steps)


def _similarity_losses(module: nn.Module, step: Step, dims: Sequence[int]) -> Tensor:
    """L_topk + L_pair + L_rec: means over pairs of |cos - cos|, summed over dims; mean distance from the original."""
    x_RD = torch.cat([step.x_BD, step.x_ND])
    f_RD = module(x_RD)
    target_RR = x_RD @ x_RD.T
    # one more, for the row itself, whose difference is always 0
    nearest_RK = target_RR.topk(min(NEIGHBOURS + 1, len(x_RD)), dim=1).indices
    total = (f_RD - x_RD).norm(dim=1).mean()
    for dim in dims:
        z_Rd = F.normalize(f_RD[:, :dim], dim=1)
        error_RR = (z_Rd @ z_Rd.T - target_RR).abs()
        total = total + error_RR.mean() + error_RR.gather(1, nearest_RK).mean()
    return total


def _rank_losses(module: nn.Module, step: Step, dims: Sequence[int], temperature: float) -> Tensor:
    return step.rank_loss(module(step.x_BD), module(step.x_ND), dims, temperature)
