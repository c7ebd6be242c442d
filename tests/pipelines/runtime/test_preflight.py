"""Small hosts: what Ray and MLflow need and a container may not have, with real limits, mounts and users."""

import os
import re
import resource
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.retrain.registry import Registry
from pipelines.runtime.cluster import connect
from pipelines.runtime.preflight import RAY_PATH, SOCKET_PATH, check_address, ray_place
from smec_core.errors import InputError, SmecError
from smec_core.model.model import Model
from smec_core.temporary import temporary_folder
from tests.builders import write_dataset
from tests.kills import REPOSITORY

# a folder that nobody can write to, root neither
NOWHERE = "/proc"
MOUNTS = ("--mount",) if os.geteuid() == 0 else ("--map-root-user", "--mount")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset `data`, a model `model` of it, and an empty folder `empty`."""
    folder = tmp_path_factory.mktemp("host")
    write_dataset(folder / "data")
    Model([], 32, {"dims": [32, 8]}, {}).save(folder / "model")
    (folder / "empty").mkdir()
    return folder


@cache
def unshare(*options: str) -> list[str]:
    """Begins a command that runs in a namespace of its own, which many containers forbid: there a test is skipped.

    With SMEC_REQUIRE_DATA=1 it fails.
    """
    command = ["unshare", *options]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        reason = f"{shlex.join(command)} is forbidden here: {tried.stderr.strip()}"
        if os.environ.get("SMEC_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return command


def mounted(mount: str, *command: str) -> list[str]:
    """A command that runs where something is mounted."""
    return [*unshare(*MOUNTS), "sh", "-c", f"{mount} && exec {shlex.join(command)}"]


def smec(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *arguments]


def compress(folder: Path, output: str = "compressed") -> list[str]:
    places = ["--model", f"{folder}/model", "--input", f"{folder}/data/corpus", "--output", f"{folder}/{output}"]
    return smec("compress", *places, "--dim", "8")


def run(
    command: list[str], env: dict[str, str | None] | None = None, limits: dict[int, int] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command with changes of the environment, None for what there is not, and hard limits."""

    def limit() -> None:
        for which, most in (limits or {}).items():
            resource.setrlimit(which, (most, most))

    changes = {"PYTHONPATH": str(REPOSITORY), **(env or {})}
    there = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    return subprocess.run(
        command,
        env=there,
        cwd=REPOSITORY,
        preexec_fn=limit,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def fresh_tempdir(monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary folder is looked for again."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


@pytest.mark.usefixtures("fresh_tempdir")
def test_sockets_of_ray_have_room_in_any_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for length in (SOCKET_PATH - RAY_PATH, SOCKET_PATH - RAY_PATH + 1, 200):
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as short:
            wanted = Path(short) / ("a" * (length - len(short) - 1))
            wanted.mkdir()
            monkeypatch.setenv("TMPDIR", str(wanted))
            monkeypatch.setattr(tempfile, "tempdir", None)
            folder = ray_place()
            assert (folder == wanted) == (length <= SOCKET_PATH - RAY_PATH)
            with temporary_folder(folder) as session, socket.socket(socket.AF_UNIX) as listener:
                name = "s" * (len(str(folder)) + RAY_PATH - len(str(session)) - 1)
                listener.bind(f"{session}/{name}")


@pytest.mark.usefixtures("fresh_tempdir")
@pytest.mark.parametrize("named", [NOWHERE, f"{NOWHERE}/none", "/tmp/" + 60 * "a", "/dev/null"])
def test_a_folder_that_the_user_named_for_ray_is_that_or_refused(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", named)
    with pytest.raises(InputError, match=f"RAY_TMPDIR: {named} is no folder for Ray; name one in RAY_TMPDIR that"):
        ray_place()


@pytest.mark.usefixtures("fresh_tempdir")
def test_a_folder_for_ray_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("RAY_TMPDIR", f"{short}/new")
        assert ray_place() == Path(short, "new")
        assert ray_place().is_dir()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({resource.RLIMIT_NOFILE: 64}, "limit of open files: 64 is too low for Ray"),
        ({resource.RLIMIT_AS: 2**32}, "limit of bytes of address space: 4,294,967,296 is too low for Ray"),
    ],
)
def test_a_limit_that_is_too_low_is_one_line(folder: Path, limits: dict[int, int], message: str) -> None:
    done = run(compress(folder, "refused"), limits=limits)
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert done.stdout.startswith(f"smec: {message}")
    assert "ulimit -" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_a_long_tmpdir_and_a_home_that_is_not_there(folder: Path) -> None:
    long = folder / ("long" * 15)
    long.mkdir()
    done = run(compress(folder, "long"), {"TMPDIR": str(long), "HOME": f"{NOWHERE}/none", "RAY_TMPDIR": None})
    assert done.returncode == 0, done.stdout
    assert f"warning: Ray's files are in /tmp: {long} is full, not to be written to or too long" in done.stdout


@pytest.mark.ray
def test_a_full_tmpdir_and_a_read_only_home(folder: Path) -> None:
    empty = str(folder / "empty")
    mounts = f"mount -t tmpfs -o ro none {empty} && mount -t tmpfs -o size=200k none /var/tmp"
    done = run(mounted(mounts, *compress(folder, "full")), {"TMPDIR": "/var/tmp", "HOME": empty, "RAY_TMPDIR": None})
    assert done.returncode == 0, done.stdout
    assert "warning: Ray's files are in /tmp: /var/tmp is full" in done.stdout


@pytest.mark.ray
def test_a_user_without_name_and_home(folder: Path) -> None:
    user = unshare("--user", "--map-user=12345", "--map-group=12345")
    done = run([*user, *compress(folder, "nobody")], {"HOME": None, "RAY_AUTH_TOKEN": None})
    assert done.returncode == 0, done.stdout


POOL = """
from pipelines.runtime.file_tasks import actor_pool
print(actor_pool(tasks=6, workers=None, gpu="off", share_gpus=False))
"""


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["affinity", "cgroup"])
def test_actors_are_as_many_as_the_cpus_that_may_be_used(kind: str) -> None:
    command = [sys.executable, "-c", POOL]
    if kind == "affinity":
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    else:
        # as a container with --cpus 1 sees it
        mount = "mount -t tmpfs none /sys/fs/cgroup && echo 100000 100000 > /sys/fs/cgroup/cpu.max"
        command = mounted(mount, *command)
    # a busy machine is told of before
    assert run(command).stdout.splitlines()[-1] == "(1, 0.0)"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.training
