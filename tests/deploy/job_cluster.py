"""A real Ray cluster that asks for a token, and `smec` as a user of that cluster calls it."""

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobSubmissionClient

from tests.kills import take_interrupts

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 120


class Cluster(NamedTuple):
    """A running cluster and the environment in which a client may use it."""

    head: "subprocess.Popen[bytes]"
    folder: Path
    """Where Ray keeps its files, and the head its log."""
    address: str
    """For RAY_ADDRESS of processes on this machine, HOST:PORT."""
    dashboard: str
    """For job submission, http://HOST:PORT."""
    agent: str
    """The head's own agent, http://HOST:PORT; every node has one."""
    client_env: dict[str, str]

    def submit(
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, address: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `smec submit` to its end, with what follows it on the command line."""
        process = self.start_submit(*arguments, cwd=cwd, env=env, address=address)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def start_submit(
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, address: str | None = None
    ) -> "subprocess.Popen[str]":
        """Starts `smec submit` in a folder that is not this repository."""
        assert self.head.poll() is None, f"the cluster has ended:\n{self.log()}"
        command = [sys.executable, "-m", "pipelines.cli", "submit", "--address", address or self.dashboard, *arguments]
        return subprocess.Popen(
            command,
            env={**(self.client_env if env is None else env), "PYTHONPATH": str(REPOSITORY)},
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=take_interrupts,
        )

    def jobs(self) -> dict[str, JobDetails]:
        """All submitted jobs by their id."""
        return {job.submission_id: job for job in self.client().list_jobs() if job.submission_id}

    def client(self) -> JobSubmissionClient:
        """Ray's own client of its jobs."""
        token = self.client_env["RAY_AUTH_TOKEN"]
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
            return JobSubmissionClient(self.dashboard, headers={"Authorization": f"Bearer {token}"})

    def log(self) -> str:
        """What the head has printed."""
        return (self.folder / "head.log").read_text()


@contextmanager
def start_cluster() -> Iterator[Cluster]:
    """A head node of its own ports, folder and token; other clusters on this machine are not touched."""
    # Ray puts sockets under its folder, and their paths must stay short: tmp_path would be too long
    with tempfile.TemporaryDirectory(prefix="smec-", ignore_cleanup_errors=True) as folder:
        port, dashboard, agent, client = _free_ports(4)
        command = ["start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}/ray", f"--port={port}"]
        command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
        binaries = Path(sys.executable).parent
        env = {
            **without_token(os.environ, home=folder),
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        with (Path(folder) / "head.log").open("w") as log:
            head = subprocess.Popen(
                [binaries / "ray", *command], env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        cluster = Cluster(
            head, Path(folder), f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{agent}", env
        )
        try:
            _wait_for_jobs_api(cluster)
            yield cluster
        finally:
            # `ray stop` would end every Ray process on the machine; these are the ones started here. Workers, in groups
            # of their own, end when their raylet is gone.
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def without_token(env: Mapping[str, str], home: str) -> dict[str, str]:
    """An environment in which Ray finds no token, neither by variable nor in the home folder."""
    return {**{name: value for name, value in env.items() if not name.startswith("RAY_AUTH_")}, "HOME": home}


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system hands out, so that nothing else gets one by chance before Ray takes it."""
    free: list[int] = []
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            free.append(port)
    return free[:count]


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
    pytest.fail(f"the cluster did not start:\n{cluster.log()}")
