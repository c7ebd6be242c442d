"""Two small pictures of a training, kept with its MLflow run; `smec report` draws the full, interactive page.

The colours are those of the report, too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smec_core.shown import safe_line
from smec_core.training.tracker import Record

BLUE, GREEN, ORANGE, GREY, INK = "#2457d6", "#0b8f72", "#d97706", "#8d97a8", "#1b2433"
Points = Mapping[Any, float | None]  # keys: int or float
MEASURES = {"ndcg@10": "nDCG@10", "agreement@10": "agreement@10", "neighbour_recall@10": "neighbour recall@10"}


def main_measure(evaluation: Mapping[str, Any]) -> str:
    """The measure that the evaluation's baselines are given in: nDCG@10, or neighbour recall without judgements."""
    return next(measure for measure in MEASURES if measure in evaluation)


def quality_picture(evaluation: Mapping[str, Any]) -> Figure:
    """Quality against dims kept, for the model with its intervals, PCA, truncation, and the full embeddings as a level.

    Args:
        evaluation: `evaluation` of metrics.json.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    measure, baselines = main_measure(evaluation), evaluation.get("baselines", {})
    intervals = evaluation.get("intervals", {}).get(measure, {})
    for name, scores, colour in (
        ("truncation", baselines.get("truncation", {}), GREY),
        ("PCA", baselines.get("pca", {}), ORANGE),
        ("model", evaluation[measure], BLUE),
    ):
        if scores:
            points = sorted((int(dim), score) for dim, score in scores.items())
            axes.plot(*zip(*points, strict=True), label=name, color=colour, marker="o", linewidth=2)
    if intervals:
        places, ends = [int(dim) for dim in intervals], list(intervals.values())
        middle, half = [sum(one) / 2 for one in ends], [(high - low) / 2 for low, high in ends]
        axes.errorbar(places, middle, half, fmt="none", color=BLUE, capsize=3, label="95 % over the queries")
    if "full" in baselines:
        axes.axhline(baselines["full"], label="full embeddings", color=INK, linestyle="--", linewidth=1)
    dims = sorted(int(dim) for dim in evaluation[measure])
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.set_xlabel("dims kept")
    axes.set_ylabel(MEASURES[measure])
    finish(axes)
    return figure


def loss_picture(history: Sequence[Record]) -> Figure:
    """Loss against steps, one panel a stage, one line for the first pass and one for the replay.

    Args:
        history: records of history.jsonl, at least one of them a step.
    """
    steps = [record for record in history if "loss" in record]
    stages = list(dict.fromkeys(record["stage"] for record in steps))
    columns = min(3, len(stages))
    rows = math.ceil(len(stages) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    for number, stage in enumerate(stages, start=1):
        axes = figure.add_subplot(rows, columns, number)
        of_stage = [record for record in steps if record["stage"] == stage]
        for name, projection in dict.fromkeys((record["pass"], record["projection"]) for record in of_stage):
            losses = [float(r["loss"]) for r in of_stage if (r["pass"], r["projection"]) == (name, projection)]
            colour = GREEN if name != "first" else BLUE if projection == "linear" else ORANGE
            label = str(projection) if name == "first" else f"{projection}, {name}"
            points = thinned({step + 0.5: loss for step, loss in enumerate(losses)})
            axes.plot([*points], [*points.values()], label=label, color=colour, linewidth=1.2)
        axes.set_title(f"to {stage} dims", fontsize=9)
        axes.set_xlabel("step of the stage", fontsize=8)
        axes.set_ylabel("loss", fontsize=8)
        finish(axes, size=7)
    return figure


def thinned(points: Points, most: int = 200) -> dict[float, float]:
    """At most `most` points: means over runs of equal length, which also calm the noise of single steps."""
    known = [(x, y) for x, y in points.items() if y is not None]
    size = math.ceil(len(known) / most) or 1
    runs = [known[start : start + size] for start in range(0, len(known), size)]
    return {sum(x for x, _ in part) / len(part): sum(y for _, y in part) / len(part) for part in runs}


def finish(axes: Axes, size: int = 9) -> None:
    """The look that all pictures share."""
    axes.grid(color="#e8ebf1", linewidth=0.8)
    axes.tick_params(labelsize=size)
    axes.spines[["top", "right"]].set_visible(False)
    for text in (axes.title, *axes.legend(fontsize=size, frameon=False).get_texts()):
        # names of datasets, in which a dollar begins no formula
        text.set_parse_math(False)
        text.set_text(safe_line(text.get_text()))
