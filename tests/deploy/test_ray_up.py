"""`ray up cluster.yaml`, as README.md has it, on an AWS that moto plays.

All that `ray up` asks of AWS is real, and so are the commands that it sends to the head. From there on nothing is: the
command that stands for ssh writes down what it is given, and answers what Docker would. No machine starts, and no image
is pulled.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.scripts.scripts import down, up

from tests.deploy.job_cluster import REPOSITORY

pytestmark = pytest.mark.ray

REGION = "us-west-2"
# What a new machine with Docker answers. `docker run` starts the container.
STANDS_FOR_SSH = """#!{python}
import json, pathlib, sys
calls = pathlib.Path({calls!r})
before = calls.read_text() if calls.exists() else ""
with calls.open("a") as log:
    print(json.dumps([{program!r}, *sys.argv[1:]]), file=log)
asked = sys.argv[-1]
if "State.Running" in asked:
    print("true" if "docker run" in before else "false")
elif "Config.Env" in asked:
    print(json.dumps(["HOME=/home/ray"]))
elif "printenv HOME" in asked:
    print("/home/ray")
elif "command -v docker" in asked:
    print("/usr/bin/docker")
elif "/proc/meminfo" in asked:
    print("MemAvailable: 15000000 kB")
"""


class Launch(NamedTuple):
    """What `ray up` did."""

    host: list[str]
    """Commands on the machine itself, in their order."""
    container: list[str]
    """Commands in the head's container, in their order."""
    copied: dict[str, str]
    """Files and folders that were sent, by the end of their path on the machine."""
    spec: dict[str, Any]
    """cluster.yaml with what was made on AWS: the autoscaler's config on the head."""


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """`ray up` in a clone in which `make wheel` has run, for someone who has a token and no key pair."""
    home, clone = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("clone")
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("a" * 64)
    shutil.copy(REPOSITORY / "cluster.yaml", clone)
    (clone / "dist").mkdir()
    (clone / "dist/smec_ray-0.1.0-py3-none-any.whl").touch()
    shutil.copy(REPOSITORY / "constraints.txt", clone / "dist")
    (home / "bin").mkdir()
    for program in ("ssh", "rsync"):
        script = STANDS_FOR_SSH.format(python=sys.executable, calls=str(home / "calls"), program=program)
        (home / "bin" / program).write_text(script)
        (home / "bin" / program).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(home))
        patch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
        patch.chdir(clone)
        # half a minute, in which a new role becomes known all over AWS
        patch.setattr(aws_config, "time", SimpleNamespace(sleep=lambda seconds: None))
        up.main(["cluster.yaml", "--yes", "--no-config-cache"], standalone_mode=False)
        calls = [json.loads(line) for line in (home / "calls").read_text().splitlines()]
        yield _read(calls)


def _read(calls: list[list[str]]) -> Launch:
    launch = Launch([], [], {}, {})
    for program, *arguments in calls:
        if program == "rsync":
            source, target = arguments[-2:]
            launch.copied[target.rpartition("/~/")[2]] = source
            if target.endswith("ray_bootstrap_config.yaml"):
                launch.spec.update(json.loads(Path(source).read_text()))
            continue
        # ssh hands a shell on the machine one quoted argument: source ~/.bashrc; export ... && (COMMAND)
        [script] = shlex.split(arguments[-1])
        command = script.partition(" && (")[2].removesuffix(")")
        if command.startswith("docker exec") and "printenv" not in command:
            # docker exec smec /bin/bash -c 'bash --login -c -i '"'"'source ~/.bashrc; export ... && (COMMAND)'"'"''
            [script] = shlex.split(shlex.split(command)[-1])[-1:]
            launch.container.append(script.partition(" && (")[2].removesuffix(")"))
        else:
            launch.host.append(command)
    return launch


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    return content


def _machines() -> dict[str, dict[str, Any]]:
    """Running machines by their node type."""
    described = boto3.client("ec2", REGION).describe_instances()["Reservations"]
    machines = [machine for reservation in described for machine in reservation["Instances"]]
    tags = {machine["InstanceId"]: {tag["Key"]: tag["Value"] for tag in machine["Tags"]} for machine in machines}
    return {
        tags[machine["InstanceId"]]["ray-user-node-type"]: machine
        for machine in machines
        if machine["State"]["Name"] in ("pending", "running")
    }


