"""Search-Adaptor (arXiv 2310.08750): an adapter of its own for every dim, as the SMEC paper compares with it.

Shapes: B queries, N documents, P positive pairs, D input dims, d dims of the adapter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smec_core.config import TrainConfig
from smec_core.research.peers.adaptor import AdaptorTraining, Recipe
from smec_core.research.peers.peer import Fitted, Step, most_steps
from smec_core.training.context import TrainingData
from smec_core.training.schedule import prefix_dims

RECOVERY, PREDICTION = 0.1, 0.01
"""Weights of the recovery and of the prediction loss, from the ranges that the paper searches."""


class ResidualAdapter(nn.Module):
    """The first d dims plus a linear map of all, and the predictor of a query's documents, used in training only."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.adapter, self.predictor = nn.Linear(input_dim, dim), nn.Linear(dim, dim)
        nn.init.zeros_(self.adapter.weight)
        nn.init.zeros_(self.adapter.bias)
        nn.init.eye_(self.predictor.weight)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Adapted vectors (N, d)."""
        adapted: Tensor = x_ND[:, : self.dim] + self.adapter(x_ND)
        return adapted


@dataclass(frozen=True)
class SearchAdaptor:
    """L_rank + recovery + prediction, dim by dim; without steps in the recipe, each may take its share of SMEC's."""

    recipe: Recipe

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """For each dim: a first pass stopped on dev, then again on train + dev, as long as it was good for."""
        training = AdaptorTraining(data, config, self.recipe)
        dims = prefix_dims(data.docs.dim, config.dims)
        share = most_steps(data, config, training.first.epoch_steps) // len(dims)
        modules = {dim: _fit_dim(training, dim, self.recipe.steps or share) for dim in dims}
        parameters = sum(p.numel() for module in modules.values() for p in module.adapter.parameters())
        return Fitted(lambda x_ND, dim: modules[dim](x_ND), parameters, training.steps)


def _fit_dim(training: AdaptorTraining, dim: int, most: int) -> ResidualAdapter:
    def fresh() -> ResidualAdapter:
        module = training.seeded(lambda: ResidualAdapter(training.data.docs.dim, dim))
        assert isinstance(module, ResidualAdapter)
        return module

    first = fresh()
    stop = training.run(
        first,
        lambda step: _loss(first, step, training),
        training.first,
        most,
        lambda: training.score(first, [dim]),
    )
    if not training.config.refit:
        return first
    again = fresh()
    training.run(again, lambda step: _loss(again, step, training), training.refit, stop)
    return again


def _loss(module: ResidualAdapter, step: Step, training: AdaptorTraining) -> Tensor:
    f_Bd, f_Nd = module(step.x_BD), module(step.x_ND)
    rank = step.rank_loss(f_Bd, f_Nd, [module.dim], training.temperature)
    x_Rd = torch.cat([step.x_BD, step.x_ND])[:, : module.dim]
    recovery = (torch.cat([f_Bd, f_Nd]) - x_Rd).norm(dim=1).mean()
    guess_Pd = module.predictor(f_Bd)[step.ranked.query_P]
    prediction = (guess_Pd - f_Nd[step.ranked.doc_P]).norm(dim=1).mean()
    return rank + training.recipe.hold * RECOVERY * recovery + PREDICTION * prediction
