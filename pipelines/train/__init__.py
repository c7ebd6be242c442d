"""Trains a model on Ray Train: `smec train`, and what tuning, retraining and experiments train with."""

from pipelines.train.checkpoints import remove_checkpoints
from pipelines.train.fit import fit
from pipelines.train.job import Training, TrainingSettings, TrainSettings, run
from pipelines.train.scoring import (
    MAIN_MEASURE,
    Kept,
    Scored,
    as_finished,
    gain_interval,
    gains,
    train_and_score,
)
from pipelines.train.worker import Placed

__all__ = [
    "MAIN_MEASURE",
    "Kept",
    "Placed",
    "Scored",
    "TrainSettings",
    "Training",
    "TrainingSettings",
    "as_finished",
    "fit",
    "gain_interval",
    "gains",
    "remove_checkpoints",
    "run",
    "train_and_score",
]
