"""cluster.yaml, read as Ray's cluster launcher reads it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` does it."""
    return prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_machines_run_the_pinned_ray(cluster: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{pinned[1]}-")


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_ray_start_asks_for_the_token(cluster: dict[str, Any], role: str) -> None:
    starts = [command for command in cluster[f"{role}_start_ray_commands"] if "ray start" in command]
    assert starts
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_setup_installs_this_project_with_its_pins(cluster: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        assert any("-c ~/smec/constraints.txt ~/smec/*.whl" in line for line in cluster[f"{role}_setup_commands"])
