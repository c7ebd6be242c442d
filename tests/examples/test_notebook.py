"""The notebook as a reader runs it: top to bottom, in a kernel of its own, without a network."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

import smec_core

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "examples/smec.ipynb"


def test_it_is_kept_without_outputs_and_links_to_what_is_there() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (NOTEBOOK.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.training
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra: dev)")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("http_proxy", "https_proxy"):
        # nobody listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output["data"] for output in shown if "data" in output]
    [bar] = [one["text/plain"] for one in data if "application/vnd.jupyter.widget-view+json" in one]
    assert bar.startswith("smec: ")
    [picture] = [one["image/png"] for one in data if "image/png" in one]
    (tmp_path / "figure.png").write_bytes(base64.b64decode(picture))
    tables = [one["text/html"] for one in data if "text/html" in one]
    assert any("ndcg@10" in table and "truncation" in table for table in tables)
    assert smec_core.load(tmp_path / "model").dims == (1024, 256, 128, 64, 32)
    assert "Traceback" not in json.dumps(notebook)
