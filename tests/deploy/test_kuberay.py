"""deploy/kuberay: what Kubernetes, KubeRay, Ray Serve and this project read in it."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.serve.settings import ApplicationSettings
from pipelines.submit.bundle import parse_command
from tests.deploy.kuberay import misspelt, problems

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "deploy/kuberay"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def _one(name: str) -> dict[str, Any]:
    [document] = _documents(name)
    return document


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    spec: dict[str, Any] = _one("rayservice.yaml")["spec"]
    return spec


@pytest.fixture(scope="module")
def retrain() -> dict[str, Any]:
    spec: dict[str, Any] = _one("rayjob.yaml")["spec"]
    return spec


@pytest.fixture(scope="module")
def cron() -> dict[str, Any]:
    [spec] = [document["spec"] for document in _documents("cronjob.yaml") if document["kind"] == "CronJob"]
    return dict(spec)


def _clusters() -> dict[str, dict[str, Any]]:
    return {
        "raycluster.yaml": _one("raycluster.yaml")["spec"],
        "rayjob.yaml": _one("rayjob.yaml")["spec"]["rayClusterSpec"],
        "rayservice.yaml": _one("rayservice.yaml")["spec"]["rayClusterConfig"],
    }


CLUSTERS = pytest.mark.parametrize("cluster_spec", _clusters().values(), ids=_clusters().keys())


def _groups(cluster_spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield cluster_spec["headGroupSpec"]
    yield from cluster_spec["workerGroupSpecs"]


@pytest.mark.parametrize("name", FILES)
def test_kubernetes_and_kuberay_take_all_of_it(name: str) -> None:
    for document in _documents(name):
        assert not problems(document)


@pytest.mark.parametrize("name", FILES)
def test_a_slip_of_the_pen_is_found_wherever_it_is(name: str) -> None:
    """Kubernetes drops fields that it does not know, without a word."""
    for document in _documents(name):
        slips = dict(misspelt(document))
        assert slips
        assert not [place for place, wrong in slips.items() if not problems(wrong)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("authOptions.mode", "tokens"),
        ("rayVersion", 2.6),
        ("enableInTreeAutoscaling", "true"),
        ("headGroupSpec.rayStartParams.num-cpus", 0),
        ("headGroupSpec.template.spec.containers", {}),
        ("autoscalerOptions.resources.limits", ["1Gi"]),
        ("workerGroupSpecs.0.maxReplicas", "4"),
    ],
)
def test_a_value_of_the_wrong_kind_is_found(path: str, value: object) -> None:
    cluster = _one("raycluster.yaml")
    *steps, last = path.split(".")
    place: Any = cluster["spec"]
    for step in steps:
        place = place[int(step)] if step.isdecimal() else place[step]
    place[last] = value

    assert [problem for problem in problems(cluster) if problem.startswith(f"spec.{path}")]


@CLUSTERS
def test_it_runs_the_pinned_ray(cluster_spec: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster_spec["rayVersion"] == pinned[1]


@CLUSTERS
def test_the_token_and_all_passwords_come_from_secrets(cluster_spec: dict[str, Any]) -> None:
    assert cluster_spec["authOptions"] == {"mode": "token", "secretName": "smec-ray-token"}
    for group in _groups(cluster_spec):
        for container in group["template"]["spec"]["containers"]:
            for variable in container.get("env", []):
                assert not re.search(r"(?i)token|password|secret|key", variable["name"]) or "valueFrom" in variable
                assert "@" not in variable.get("value", "")


@CLUSTERS
def test_nothing_runs_as_root(cluster_spec: dict[str, Any]) -> None:
    for group in _groups(cluster_spec):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


@CLUSTERS
def test_every_container_says_what_it_needs_and_mounts_what_its_pod_has(cluster_spec: dict[str, Any]) -> None:
    for group in _groups(cluster_spec):
        [container] = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        # more memory than asked for is the first that a full node takes away
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_retraining_runs_on_the_same_machines_as_what_is_submitted(retrain: dict[str, Any]) -> None:
    assert retrain["rayClusterSpec"] == _one("raycluster.yaml")["spec"]


def test_smec_accepts_the_entrypoint_and_every_machine_mounts_its_files(retrain: dict[str, Any]) -> None:
    program, *command = shlex.split(retrain["entrypoint"])
    assert program == "smec"
    config = str(parse_command(command)["config"])
    for group in _groups(retrain["rayClusterSpec"]):
        [container] = group["template"]["spec"]["containers"]
        assert any(config.startswith(f"{mount['mountPath']}/") for mount in container["volumeMounts"])


def test_nothing_is_tried_again_before_the_next_night(retrain: dict[str, Any], cron: dict[str, Any]) -> None:
    job = cron["jobTemplate"]["spec"]
    # KubeRay keeps to the time to live only where it shuts down at all
    assert retrain["shutdownAfterJobFinishes"]
    assert retrain["backoffLimit"] == job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert cron["concurrencyPolicy"] == "Forbid"
    assert job["activeDeadlineSeconds"] > retrain["activeDeadlineSeconds"]


def test_the_cron_job_may_do_what_it_does_and_no_more(cron: dict[str, Any]) -> None:
    by_kind = {document["kind"]: document for document in _documents("cronjob.yaml")}
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    name = _one("rayjob.yaml")["metadata"]["name"]
    assert pod["serviceAccountName"] == by_kind["ServiceAccount"]["metadata"]["name"]
    assert by_kind["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": pod["serviceAccountName"]}]
    assert by_kind["RoleBinding"]["roleRef"]["name"] == by_kind["Role"]["metadata"]["name"]
    create, rest = by_kind["Role"]["rules"]
    assert create["verbs"] == ["create"]
    assert rest["resourceNames"] == [name]
    for rule in (create, rest):
        assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])
    [container] = pod["containers"]
    assert set(re.findall(r"rayjob ([\w-]+)", container["args"][0])) == {name}


# kubectl needs a cluster. This one keeps a job as a file of the states that it goes through, one for each look at it.
KUBECTL = """#!/bin/sh
set -eu
echo "$1" >> calls
case "$*" in
    *"-o name") if [ -e job ]; then echo rayjob/smec-retrain; fi ;;
    get*message*) echo "the message" ;;
    get*) if [ -e job ]; then head -n 1 job; if [ "$(wc -l < job)" -gt 1 ]; then sed -i 1d job; fi; fi ;;
    delete*) rm job ;;
    create*) if [ -e job ]; then echo AlreadyExists >&2; exit 1; fi; cp next job ;;
