"""The benchmarks as commands, and the page of their figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench

NOT_COMMANDS = {"generated", "processes", "timing"}
COMMANDS = sorted(path.stem for path in bench.HERE.glob("*.py") if path.stem not in NOT_COMMANDS)


# one process for all, which imports torch once
ASK_ALL = """
import contextlib, io, json, runpy, sys, traceback
said = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as end:
            said[name] = [end.code, stdout.getvalue()]
        except Exception:
            said[name] = [1, traceback.format_exc()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    command = [sys.executable, "-c", ASK_ALL, *COMMANDS]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=bench.HERE.parent, check=True)
    return {name: (code, said) for name, (code, said) in json.loads(ran.stdout).items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_says_what_it_measures(name: str, helps: dict[str, tuple[int, str]]) -> None:
    code, said = helps[name]
    assert code == 0, said
    assert f"benchmarks.{name}" in said
    if any(one.name == name for one in bench.BENCHMARKS):
        assert "--json" in said


def test_benchmarks_are_run_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.HERE.parent)
    bench.main(["--quick", "--only", "memory_search,pca", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "memory_search.json", "pca.json"}
    page = (tmp_path / "README.md").read_text()
    record = json.loads((tmp_path / "memory_search.json").read_text())
    assert record["command"] == "python -m benchmarks.memory_search --shapes 64x500x10 --rounds 2"
    assert f"    {record['command']}\n\n{record['machine']}." in page
    without, with_dead = record["figures"]["shapes"]
    assert (without["dead"], with_dead["dead"]) == (False, True)
    assert "| anchors | slots | neighbours | dead |" in page
    assert f"| {without['ratio']:.4g} |" in page
    assert page.index("## memory_search") < page.index("## pca")


@pytest.mark.slow
@pytest.mark.ray
def test_every_benchmark_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.HERE.parent)
    bench.main(["--quick", "--out", str(tmp_path)])
    page = (tmp_path / "README.md").read_text()
    for one in bench.BENCHMARKS:
        assert f"## {one.name}\n" in page
    assert str(tmp_path) not in page


def test_a_benchmark_that_fails_keeps_its_figures_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bench.HERE.parent)
    monkeypatch.setattr(bench, "BENCHMARKS", (bench.Benchmark("pca", quick="--shapes nonsense"),))
    before = {
        "command": "python -m benchmarks.pca",
        "machine": "a machine",
        "quick": False,
        "figures": {"1x2": {"fit ratio": 0.5}},
    }
    (tmp_path / "pca.json").write_text(json.dumps(before))
    with pytest.raises(SystemExit, match="bench: failed: pca"):
        bench.main(["--quick", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "pca.json").read_text()) == before
    assert "| 1x2 | 0.5 |" in (tmp_path / "README.md").read_text()


def test_a_name_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--only", "pca,speed", "--out", str(tmp_path)])
    assert "unknown speed; there are step_time, " in capsys.readouterr().err


def test_figures_of_any_shape_become_tables() -> None:
    figures = {
        "dim": 8,
        "none": None,
        "runs": [{"tier": "memory", "rate": 12345.6}, {"tier": "mapped", "share": {"data": 0.25}}],
        "by size": {"10": {"plain": {"rate": 1.5}, "ours": {"rate": 3.0}}, "20": {"plain": {"rate": 2}}},
        "axes": {"queue": {"sizes": [10, 20], "points": [{"open": 1.0}], "exponents": {"open": 0.5}}},
    }
    assert list(bench.tables_of(figures)) == [
        ("", [{"dim": 8, "none": None}]),
        ("runs", [{"tier": "memory", "rate": 12345.6}, {"tier": "mapped", "share data": 0.25}]),
        ("by size, 10", [{"": "plain", "rate": 1.5}, {"": "ours", "rate": 3.0}]),
        ("by size, 20", [{"": "plain", "rate": 2}]),
        ("axes, queue", [{"sizes": [10, 20]}]),
        ("axes, queue, points", [{"open": 1.0}]),
        ("axes, queue, exponents", [{"open": 0.5}]),
    ]
