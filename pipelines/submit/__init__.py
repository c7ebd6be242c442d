"""Runs a command of smec as a job of a Ray cluster: `smec submit`."""

from pipelines.submit.job import SubmitSettings, run

__all__ = ["SubmitSettings", "run"]
