"""deploy/kuberay/rayservice.yaml: what Ray Serve, and this project, read in it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.serve import ApplicationSettings

schema = pytest.importorskip("ray.serve.schema", reason="Ray Serve is not installed (extra: serve)")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy/kuberay/rayservice.yaml").read_text())["spec"]
    return spec


def test_serve_and_the_application_accept_its_config(service: dict[str, Any]) -> None:
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    [application] = config.applications
    assert application.import_path == "pipelines.serve:app"
    settings = ApplicationSettings.model_validate(application.args)
    [workers] = service["rayClusterConfig"]["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["containers"]
    room = workers["minReplicas"] * int(container["resources"]["limits"]["cpu"])
    assert room >= (settings.replicas + 1) * settings.threads, "an update waits for the room of one more replica"
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(settings.model.startswith(f"{mount}/") for mount in mounts)


def test_it_runs_the_pinned_ray(service: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert service["rayClusterConfig"]["rayVersion"] == pinned[1]