esac
"""


@pytest.mark.parametrize(
    ("before", "after", "code", "changes"),
    [
        (None, "Initializing Running Complete", 0, ["create"]),
        (None, "Running Failed", 1, ["create"]),
        ("Complete", "Running Complete", 0, ["delete", "create"]),
        ("Failed", "Running Complete", 0, ["delete", "create"]),
        ("Running Running Running Complete", None, 0, []),
        ("Running Failed", None, 1, []),
    ],
)
def test_the_cron_job_replaces_an_ended_job_waits_for_a_running_one_and_ends_as_it_ends(
    cron: dict[str, Any], tmp_path: Path, before: str | None, after: str | None, code: int, changes: list[str]
) -> None:
    for name, script in {"kubectl": KUBECTL, "sleep": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    for file, states in {"job": before, "next": after}.items():
        if states is not None:
            (tmp_path / file).write_text("\n".join(states.split()) + "\n")
    [container] = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]

    ended = subprocess.run(
        [*container["command"], *container["args"]],
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
    )

    assert ended.returncode == code, ended.stderr
    assert ended.stdout.splitlines()[-1] == f"{'Failed' if code else 'Complete'}: the message"
    assert [call for call in (tmp_path / "calls").read_text().split() if call != "get"] == changes


def test_serve_and_the_application_accept_its_config(service: dict[str, Any]) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray Serve is not installed (extra: serve)")
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
