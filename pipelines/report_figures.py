"""The figures of the report page, as plain dicts in plotly's JSON schema; the browser draws them.

What all figures look like (fonts, axes, margins) stands with the page's styles in templates/page.html.j2.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Figure = dict[str, Any]
Points = Mapping[Any, float | None]  # keys: int or float
BLUE, GREEN, ORANGE, GREY, INK = "#2457d6", "#0b8f72", "#d97706", "#8d97a8", "#1b2433"
ROLES = {"chosen": (BLUE, 1, "solid"), "replay": (GREEN, 2, "dot"), "rejected": (GREY, 3, "solid")}


class Curve(NamedTuple):
    """A training curve of one stage: y by epochs trained."""

    label: str
    role: Literal["chosen", "replay", "rejected"]
    points: Points


def quality(model: Points, truncation: Points, pca: Points, full: float | None, measure: str) -> Figure:
    """Score against dims, on a log axis; full is the score of the frozen embeddings, drawn across."""
    data = _contest(model, truncation, pca)
    if full is not None:
        data.insert(0, _line("full dims", {min(model): full, max(model): full}, INK, 4, "lines", dash="dash"))
    ticks = _ticks(model)
    x = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks], "hoverformat": "d"}
    return _figure(data, x | _title("dims kept"), {"hoverformat": ".3f"} | _title(measure))


def compression(model: Points, truncation: Points, pca: Points, measure: str) -> Figure:
    """Percent of the full-dimension quality kept against the compression ratio, on a log axis."""
    data = _contest(model, truncation, pca)
    ticks = _ticks(model)
    x = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.3g}×" for tick in ticks], "hoverformat": ".3g"}
    y = {"ticksuffix": "%", "hoverformat": ".1f"}
    return _figure(data, x | _title("compression"), y | _title(f"{measure} kept"), _rule("y", 100))


def losses(curves: Sequence[Curve]) -> Figure:
    """Loss of a stage's candidates and of the replay."""
    data = [_curve(curve._replace(points=_thinned(curve.points)), "lines") for curve in curves]
    x, y = {"rangemode": "tozero", "hoverformat": ".2f"}, {"rangemode": "tozero", "hoverformat": ".4f"}
    return _figure(data, x | _title("epochs trained"), y | _title("loss"))


def dev_scores(curves: Sequence[Curve], epochs: int, score: float | None) -> Figure:
    """Dev score of a stage's candidates, with the kept state, at `epochs`, marked."""
    star = _line("kept", {epochs: score}, BLUE, 4, "markers", symbol="star", size=15)
    data = [*(_curve(curve, "lines+markers") for curve in curves), star]
    y = {"hoverformat": ".4f"} | _title("dev score")
    return _figure(data, {"tickformat": "d"} | _title("epochs trained"), y, _rule("x", epochs))


def importance(shares: Sequence[float], dim: int) -> Figure:
    """ADS importance of d_in dims, descending, as a multiple of an even share (1 / d_in); `dim` of them are kept."""
    even = {rank: share * len(shares) for rank, share in enumerate(shares, start=1)}
    kept = _line("kept", {rank: y for rank, y in even.items() if rank <= dim}, BLUE, 1, "lines")
    dropped = _line("dropped", {rank: y for rank, y in even.items() if rank >= dim}, GREY, 2, "lines")
    data = [line | {"fill": "tozeroy", "fillcolor": line["line"]["color"] + "33"} for line in (kept, dropped)]
    y = {"rangemode": "tozero", "hoverformat": ".2f"} | _title("× even share")
    return _figure(data, _title("dims, by importance"), y, _rule("x", dim))


