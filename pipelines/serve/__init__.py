"""Encodes queries over HTTP, on Ray Serve: `smec serve`."""

from pipelines.serve.job import ServeSettings, app, run

__all__ = ["ServeSettings", "app", "run"]
