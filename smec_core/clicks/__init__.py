"""Relevance judgements from a log of clicks."""
