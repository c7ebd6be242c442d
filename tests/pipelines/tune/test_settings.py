"""What `smec tune` takes, and what it says of that."""

from click.testing import CliRunner

from pipelines.cli.main import app


def _help() -> str:
    printed = CliRunner().invoke(app, ["tune", "--help"], terminal_width=1000, max_content_width=1000).stdout
    return " ".join(printed.split())


def test_the_help_names_the_place_of_studies() -> None:
    printed = _help()
    assert "where studies keep their state; default: OUT/.smec-study." in printed
    assert ".smec-runs" not in printed