def test_a_working_folder_that_mlflow_cannot_write_to(folder: Path) -> None:
    model = folder / "trained"
    train = smec("train", "--data", f"{folder}/data", "--dims", "8", "--set", "epochs=1", "--out", str(model))
    mounts = f"mount -t tmpfs -o ro none {folder}/empty && cd {folder}/empty"
    done = run(mounted(mounts, *train), {"MLFLOW_TRACKING_URI": None})
    assert done.returncode == 0, done.stdout
    assert f"warning: MLflow at sqlite:///{folder}/empty/mlflow.db fails: (sqlite3.OperationalError)" in done.stdout
    assert "retried" not in done.stdout
    [offline] = (folder / ".smec-runs").glob("*/mlflow-offline/mlflow.db")
    client = MlflowClient(f"sqlite:///{offline}")
    [run_there] = client.search_runs([client.get_experiment_by_name("smec").experiment_id])  # type: ignore[union-attr]
    assert run_there.info.status == "FINISHED"


def test_a_registry_whose_database_cannot_be_opened_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {f"sqlite:///{NOWHERE}/mlflow.db": InputError, "postgresql://me:secret@127.0.0.1:9/mlflow": SmecError}
    for uri, kind in kinds.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(SmecError, match=r"^MLflow's registry at .* fails: .*; name another store in ML") as refused:
            Registry("series")
        assert type(refused.value) is kind
        assert "secret" not in str(refused.value)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port of this machine at which nothing answers until it listens."""
    monkeypatch.setattr("pipelines.runtime.preflight.ANSWER_SECONDS", 1.5)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_cluster_that_does_not_answer_is_told_at_once(address: str, port: socket.socket) -> None:
    address = address.format(port.getsockname()[1])
    with pytest.raises(SmecError, match=rf"nothing answers at {address.removeprefix('ray://')} \(.*; start that"):
        check_address(address)
    port.listen()
    check_address(address)


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "a..b:6379", "[::1]:1", "127.0.0.1:99999"])
def test_an_address_of_no_machine_is_told(address: str, port: socket.socket) -> None:
    with pytest.raises(SmecError, match=rf"^RAY_ADDRESS: nothing answers at {re.escape(address)} \(") as refused:
        check_address(address)
    assert refused.value.exit_code == 1


@pytest.mark.parametrize("address", ["auto", "local", "ray://cluster.example", "anyscale://x:1"])
def test_addresses_that_only_ray_knows_are_left_to_it(address: str) -> None:
    check_address(address)


def test_no_ray_is_asked_for_where_nothing_answers(port: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port.getsockname()[1]}")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delattr("ray.init")
    with pytest.raises(SmecError, match="RAY_ADDRESS: nothing answers"):
        connect(1)
