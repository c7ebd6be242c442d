"""Embeds text with judgements into a dataset: `smec ingest`."""

from pipelines.ingest.job import IngestSettings, run

__all__ = ["IngestSettings", "run"]
