"""What a cluster gets of the project's code, and what an installed package has: all that the code loads."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from pipelines.submit.bundle import PACKAGES, check_command, write_bundle
from smec_core.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the packages."""
    listed = subprocess.run(["git", "ls-files", "-z", *PACKAGES], cwd=REPOSITORY, capture_output=True, check=True)
    return {name for name in listed.stdout.decode().split("\0") if name and (REPOSITORY / name).is_file()}


def test_a_cluster_gets_every_file_of_the_packages(tracked: set[str], tmp_path: Path) -> None:
    write_bundle(["check", "/data"], tmp_path)
    sent = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert "pipelines/serve/templates/docs.css" in tracked
    assert tracked - sent == set()


def test_an_installed_package_has_every_file(tracked: set[str]) -> None:
    configured = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert configured.keys() == {"*"}
    # patterns hold within each package
    folders = {(REPOSITORY / name).parent for name in tracked if name.endswith("/__init__.py")}
    found = {path for folder in folders for pattern in configured["*"] for path in folder.glob(pattern)}
    data = {name for name in tracked if not name.endswith(".py")}
    assert data - {path.relative_to(REPOSITORY).as_posix() for path in found} == set()


def test_a_comma_parts_the_data_of_experiments_alone(tmp_path: Path) -> None:
    check_command(["train", "--data", "/data/a,b", "--dims", "8", "--out", "/out"])
    check_command(["experiment", "compare", "--data", "/data/a,/data/b", "--out", "/out"])
    config = tmp_path / "experiment.yaml"
    config.write_text("data: [/data/a, b]")
    for command in (["--data", "/data/a,b"], ["--config", str(config)]):
        with pytest.raises(InputError, match="smec experiment: b is relative"):
            check_command(["experiment", "compare", *command, "--out", "/out"])
