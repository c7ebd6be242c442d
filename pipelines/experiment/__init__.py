"""The paper's experiments on any dataset: `smec experiment`."""

from pipelines.experiment.job import ExperimentSettings, run

__all__ = ["ExperimentSettings", "run"]