def test_it_sends_the_wheel_and_the_token(launch: Launch) -> None:
    assert launch.copied["smec/"] == "dist/"
    assert launch.copied[".ray/auth_token"].endswith("/.ray/auth_token")


def test_the_machine_mounts_the_shared_disk_before_its_container_starts(
    launch: Launch, written: dict[str, Any]
) -> None:
    [run] = [command for command in launch.host if command.startswith("docker run")]
    wanted = [*written["initialization_commands"], f"docker pull {written['docker']['image']}", run]
    assert [command for command in launch.host if command in wanted] == wanted
    assert f" {written['docker']['image']} " in run
    assert " -v /shared:/shared " in run
    assert ":/home/ray/smec " in run
    assert ":/home/ray/.ray/auth_token " in run
    assert "--shm-size=" in run


def test_the_container_installs_this_project_then_starts_ray_with_the_token(launch: Launch) -> None:
    install, boto, stop, start = [re.split("; (?=ray )", command)[-1] for command in launch.container[-4:]]
    assert install.endswith("-c /home/ray/smec/constraints.txt /home/ray/smec/*.whl")
    # by Ray itself: the autoscaler on the head starts the workers
    assert "boto3" in boto
    assert stop == "ray stop"
    assert "RAY_AUTH_MODE=token ray start --head" in start
    assert start.endswith("--autoscaling-config=/home/ray/ray_bootstrap_config.yaml")


def test_a_shell_can_read_every_command(launch: Launch, written: dict[str, Any]) -> None:
    kinds = written["available_node_types"].values()
    workers = [
        *written["worker_start_ray_commands"],
        *(c for kind in kinds for c in kind.get("worker_setup_commands", [])),
    ]
    for command in [*launch.host, *launch.container, *workers]:
        read = subprocess.run(["bash", "-n", "-c", command], text=True, capture_output=True)
        assert read.returncode == 0, f"{command}: {read.stderr}"


def test_only_ssh_is_open_to_the_world(launch: Launch) -> None:
    ec2 = boto3.client("ec2", REGION)
    [group] = ec2.describe_security_groups(GroupNames=["ray-autoscaler-smec"])["SecurityGroups"]
    within, ssh = sorted(group["IpPermissions"], key=lambda rule: bool(rule["IpRanges"]))
    assert [pair["GroupId"] for pair in within["UserIdGroupPairs"]] == [group["GroupId"]]
    assert (ssh["FromPort"], ssh["ToPort"]) == (22, 22)
    assert _machines()["head"]["SecurityGroups"] == [{"GroupName": group["GroupName"], "GroupId": group["GroupId"]}]


def test_the_head_may_start_machines_and_read_the_bucket(launch: Launch) -> None:
    profile = boto3.client("iam").get_instance_profile(InstanceProfileName="ray-autoscaler-v1")["InstanceProfile"]
    assert _machines()["head"]["IamInstanceProfile"]["Arn"] == profile["Arn"]
    attached = boto3.client("iam").list_attached_role_policies(RoleName=profile["Roles"][0]["RoleName"])
    assert {"AmazonEC2FullAccess", "AmazonS3FullAccess"} == {
        policy["PolicyName"] for policy in attached["AttachedPolicies"]
    }


def test_the_autoscaler_starts_workers_from_what_the_head_was_given_and_ray_down_ends_all(
    launch: Launch, written: dict[str, Any]
) -> None:
    provider = AWSNodeProvider(launch.spec["provider"], launch.spec["cluster_name"])
    config = AutoscalingConfig(launch.spec, skip_content_hash=True)
    for kind in ("worker", "gpu-worker"):
        tags = {"ray-node-type": "worker", "ray-user-node-type": kind}
        provider.create_node(config.get_cloud_node_config(kind), tags, 1)

    machines = _machines()
    wanted = {kind: settings["node_config"] for kind, settings in written["available_node_types"].items()}
    assert {kind: machine["InstanceType"] for kind, machine in machines.items()} == {
        kind: settings["InstanceType"] for kind, settings in wanted.items()
    }
    assert [kind for kind, machine in machines.items() if machine.get("InstanceLifecycle") == "spot"] == ["gpu-worker"]
    volumes = boto3.client("ec2", REGION).describe_volumes()["Volumes"]
    assert sorted((volume["Size"], volume["VolumeType"]) for volume in volumes) == [(150, "gp3")] * 3

    down.main(["cluster.yaml", "--yes"], standalone_mode=False)
    assert not _machines()
