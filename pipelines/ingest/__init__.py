"""Embeds text with judgements into a dataset: `smec ingest`."""
