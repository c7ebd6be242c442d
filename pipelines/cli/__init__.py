"""The command `smec`: what it is told, made into the settings of a job."""

from pipelines.cli.main import app, main

__all__ = ["app", "main"]
