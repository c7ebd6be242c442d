"""cluster.yaml, read as Ray's cluster launcher reads it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def launched() -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` does it."""
    return prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def autoscaler() -> AutoscalingConfig:
    """The file as Ray's autoscaler reads it on the head."""
    written = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    return AutoscalingConfig(written, skip_content_hash=True)


def test_ray_accepts_it(launched: dict[str, Any]) -> None:
    validate_config(launched)


def test_machines_run_the_pinned_ray(launched: dict[str, Any], autoscaler: AutoscalingConfig) -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    for kind in launched["available_node_types"]:
        image = autoscaler.get_docker_config(kind)["image"]
        assert image.startswith(f"rayproject/ray:{pinned[1]}-py311-")
        assert image.endswith("-gpu" if kind == "gpu-worker" else "-cpu")


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_ray_start_asks_for_the_token(launched: dict[str, Any], role: str) -> None:
    starts = [command for command in launched[f"{role}_start_ray_commands"] if "ray start" in command]
    assert starts
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "~/.ray/auth_token" in launched["file_mounts"]


def test_setup_installs_this_project_with_its_pins_and_cuda_only_where_there_is_a_gpu(
    launched: dict[str, Any], autoscaler: AutoscalingConfig
) -> None:
    setup = {kind: autoscaler.get_worker_setup_commands(kind) for kind in ("worker", "gpu-worker")}
    for kind, commands in (setup | {"head": launched["head_setup_commands"]}).items():
        [install] = [command for command in commands if "~/smec/" in command]
        assert "pip install" in install
        assert "-c ~/smec/constraints.txt ~/smec/*.whl" in install
        assert ("https://download.pytorch.org/whl/cpu" in install) == (kind != "gpu-worker")


def test_make_wheel_leaves_what_the_machines_install(launched: dict[str, Any]) -> None:
    assert launched["file_mounts"]["~/smec"] == "dist"
    recipe = subprocess.run(["make", "-n", "wheel"], cwd=REPOSITORY, text=True, capture_output=True, check=True).stdout
    assert re.search(r"pip wheel .*--no-deps .*--wheel-dir dist \.$", recipe, re.MULTILINE)
    assert "cp constraints.txt dist/\n" in recipe


def test_aws_takes_the_machines(launched: dict[str, Any]) -> None:
    request = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in launched["available_node_types"].values():
        found = ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, request)
        assert not found.has_errors(), found.generate_report()


def test_gpu_workers_are_spot_machines_and_none_is_kept(launched: dict[str, Any]) -> None:
    kinds = launched["available_node_types"]
    assert kinds["gpu-worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert kinds["gpu-worker"]["min_workers"] == kinds["worker"]["min_workers"] == 0
    assert kinds["gpu-worker"]["max_workers"] <= launched["max_workers"]
