"""Searches settings of the method on Ray Tune: `smec tune`."""

from pipelines.tune.job import run
from pipelines.tune.settings import TuneSettings

__all__ = ["TuneSettings", "run"]
