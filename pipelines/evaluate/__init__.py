"""Scores a model, or whole searches with it in a vector store: `smec evaluate`."""

from pipelines.evaluate.job import run
from pipelines.evaluate.settings import EvaluateSettings

__all__ = ["EvaluateSettings", "run"]
