"""`smec submit` to a real cluster that asks for a token."""

import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipelines.storage.lease import Lease
from pipelines.storage.run_folder import RunFolder
from pipelines.submit.bundle import write_bundle
from tests.builders import write_dataset
from tests.deploy.job_cluster import REPOSITORY, Cluster, without_token
from tests.deploy.relay import Relay
from tests.kills import Process, descendants

pytestmark = pytest.mark.ray

WAIT_SECONDS = 300  # until something has hung, on a busy machine


class Gate:
    """A settings file on which a job waits until it is opened."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path

    def open(self) -> None:
        """Lets one job that reads the file go on; waits until there is one."""
        self.path.write_text("max_unknown: 0.5\n")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate.yaml")


@pytest.fixture
def check(tmp_path: Path, gate: Gate) -> list[str]:
    """A command that ends well once the gate is open, and only then."""
    return ["--", "check", str(write_dataset(tmp_path / "data")), "--config", str(gate.path)]


@pytest.fixture
def started() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Keeps submissions that run beside the test, and ends them after it."""
    processes: list[subprocess.Popen[str]] = []

    def keep(process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
        processes.append(process)
        return process

    yield keep
    for process in processes:
        process.kill()
        process.communicate()


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def _is_running(cluster: Cluster, job_id: str) -> Callable[[], bool]:
    return lambda: job_id in cluster.jobs() and cluster.jobs()[job_id].status.value == "RUNNING"


def _only_line(process: "subprocess.CompletedProcess[str]") -> str:
    [line] = process.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("token", [None, "f" * 32], ids=["no token", "a wrong token"])
def test_a_client_that_cannot_show_the_token_is_refused(cluster: Cluster, tmp_path: Path, token: str | None) -> None:
    env = without_token(cluster.client_env, home=str(tmp_path))
    if token is not None:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    before = cluster.jobs()

    refused = cluster.submit("--", "sample", str(tmp_path / "sample"), cwd=tmp_path, env=env)

    assert refused.returncode == 2
    assert "refuses the token" in _only_line(refused)
    assert token is None or token not in refused.stderr
    assert cluster.jobs().keys() == before.keys()


def test_the_pages_that_kubernetes_probes_need_no_token(cluster: Cluster) -> None:
    """KubeRay's probes of head and workers show none."""

    def is_healthy(page: str) -> bool:
        try:
            with urllib.request.urlopen(page, timeout=30) as answer:
                return b"success" in answer.read()
        except urllib.error.URLError as error:
            assert getattr(error, "code", None) not in (401, 403), page
            return False  # the agent starts after the dashboard

    for page in (f"{cluster.dashboard}/api/gcs_healthz", f"{cluster.agent}/api/local_raylet_healthz"):
        _until(partial(is_healthy, page), page)


def test_a_training_stores_its_model_and_records_its_run(cluster: Cluster, tmp_path: Path) -> None:
    data, model, tracking = write_dataset(tmp_path / "data"), tmp_path / "model", tmp_path / "mlflow.db"
    (tmp_path / "my settings.yaml").write_text("dims: [8, 4]\nepochs: 1\n")
    command = ["train", "--data", str(data), "--out", str(model), "--storage", str(tmp_path / "runs")]
    env = {**cluster.client_env, "MLFLOW_TRACKING_URI": f"sqlite:///{tracking}"}

    submitted = cluster.submit("--", *command, "--config", "my settings.yaml", "--workers", "2", cwd=tmp_path, env=env)

    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert {"adapter.safetensors", "config.json", "metrics.json"} <= {file.name for file in model.iterdir()}
    assert tracking.exists()


def test_only_code_and_the_named_files_are_sent(cluster: Cluster, tmp_path: Path) -> None:
    data, here = write_dataset(tmp_path / "data"), tmp_path / "here"
    here.mkdir()
    (here / "my settings.yaml").write_text("max_unknown: 0.5\n")
    (here / "secret.txt").write_text("not for the cluster")

    submitted = cluster.submit("--", "check", str(data), "--config=my settings.yaml", cwd=here)

    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    # where Ray has unpacked it on the cluster
    [file] = [
        path for path in cluster.folder.rglob("files/config/my settings.yaml") if "max_unknown" in path.read_text()
    ]
    unpacked = file.parents[2]
    sent = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "smec_core", "pipelines", "tune_spaces"]
    code = subprocess.run(listed, cwd=REPOSITORY, check=True, text=True, capture_output=True).stdout.splitlines()
    assert {name for name in sent if "__pycache__" not in name} == {*code, "files/config/my settings.yaml"}


