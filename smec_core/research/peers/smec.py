"""SMEC itself as one of the compared methods, by default, as published, or with other settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smec_core.config import TrainConfig
from smec_core.model.adapter import apply_chain
from smec_core.research.peers.peer import Fitted
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import TrainingData, train


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
