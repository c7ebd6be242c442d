"""Writes a model in the formats of other tools: `smec export`."""

from pipelines.export.job import ExportSettings, run

__all__ = ["ExportSettings", "run"]
