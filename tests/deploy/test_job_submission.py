"""A training submitted with `ray job submit`, as README.md shows it, to a cluster that asks for a token."""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.builders import write_dataset

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 120


class Cluster(NamedTuple):
    """A running cluster and the environment in which a client may use it."""

    head: "subprocess.Popen[bytes]"
    log: Path
    dashboard: str
    client_env: dict[str, str]

    def submit(
        self, *command: str, options: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        assert self.head.poll() is None, f"the cluster has ended:\n{self.log.read_text()}"
        ray = Path(sys.executable).parent / "ray"
        return subprocess.run(
            [ray, "job", "submit", "--address", self.dashboard, "--working-dir", ".", *options, "--", *command],
            env=self.client_env if env is None else env,
            cwd=REPOSITORY,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node of its own ports, folder and token; other clusters on this machine are not touched."""
    # Ray puts sockets under its folder, and their paths must stay short: tmp_path would be too long
    with tempfile.TemporaryDirectory(prefix="smec-", ignore_cleanup_errors=True) as folder:
        port, dashboard, agent, client = _free_ports(4)
        command = ["start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}/ray", f"--port={port}"]
        command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
        binaries = Path(sys.executable).parent
        env = {
            **_without_token(os.environ, home=folder),
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        head_log = Path(folder) / "head.log"
        with head_log.open("w") as log:
            head = subprocess.Popen(
                [binaries / "ray", *command], env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        cluster = Cluster(head, head_log, f"http://127.0.0.1:{dashboard}", env)
        try:
            _wait_for_jobs_api(cluster)
            yield cluster
        finally:
            # `ray stop` would end every Ray process on the machine; these are the ones started here. Workers, in groups
            # of their own, end when their raylet is gone.
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system hands out, so that nothing else gets one by chance before Ray takes it."""
    free: list[int] = []
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            free.append(port)
    return free[:count]


def _without_token(env: os._Environ[str] | dict[str, str], home: str) -> dict[str, str]:
    """An environment in which Ray finds no token, neither by variable nor in the home folder."""
    return {**{name: value for name, value in env.items() if not name.startswith("RAY_AUTH_")}, "HOME": home}


def _wait_for_jobs_api(cluster: Cluster) -> None:
    token = cluster.client_env["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and cluster.head.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the cluster did not start:\n{cluster.log.read_text()}")


@pytest.mark.parametrize("token", [None, "f" * 32], ids=["no token", "a wrong token"])
def test_a_client_that_cannot_show_the_token_is_refused(cluster: Cluster, tmp_path: Path, token: str | None) -> None:
    env = _without_token(cluster.client_env, home=str(tmp_path))
    if token is not None:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    marker = tmp_path / "ran"

    submitted = cluster.submit("touch", str(marker), env=env)

    assert submitted.returncode != 0
    assert "AuthenticationError" in submitted.stdout
    assert not marker.exists()


def test_a_submitted_training_stores_its_model_and_records_its_run(cluster: Cluster, tmp_path: Path) -> None:
    data, model, tracking = write_dataset(tmp_path / "data"), tmp_path / "model", tmp_path / "mlflow.db"
    variables = {"env_vars": {"MLFLOW_TRACKING_URI": f"sqlite:///{tracking}"}}

    submitted = cluster.submit(
        *_train(data, model, "--workers", "2"), options=["--runtime-env-json", json.dumps(variables)]
    )

    assert submitted.returncode == 0, submitted.stdout
    assert {"adapter.safetensors", "config.json", "metrics.json"} <= {file.name for file in model.iterdir()}
    assert tracking.exists()


def test_a_submitted_training_that_fails_says_why_and_fails_the_job(cluster: Cluster, tmp_path: Path) -> None:
    submitted = cluster.submit(*_train(tmp_path / "nothing", tmp_path / "model"))

    assert submitted.returncode != 0
    assert "failed with exit code 2" in submitted.stdout
    [reason] = {line for line in submitted.stdout.splitlines() if line.startswith("smec: ")}
    assert str(tmp_path / "nothing") in reason
    assert "Traceback" not in submitted.stdout


def _train(data: Path, model: Path, *options: str) -> list[str]:
    command = ["python", "-m", "pipelines.cli", "train", "--data", str(data), "--dims", "8,4", "--out", str(model)]
    return [*command, "--storage", str(model.parent / "runs"), "--set", "epochs=1", *options]
