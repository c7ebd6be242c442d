"""The bar of a training where people see it: in a notebook, with ipywidgets and without."""

from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
TRAINING = """
from smec_core.training.tracker import StepBar

with StepBar([("first", 8, 10)]) as bar:
    bar.log({"pass": "first", "stage": 8, "step": 0, "loss": 0.5})
"""


def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> list[Any]:
    """What a cell of a notebook shows."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra: dev)")
    v4 = pytest.importorskip("nbformat").v4
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = v4.new_notebook(cells=[v4.new_code_cell(script)])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found: list[Any] = notebook.cells[0].outputs
    return found


def test_a_notebook_has_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [bar] = shown(tmp_path, monkeypatch, TRAINING)
    assert "application/vnd.jupyter.widget-view+json" in bar["data"]


def test_a_notebook_without_widgets_has_a_bar_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = "import sys\nsys.modules['ipywidgets'] = None\n" + TRAINING
    text = "".join(output["text"] for output in shown(tmp_path, monkeypatch, without) if output.get("name") == "stderr")
    assert "smec: 100%" in text
    assert "10/10" in text


def test_no_bar_is_shown_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shown(tmp_path, monkeypatch, TRAINING.replace("10)])", "10)], shows=False)"))
