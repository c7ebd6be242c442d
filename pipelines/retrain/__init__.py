"""Cycles of retraining on a schedule, and the way back: `smec retrain` and `smec rollback`."""

from pipelines.retrain.job import run
from pipelines.retrain.settings import RetrainSettings

__all__ = ["RetrainSettings", "run"]
