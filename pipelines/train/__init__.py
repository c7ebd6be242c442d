"""Trains a model on Ray Train: `smec train`, and what tuning, retraining and experiments train with."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipelines.train.settings import TrainingSettings, TrainSettings

if TYPE_CHECKING:
    from pipelines.train.checkpoints import remove_checkpoints
    from pipelines.train.driver import RayRun
    from pipelines.train.in_python import fit
    from pipelines.train.job import Training, run
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

_HOMES = {
    "checkpoints": ["remove_checkpoints"],
    "driver": ["RayRun"],
    "in_python": ["fit"],
    "job": ["Training", "run"],
    "scoring": ["MAIN_MEASURE", "Kept", "Scored", "as_finished", "gain_interval", "gains", "train_and_score"],
    "worker": ["Placed"],
}
__all__ = [
    "MAIN_MEASURE",
    "Kept",
    "Placed",
    "RayRun",
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


def __getattr__(name: str) -> Any:
    # the settings, which --help reads, need neither Ray nor torch
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(name)
