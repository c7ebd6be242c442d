"""cluster.yaml, read as Ray's cluster launcher reads it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def launched() -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` does it."""
    return prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))


def test_ray_accepts_it(launched: dict[str, Any]) -> None:
    validate_config(launched)


def test_machines_run_the_pinned_ray(launched: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert launched["docker"]["image"].startswith(f"rayproject/ray:{pinned[1]}-")


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_ray_start_asks_for_the_token(launched: dict[str, Any], role: str) -> None:
    starts = [command for command in launched[f"{role}_start_ray_commands"] if "ray start" in command]
    assert starts
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "~/.ray/auth_token" in launched["file_mounts"]


def test_setup_installs_this_project_with_its_pins(launched: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        assert any("-c ~/smec/constraints.txt ~/smec/*.whl" in line for line in launched[f"{role}_setup_commands"])
