"""Writes a model in the formats of other tools: `smec export`."""
