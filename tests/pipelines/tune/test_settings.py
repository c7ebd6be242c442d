"""What `smec tune` takes, and what it says of that."""

import pytest
from click.testing import CliRunner

from pipelines.cli.main import app
from pipelines.cli.settings import resolve
from pipelines.tune.settings import TuneSettings
from smec_core.errors import InputError

NEEDED = {"data": "data", "dims": "8", "space": "quick", "out": "out"}


def _help() -> str:
    printed = CliRunner().invoke(app, ["tune", "--help"], terminal_width=1000, max_content_width=1000).stdout
    return " ".join(printed.split())


def test_the_help_names_the_place_of_studies() -> None:
    printed = _help()
    assert "where studies keep their state; default: OUT/.smec-study." in printed
    assert ".smec-runs" not in printed


def test_a_study_waits_for_no_gpus() -> None:
    with pytest.raises(InputError, match="gpu: a study needs its GPUs to be there and waits for none; must be auto"):
        resolve(TuneSettings, {**NEEDED, "gpu": "wait"})
    assert "--gpu auto|on|off " in _help()
    for gpu in ("auto", "on", "off"):
        assert resolve(TuneSettings, {**NEEDED, "gpu": gpu}).cluster().gpu == gpu
