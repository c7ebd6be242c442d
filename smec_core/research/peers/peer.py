"""What every compared method is: something to fit, which then gives vectors of any of its dims.

Shapes: Q queries, N rows or documents of a step, B queries of a step, P positive pairs, D input dims, d dims asked
for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.data.judgements import Judgements
from smec_core.distributed.resident import BLOCK_ROWS
from smec_core.evaluation.metrics import SEARCH_DEPTH, PrefixSearch, measure_queries
from smec_core.model.adapter import apply_chain
from smec_core.training.context import TrainingData
from smec_core.training.losses import RankedPairs, rank_loss
from smec_core.training.sampling import Batch
from smec_core.training.schedule import chain_dims
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train


class Encode(Protocol):
    """Unit vectors (N, D) to vectors (N, d) of any scale, for d one of the dims that were fitted."""

    def __call__(self, x_ND: Tensor, dim: int) -> Tensor:
        """Encodes rows at one dim."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A fitted method.

    Attributes:
        encode: gives its vectors.
        parameters: numbers it has learnt, over all dims.
        steps: steps it was trained for, those of the replay on all labels included.
    """

    encode: Encode
    parameters: int
    steps: int


class Peer(Protocol):
    """A method to compare."""

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Learns from documents, queries and judgements, in one process.

        Args:
            data: what to learn from; has judgements, and dev unless the config has no guard.
            config: what all methods share: dims, seed, how a step is sampled, how dev is made.
        """
        ...


def most_steps(data: TrainingData, config: TrainConfig, epoch_steps: int) -> int:
    """Steps of a full stage for each dim of the chain: the budget of every tuned peer."""
    return len(chain_dims(data.docs.dim, config.dims)) * config.stage_epochs(epoch_steps) * epoch_steps


@dataclass(frozen=True)
class Step:
    """Frozen unit vectors of a step, and what the ranking loss compares."""

    x_BD: Tensor
    x_ND: Tensor
    ranked: RankedPairs

    def rank_loss(self, q_BD: Tensor, d_ND: Tensor, dims: Sequence[int], temperature: float) -> Tensor:
        """Weighted mean of the ranking loss of vectors of any norm, summed over dims."""
        total = rank_loss(q_BD, d_ND, [(dim, 1.0) for dim in dims], self.ranked, temperature)
        return total / self.ranked.weight_PN.sum().clamp_min(1e-12)


def read_step(data: TrainingData, batch: Batch) -> Step:
    """Reads the rows of a step."""
    device = data.node.device
    return Step(
        data.queries.take(torch.from_numpy(batch.query_row_B)).to(device),
        data.docs.take(torch.from_numpy(batch.doc_row_N)).to(device),
        RankedPairs(
            torch.from_numpy(batch.pair_query_P).to(device),
            torch.from_numpy(batch.pair_doc_P).to(device),
            torch.from_numpy(batch.weight_PN).to(device),
        ),
    )


@torch.no_grad()
def score(
    encode: Encode, data: TrainingData, dims: Sequence[int], judgements: Judgements
) -> dict[str, dict[int, np.ndarray]]:
    """Searches all documents at every dim.

    Returns:
        By measure and dim: the values (Q) of the judged queries.
    """
    device = data.node.device
    x_QD = data.queries.take(torch.from_numpy(judgements.query_row_Q)).to(device)
    own = judgements.own_doc_row_Q
    own_row_Q = None if own is None else torch.from_numpy(own).to(device)
    searches = {dim: PrefixSearch(encode(x_QD, dim), [dim], SEARCH_DEPTH, own_row_Q) for dim in dims}
    for row_N in torch.arange(data.docs.rows).split(BLOCK_ROWS):
        x_ND = data.docs.take(row_N).to(device)
        for dim, search in searches.items():
            search.add(row_N.to(device), encode(x_ND, dim))
    values: dict[str, dict[int, np.ndarray]] = {}
    for dim, search in searches.items():
        for measure, value_Q in measure_queries(search.results()[dim], judgements).items():
            values.setdefault(measure, {})[dim] = value_Q.numpy()
    return values


@dataclass(frozen=True)
class FewLabels:
    """A method that learns from some of the judged queries.

    Attributes:
        peer: the method.
        queries: how many of train and dev together, a seeded choice of each in the share that it has; 2 at least.
    """

    peer: Peer
    queries: int

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Fits the method."""
        assert data.train is not None
        if data.dev is None:
            return self.peer.fit(replace(data, train=_some(data.train, self.queries, config.seed)), config)
        share = self.queries / (len(data.train) + len(data.dev))
        held_out = min(max(round(share * len(data.dev)), 1), self.queries - 1)
        dev, train = _some(data.dev, held_out, config.seed), _some(data.train, self.queries - held_out, config.seed)
        return self.peer.fit(replace(data, train=train, dev=dev), config)


def _some(judgements: Judgements, queries: int, seed: int) -> Judgements:
    lot_Q = np.random.default_rng((seed, 6)).permutation(len(judgements))
    return judgements.select(lot_Q < queries)


@dataclass(frozen=True)
class Smec:
    """A training of ours.

    Attributes:
        changed: what its settings have different from the shared ones.
    """

    changed: Mapping[str, Any]

    def fit(self, data: TrainingData, config: TrainConfig) -> Fitted:
        """Trains the chain; see `smec_core.training.trainer.train`."""
        settings = TrainConfig.model_validate(config.model_dump() | dict(self.changed))
        trained = train(data, settings, NullTracker())
        training = trained.metrics["training"]
        return Fitted(
            lambda x_ND, dim: apply_chain(trained.stages, x_ND)[:, :dim], training["parameters"], training["steps"]
        )