def test_a_failing_command_gives_its_exit_code_and_one_reason(cluster: Cluster, tmp_path: Path) -> None:
    failed = cluster.submit("--", "check", str(tmp_path / "nothing"), cwd=tmp_path)

    assert failed.returncode == 2
    [reason] = {line for line in failed.stdout.splitlines() if line.startswith("smec: ")}
    assert str(tmp_path / "nothing") in reason
    assert "exit code 2" in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr


def test_arguments_arrive_as_they_are_and_no_shell_reads_them(cluster: Cluster, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hostile = f"/nowhere'; touch {ran}; echo \"$(touch {ran}) `touch {ran}` $HOME\n& touch {ran} &"

    failed = cluster.submit("--", "check", hostile, cwd=tmp_path)

    assert failed.returncode == 2
    assert hostile.splitlines()[0] in failed.stdout.split("smec: ")[1]
    assert not ran.exists()


def test_of_two_submissions_at_once_one_starts_the_job_and_both_follow_it(
    cluster: Cluster,
    tmp_path: Path,
    gate: Gate,
    check: list[str],
    started: Callable[..., "subprocess.Popen[str]"],
) -> None:
    before = cluster.jobs().keys()

    both = [started(cluster.start_submit(*check, cwd=tmp_path)) for _ in range(2)]
    _until(lambda: cluster.jobs().keys() - before, "a job")
    gate.open()

    results = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert all("fingerprint" in stdout for stdout, _ in results)
    [job_id] = cluster.jobs().keys() - before
    assert sorted("runs already" in stderr for _, stderr in results) == [False, True]

    # the next night: the same command once more
    again = started(cluster.start_submit(*check, cwd=tmp_path))
    gate.open()
    assert again.wait() == 0
    assert cluster.jobs().keys() - before == {job_id, f"{job_id}-2"}


def test_a_named_job_that_has_succeeded_is_not_run_again(
    cluster: Cluster, tmp_path: Path, gate: Gate, check: list[str], started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    name = "scheduled__2026-01-02T03:00:00+00:00"
    first = started(cluster.start_submit("--id", name, *check, cwd=tmp_path))
    gate.open()
    assert first.wait() == 0

    again = cluster.submit("--id", name, *check, cwd=tmp_path)

    assert again.returncode == 0
    assert "is done already" in again.stderr
    assert "fingerprint" in again.stdout
    other = cluster.submit("--id", name, "--", "sample", str(tmp_path / "sample"), cwd=tmp_path)
    assert other.returncode == 2
    assert "another command" in _only_line(other)
    assert [job for job in cluster.jobs() if job.startswith(name)] == [name]


def test_a_job_of_an_earlier_version_is_known_by_its_command(cluster: Cluster, tmp_path: Path) -> None:
    command = ["check", str(write_dataset(tmp_path / "data"))]
    (tmp_path / "bundle").mkdir()
    write_bundle(command, tmp_path / "bundle")
    client = cluster.client()
    client.submit_job(
        entrypoint=shlex.join(["python", "-m", "pipelines.cli", *command]),
        submission_id="before",
        metadata={"smec_id": "before"},
        runtime_env={"working_dir": str(tmp_path / "bundle")},
    )
    _until(lambda: client.get_job_status("before").is_terminal(), "the earlier job")

    again = cluster.submit("--id", "before", "--", *command, cwd=tmp_path)

    assert again.returncode == 0, again.stderr
    assert "job before is done already" in again.stderr


def test_the_code_that_is_sent_runs_where_no_command_smec_is_installed(cluster: Cluster, tmp_path: Path) -> None:
    data, path = write_dataset(tmp_path / "data"), tmp_path / "bin"
    path.mkdir()
    (path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (path / "python").chmod(0o755)
    # of an earlier version, as a machine may have it
    (path / "smec").write_text("#!/bin/sh\nexit 9\n")
    (path / "smec").chmod(0o755)

    done = cluster.submit("--env", f"PATH={path}:/usr/bin:/bin", "--", "check", str(data), cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    [entrypoint] = [job.entrypoint for job in cluster.jobs().values() if str(data) in job.entrypoint]
    assert entrypoint.startswith("python -m smec_core check ")


@pytest.mark.slow
def test_a_named_job_that_has_failed_is_run_again(cluster: Cluster, tmp_path: Path) -> None:
    command = ["--id", "night-1", "--", "check", str(tmp_path / "data")]
    assert cluster.submit(*command, cwd=tmp_path).returncode == 2
    write_dataset(tmp_path / "data")
    # a job whose own name is that of the next start
    assert cluster.submit("--id", "night-1-2", "--", "check", str(tmp_path / "data"), cwd=tmp_path).returncode == 0

    again = cluster.submit(*command, cwd=tmp_path)

    assert again.returncode == 0, again.stderr
    assert {"night-1", "night-1-2", "night-1-3"} <= cluster.jobs().keys()


def test_interrupting_leaves_the_job_running_and_stopping_it_fails_the_submission(
    cluster: Cluster, tmp_path: Path, gate: Gate, check: list[str], started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    first = started(cluster.start_submit("--id", "interrupted", *check, cwd=tmp_path))
    assert first.stdout is not None
    first.stdout.readline()  # the log is followed
    first.send_signal(signal.SIGINT)
    _, stderr = first.communicate()
    assert first.returncode == 130
    assert "ray job logs --follow" in stderr
    assert "ray job stop" in stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("smec: ended by SIGINT; no longer followed, job interrupted goes on")

    again = started(cluster.start_submit("--id", "interrupted", *check, cwd=tmp_path))
    _until(_is_running(cluster, "interrupted"), "the job")
    subprocess.run(["ray", "job", "stop", "--address", cluster.dashboard, "interrupted"], env=cluster.client_env)
    _, stderr = again.communicate()

    assert again.returncode == 1
    assert "was stopped" in stderr


def test_a_killed_command_fails_the_submission(
    cluster: Cluster, tmp_path: Path, gate: Gate, check: list[str], started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    submission = started(cluster.start_submit("--id", "killed", *check, cwd=tmp_path))
    _until(_is_running(cluster, "killed"), "the job")

    def command() -> list[Process]:
        return [process for process in descendants(cluster.head.pid) if str(gate.path) in process.title]

    _until(command, "its process")
    os.kill(command()[-1].pid, signal.SIGKILL)
    _, stderr = submission.communicate()

    assert submission.returncode == 1
    assert "ended with exit code" in stderr


def test_a_run_that_another_process_trains_gives_exit_code_4(cluster: Cluster, tmp_path: Path) -> None:
    data, storage, model = write_dataset(tmp_path / "data"), tmp_path / "runs", tmp_path / "model"
    command = ["train", "--data", str(data), "--dims", "8,4", "--out", str(model), "--storage", str(storage)]
    run_folder = RunFolder(str(storage), "nightly")
    run_folder.create()

    with Lease(run_folder, on_lost=lambda: None):
        refused = cluster.submit("--", *command, "--name", "nightly", cwd=tmp_path)

    assert refused.returncode == 4, refused.stdout + refused.stderr


def test_detached_it_prints_the_id_and_leaves(
    cluster: Cluster, tmp_path: Path, gate: Gate, check: list[str], started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    detached = cluster.submit("--detach", *check, cwd=tmp_path)

    assert detached.returncode == 0
    job_id = detached.stdout.strip()
    follower = started(cluster.start_submit(*check, cwd=tmp_path))
    _until(_is_running(cluster, job_id), "the job")
    gate.open()
    assert follower.wait() == 0


def test_the_environment_arrives_and_no_value_of_it_is_printed(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "data")
    env = {**cluster.client_env, "MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "MY_MODE": "hunter2"}

    submitted = cluster.submit(
        "--id", "with-env", "--env", "MY_MODE", "--env", "A=b=c", "--", "check", str(data), cwd=tmp_path, env=env
    )

    assert submitted.returncode == 0
    assert "hunter2" not in submitted.stdout + submitted.stderr
    secret = {**env, "MY_TOKEN": "hunter2"}
    refused = cluster.submit("--env", "MY_TOKEN", "--", "check", str(data), cwd=tmp_path, env=secret)
    assert refused.returncode == 2
    assert "MY_TOKEN" in refused.stderr
    assert "hunter2" not in refused.stdout + refused.stderr
    runtime_env = cluster.jobs()["with-env"].runtime_env
    assert runtime_env is not None
    given = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "MY_MODE": "hunter2", "A": "b=c"}
    assert runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "30", **given}


def test_a_lost_connection_is_taken_up_again_and_no_line_comes_twice(
    cluster: Cluster, tmp_path: Path, gate: Gate, check: list[str], started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    with Relay(cluster.dashboard) as relay:
        process = started(cluster.start_submit("--id", "cut", *check, cwd=tmp_path, address=relay.address))
        assert process.stdout is not None
        head = process.stdout.readline()
        relay.cut()
        time.sleep(2)  # it meets the closed door
        relay.restore()
        gate.open()
        stdout, stderr = process.communicate()

    assert process.returncode == 0, stderr
    assert "fingerprint" in stdout
    assert (head + stdout).count(head) == 1


def test_a_cluster_that_stays_away_ends_the_submission_with_one_line(
    cluster: Cluster, tmp_path: Path, gate: Gate, check: list[str], started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    with Relay(cluster.dashboard) as relay:
        options = ["--id", "away", "--set", "patience=2"]
        process = started(cluster.start_submit(*options, *check, cwd=tmp_path, address=relay.address))
        assert process.stdout is not None
        process.stdout.readline()
        relay.cut()
        _, stderr = process.communicate()
        relay.restore()
    gate.open()

    assert process.returncode == 1
    assert "has not answered" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
