"""Whether `smec retrain` is there; to be removed with the last who asks."""

import pytest
import typer

from pipelines.cli import app


def need_retrain() -> None:
    """Skips the test where this version has no `smec retrain`."""
    if "retrain" not in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        pytest.skip("this version has no smec retrain")
