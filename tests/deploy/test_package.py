"""The package: what `pip install` brings, and the command when another package has the name `pipelines`."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(words: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """Runs a command that must succeed; gives its stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_and_sdist_install_and_work(tmp_path: Path) -> None:
    """In an environment of its own, with what the package's files ask for; then the quickstart's commands."""
    source, env = tmp_path / "source", tmp_path / "env"
    files = run(["git", "ls-files", "-z"], REPOSITORY).split("\0")
    for name in filter(None, files):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_file():
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    venv.create(env, with_pip=True)
    python = env / "bin/python"
    run([python, "-m", "pip", "install", "-q", "build", "twine"], tmp_path)
    run([python, "-m", "build", "-q", "--outdir", tmp_path / "dist", source], tmp_path)
    [wheel], [sdist] = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    run([python, "-m", "twine", "check", "--strict", wheel, sdist], tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "pipelines",
        "smec_core",
        "tune_spaces",
    }
    assert "smec_core/py.typed" in names
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/pyproject.toml") for name in archive.getnames())

    # torch as constraints.txt pins it: an open range would bring its CUDA build
    run([python, "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt", wheel], tmp_path)
    smec = env / "bin/smec"
    data, model = tmp_path / "data", tmp_path / "model"
    run([smec, "sample", data, "--size", "300", "--set", "dim=64"], tmp_path)
    run([smec, "check", data], tmp_path)
    run([smec, "train", "--data", data, "--dims", "16,8", "--out", model, "--set", "epochs=1"], tmp_path)
    assert "ndcg@10" in run([smec, "evaluate", "--data", data, "--model", model, "--baselines"], tmp_path)
    run([smec, "compress", "--model", model, "--input", data / "corpus", "--output", "small", "--dim", "8"], tmp_path)
    run([smec, "report", model, "--out", "report.html"], tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_another_package_of_the_name_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", "from smec_core.__main__ import main; main()", "--version"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert str(tmp_path) in line
    assert "environment of its own" in line


def test_the_module_is_the_command(tmp_path: Path) -> None:
    assert run([sys.executable, "-m", "smec_core", "--version"], REPOSITORY).startswith("smec ")
