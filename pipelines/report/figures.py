"""The figures of the report page, as plain dicts in plotly's JSON schema; the browser draws them.

What all figures look like (fonts, axes, margins) stands with the page's styles in templates/page.html.j2.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pipelines.tracking.plots import BLUE, GREEN, GREY, INK, ORANGE, Points, thinned
from smec_core.shown import safe_line

Figure = dict[str, Any]
Intervals = Mapping[Any, tuple[float, float]]


class Curve(NamedTuple):
    """A training curve of one stage: y by epochs trained."""

    label: str
    is_replay: bool
    points: Points


def quality(
    model: Points, truncation: Points, pca: Points, full: float | None, measure: str, intervals: Intervals
) -> Figure:
    """Score against dims, on a log axis; full is the score of the frozen embeddings, drawn across."""
    data = _contest(model, truncation, pca, intervals)
    if full is not None:
        data.insert(0, _line("full dims", {min(model): full, max(model): full}, INK, 4, "lines", dash="dash"))
    ticks = _ticks(model)
    x = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks], "hoverformat": "d"}
    return _figure(data, x | _title("dims kept"), {"hoverformat": ".3f"} | _title(measure))


def compression(model: Points, truncation: Points, pca: Points, measure: str, intervals: Intervals) -> Figure:
    """Percent of the full-dimension quality kept against the compression ratio, on a log axis."""
    data = _contest(model, truncation, pca, intervals)
    ticks = _ticks(model)
    x = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.3g}×" for tick in ticks], "hoverformat": ".3g"}
    y = {"ticksuffix": "%", "hoverformat": ".1f"}
    return _figure(data, x | _title("compression"), y | _title(f"{measure} kept"), _rule("y", 100))


def losses(curves: Sequence[Curve]) -> Figure:
    """Loss of a stage and of its replay."""
    data = [_curve(curve._replace(points=thinned(curve.points)), "lines") for curve in curves]
    x, y = {"rangemode": "tozero", "hoverformat": ".2f"}, {"rangemode": "tozero", "hoverformat": ".4f"}
    return _figure(data, x | _title("epochs trained"), y | _title("loss"))


def dev_scores(curve: Curve, epochs: int, score: float | None) -> Figure:
    """Dev score of a stage, with the kept state, at `epochs`, marked."""
    star = _line("kept", {epochs: score}, BLUE, 4, "markers", symbol="star", size=15)
    data = [_curve(curve, "lines+markers"), star]
    y = {"hoverformat": ".4f"} | _title("dev score")
    return _figure(data, {"tickformat": "d"} | _title("epochs trained"), y, _rule("x", epochs))


def importance(shares: Sequence[float], dim: int) -> Figure:
    """ADS importance of d_in dims as a multiple of an even share (1 / d_in), on a log axis; the first `dim` are kept.

    Those that are kept, and those that are not, are sorted here: a stage that looks ahead leaves them in other places.
    """
    even = [share * len(shares) for share in shares]
    ordered = [*sorted(even[:dim], reverse=True), *sorted(even[dim:], reverse=True)]
    # a log axis has no place for what was rounded to nothing
    points = {rank: share for rank, share in enumerate(ordered, start=1) if share > 0}
    kept = _line("kept", {rank: y for rank, y in points.items() if rank <= dim}, BLUE, 1, "lines", width=3)
    dropped = _line("dropped", {rank: y for rank, y in points.items() if rank > dim}, GREY, 2, "lines", width=3)
    y = {"type": "log", "hoverformat": ".3g", "exponentformat": "power", "dtick": 1} | _title("× even share")
    return _figure([kept, dropped], _title("dims, by importance"), y, _rule("x", dim + 0.5))


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
        {
            "type": "bar",
            "orientation": "h",
            "y": [plain(name) for name, _ in ordered],
            "x": [_rounded(v) for _, v in ordered],
        }
    ]
    data[0] |= {"marker": {"color": BLUE}, "showlegend": False}
    figure = _figure(data, {"rangemode": "tozero"} | _title(title), {"type": "category", "autorange": "reversed"})
    figure["layout"] |= {"bargap": 0.4, "hovermode": "closest"}
    return figure


def front(
    trials: Iterable[tuple[float, float]],
    best: Iterable[tuple[float, float]],
    defaults: Iterable[tuple[float, float]],
    measure: str,
) -> Figure:
    """Quality against seconds of training, with the trials that no other beats in both joined."""
    data = [_dots("trials", trials, GREY), _dots("not beaten in both", best, BLUE) | {"mode": "lines+markers"}]
    data[1]["line"] = {"color": BLUE, "width": 2, "shape": "hv"}
    data += _defaults(defaults)
    figure = _figure(data, _title("seconds of training"), {"hoverformat": ".4f"} | _title(measure))
    figure["layout"] |= {"hovermode": "closest"}
    return figure


def slice_of(
    points: Mapping[str, Iterable[tuple[Any, float]]],
    defaults: Iterable[tuple[Any, float]],
    name: str,
    measure: str,
    is_log: bool,
) -> Figure:
    """One figure of every trial against one setting."""
    data = [_dots(label, some, GREY if label == "stopped early" else BLUE) for label, some in points.items()]
    data += _defaults(defaults)
    x = _title(name) | ({"type": "log"} if is_log else {})
    figure = _figure(data, x, {"hoverformat": ".4f"} | _title(measure))
    figure["layout"] |= {"hovermode": "closest"}
    return figure


def parallel(drawn: Figure, default: int | None) -> Figure:
    """Optuna's parallel coordinates, which draws its axes as shapes and annotations, with one of its lines marked.

    Args:
        drawn: Optuna's figure.
        default: which of the lines is that of the defaults.
    """
    drawn = _plain_parts(drawn)
    kept = {name: part for name, part in drawn["layout"].items() if name not in ("template", "title")}
    data = [line | {"opacity": 1.0} for line in drawn["data"]]
    if default is not None:
        line = data.pop(default)
        # on top of the others
        data.append(line | {"name": "the defaults", "showlegend": True})
        data[-1]["line"] = line["line"] | {"color": ORANGE, "width": 3, "dash": "dash"}
    margin = {"margin": {"l": 70, "r": 30, "t": 50, "b": 40}, "legend": {"orientation": "h", "x": 0, "y": 1.08}}
    # the colours begin at white
    return {"data": data, "layout": kept | margin | {"plot_bgcolor": "#d9dfe9"}}


def _defaults(points: Iterable[tuple[Any, float]]) -> list[Figure]:
    dots = _dots("the defaults", points, ORANGE)
    marker = {"color": ORANGE, "size": 13, "symbol": "diamond-open", "line": {"width": 2.5}}
    return [dots | {"marker": marker}] if dots["x"] else []


def _dots(label: str, points: Iterable[tuple[Any, float]], colour: str) -> Figure:
    ordered = sorted(points, key=lambda point: (str(type(point[0])), point[0]))
    x = [_rounded(x) if isinstance(x, float) else plain(x) if isinstance(x, str) else x for x, _ in ordered]
    dots = {"type": "scatter", "mode": "markers", "name": label, "x": x, "y": [_rounded(y) for _, y in ordered]}
    return dots | {"marker": {"color": colour, "size": 8}}


def _contest(model: Points, truncation: Points, pca: Points, intervals: Intervals) -> list[Figure]:
    """The model's line, with its intervals, over those of its baselines."""
    below = [_line("truncation", truncation, GREY, 3), _line("PCA", pca, ORANGE, 2)]
    line = _line("this model", model, BLUE, 1, width=3)
    if intervals:
        ends = {_rounded(x): ends for x, ends in intervals.items()}
        half = [_rounded((ends[x][1] - ends[x][0]) / 2) if x in ends else None for x in line["x"]]
        line["error_y"] = {"type": "data", "array": half, "color": BLUE, "thickness": 1.5, "width": 5}
    return [*below, line]


def _curve(curve: Curve, mode: str) -> Figure:
    colour, rank, dash = (GREEN, 2, "dot") if curve.is_replay else (BLUE, 1, "solid")
    return _line(plain(curve.label), curve.points, colour, rank, mode, dash=dash)


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
    return {"title": {"text": plain(text)}}


def plain(text: str) -> str:
    """Text of a file, as the name of a projection, for plotly, which reads HTML of its own kind."""
    return html.escape(safe_line(text), quote=False)


def _plain_parts(drawn: Any) -> Any:
    """A figure that another library has drawn, its texts without elements but line breaks."""
    if isinstance(drawn, dict):
        return {key: _plain_parts(value) for key, value in drawn.items()}
    if isinstance(drawn, list):
        return [_plain_parts(value) for value in drawn]
    return "<br>".join(map(plain, drawn.split("<br>"))) if isinstance(drawn, str) else drawn


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


def _rounded(value: float) -> float:
    """Six digits: what a screen can show, in half the bytes."""
    return float(f"{value:.6g}")