def times(stages: Sequence[str], seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Seconds by stage and part of a step, stacked."""
    data = [
        {"type": "bar", "orientation": "h", "name": part, "y": list(stages), "x": [_rounded(value) for value in values]}
        | {"marker": {"color": colour}}
        for (part, values), colour in zip(seconds.items(), (BLUE, ORANGE, GREY), strict=True)
    ]
    x = {"hoverformat": ".1f", "ticksuffix": " s"} | _title("time in steps")
    figure = _figure(data, x, {"type": "category", "autorange": "reversed"})
    stacked = {"barmode": "stack", "bargap": 0.4, "hovermode": "y unified"}
    figure["layout"] |= stacked | {"legend": {"traceorder": "normal"}}  # plotly would reverse it with the axis
    return figure


def bars(shares: Mapping[str, float], title: str) -> Figure:
    """A bar a name, the longest first."""
    ordered = sorted(shares.items(), key=lambda one: -one[1])
    data: list[Figure] = [
        {"type": "bar", "orientation": "h", "y": [name for name, _ in ordered], "x": [_rounded(v) for _, v in ordered]}
    ]
    data[0] |= {"marker": {"color": BLUE}, "showlegend": False}
    figure = _figure(data, {"rangemode": "tozero"} | _title(title), {"type": "category", "autorange": "reversed"})
    figure["layout"] |= {"bargap": 0.4, "hovermode": "closest"}
    return figure


def front(trials: Iterable[tuple[float, float]], best: Iterable[tuple[float, float]], measure: str) -> Figure:
    """Quality against seconds of training, with the trials that no other beats in both joined."""
    data = [_dots("trials", trials, GREY), _dots("not beaten in both", best, BLUE) | {"mode": "lines+markers"}]
    data[1]["line"] = {"color": BLUE, "width": 2, "shape": "hv"}
    figure = _figure(data, _title("seconds of training"), {"hoverformat": ".4f"} | _title(measure))
    figure["layout"] |= {"hovermode": "closest"}
    return figure


def slice_of(points: Mapping[str, Iterable[tuple[Any, float]]], name: str, measure: str, is_log: bool) -> Figure:
    """One figure of every trial against one setting."""
    data = [_dots(label, some, GREY if label == "stopped" else BLUE) for label, some in points.items()]
    x = _title(name) | ({"type": "log"} if is_log else {})
    figure = _figure(data, x, {"hoverformat": ".4f"} | _title(measure))
    figure["layout"] |= {"hovermode": "closest"}
    return figure


def _dots(label: str, points: Iterable[tuple[Any, float]], colour: str) -> Figure:
    ordered = sorted(points, key=lambda point: (str(type(point[0])), point[0]))
    x = [_rounded(x) if isinstance(x, float) else x for x, _ in ordered]
    dots = {"type": "scatter", "mode": "markers", "name": label, "x": x, "y": [_rounded(y) for _, y in ordered]}
    return dots | {"marker": {"color": colour, "size": 8}}


def _contest(model: Points, truncation: Points, pca: Points) -> list[Figure]:
    """The model's line over those of its baselines."""
    below = [_line("truncation", truncation, GREY, 3), _line("PCA", pca, ORANGE, 2)]
    return [*below, _line("this model", model, BLUE, 1, width=3)]


def _curve(curve: Curve, mode: str) -> Figure:
    colour, rank, dash = ROLES[curve.role]
    # plotly reads names as HTML of its own kind, and a projection's name comes from a file
    return _line(html.escape(curve.label), curve.points, colour, rank, mode, dash=dash)


def _line(name: str, points: Points, colour: str, rank: int, mode: str = "lines+markers", **style: Any) -> Figure:
    """One scatter trace, `rank`-th in the legend; style: width, dash, symbol, size."""
    ordered = sorted((x, y) for x, y in points.items() if y is not None and math.isfinite(y))
    x, y = [_rounded(x) for x, _ in ordered], [_rounded(y) for _, y in ordered]
    line = {"color": colour, "width": style.get("width", 2), "dash": style.get("dash", "solid")}
    marker = {"color": colour, "symbol": style.get("symbol", "circle"), "size": style.get("size", 7)}
    base = {"type": "scatter", "name": name, "mode": mode, "legendrank": rank}
    return base | {"x": x, "y": y, "line": line, "marker": marker}


def _figure(data: Iterable[Figure], x: Figure, y: Figure, *rules: Figure) -> Figure:
    return {"data": [trace for trace in data if trace["x"]], "layout": {"xaxis": x, "yaxis": y, "shapes": list(rules)}}


def _title(text: str) -> Figure:
    return {"title": {"text": text}}


def _rule(axis: Literal["x", "y"], at: float) -> Figure:
    """A dashed line across the figure, at one value of an axis."""
    other = "y" if axis == "x" else "x"
    across = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return across | {"type": "line", "layer": "between", "line": {"color": INK, "width": 1.5, "dash": "dash"}}


def _ticks(values: Iterable[float]) -> list[float]:
    """The values, thinned so that their labels stay apart on a log axis."""
    ticks: list[float] = []
    for value in sorted(values):
        if not ticks or value / ticks[-1] >= 1.3:
            ticks.append(value)
    return ticks


def _thinned(points: Points, most: int = 200) -> Points:
    """At most `most` points: means over runs of equal length, which also calm the noise of single steps."""
    known = [(x, y) for x, y in points.items() if y is not None]
    size = math.ceil(len(known) / most) or 1
    runs = [known[start : start + size] for start in range(0, len(known), size)]
    return {sum(x for x, _ in part) / len(part): sum(y for _, y in part) / len(part) for part in runs}


def _rounded(value: float) -> float:
    """Six digits: what a screen can show, in half the bytes."""
    return float(f"{value:.6g}")
