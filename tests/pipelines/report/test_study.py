"""The report page of a study, from a summary like those that a study writes."""

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from pipelines.report.study import study_page

SPACE = {
    "lr": {"name": "FloatDistribution", "attributes": {"low": 1e-4, "high": 1e-2, "log": True, "step": None}},
    "init": {"name": "CategoricalDistribution", "attributes": {"choices": ["pca", "identity"]}},
}


@pytest.fixture
def page(tmp_path: Path) -> dict[str, Any]:
    trials = []
    for number, lr in enumerate((0.002, 0.004, 0.0002, 0.001, 0.006), start=1):
        steps = [
            {"place": place, "quality": 0.4 + lr * place, "scores": {"8": 0.5, "4": 0.4}, "seconds": 10.0 * place}
            for place in (1, 2)
        ]
        is_stopped = number == 3
        state = "stopped" if is_stopped else "finished"
        params = {"lr": lr, "init": "identity" if number % 2 else "pca"}
        trials.append(
            {"number": number, "params": params, "state": state, "steps": steps[:1] if is_stopped else steps}
            | {"seconds": 30.0 + number}
        )
    summary = {
        "study": "study-1", "data": "s3://search/scifact", "objective": "mean", "dims": [8, 4], "measure": "ndcg@10",
        "space": SPACE, "best": [5], "states": {"finished": 4, "stopped": 1, "failed": 0, "running": 0},
        "trials": trials,
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return study_page(tmp_path / "summary.json")


def test_parallel_coordinates_have_their_axes_and_mark_the_defaults(page: dict[str, Any]) -> None:
    figure = page["figures"]["parallel"]
    go.Figure(figure)  # raises on anything plotly does not know
    assert figure["layout"]["xaxis"]["ticktext"] == ["nDCG@10", "init", "lr"]
    # Optuna draws an axis as a line with its values beside it
    assert len(figure["layout"]["shapes"]) == 3
    assert {"pca", "identity", "0.006"} <= {one["text"] for one in figure["layout"]["annotations"]}
    lines = [line for line in figure["data"] if line["mode"] == "lines"]
    assert len(lines) == 5
    [defaults] = [line for line in lines if line.get("name") == "the defaults"]
    assert ["lr", "0.002"] in defaults["customdata"]
    assert defaults["line"]["dash"] == "dash" and all(line["line"]["dash"] == "solid" for line in lines[:-1])


@pytest.mark.parametrize(("chart", "at"), [("slice-lr", 0.002), ("slice-init", "identity"), ("front", 31.0)])
def test_the_defaults_are_marked_wherever_there_are_trials(page: dict[str, Any], chart: str, at: float | str) -> None:
    figure = page["figures"][chart]
    [defaults] = [trace for trace in figure["data"] if trace["name"] == "the defaults"]
    assert defaults["x"] == [at]
    assert figure["layout"]["yaxis"]["title"]["text"] == "nDCG@10"
    go.Figure(figure)


def test_the_headline_says_what_was_measured(page: dict[str, Any]) -> None:
    assert page["headline"] == "nDCG@10 0.4120 on dev, 5 trials; the defaults 0.4040"
