"""What an evaluation has found: printed as tables, and as a frame."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smec_core.data.dataset import HELD_OUT, Dataset
from smec_core.data.forms import Qrels, Vectors, dataset_of
from smec_core.data.seen import parts_of
from smec_core.data.segments import Segments, segment_name
from smec_core.data.vectors import float32
from smec_core.evaluation.evaluate import check_fit, corpus_baselines, default_split, evaluate, with_held_out
from smec_core.evaluation.significance import doubtful_dims
from smec_core.model.model import Model
from smec_core.shown import safe_line

_WIDTH = 120
NO_JUDGEMENTS = (
    "no qrels/test: this instead is the share of a document's ten nearest documents that stay so, "
    "which does not say how queries are answered"
)
MOST_SEGMENTS = 12
"""Segments that a table shows."""


def evaluate_model(
    model: Model,
    corpus: Vectors | str | Path | Dataset,
    queries: Vectors = None,
    qrels: Qrels = None,
    *,
    split: str | None = None,
    baselines: bool = True,
    exclude_self: bool = False,
    columns: Mapping[str, str] | None = None,
    by: str | Sequence[str] | None = (),
) -> "Evaluation":
    """What `Model.evaluate` does, and says."""
    excludes = exclude_self or bool(model.config.get("train", {}).get("exclude_self"))
    dataset = dataset_of(corpus, queries, qrels, exclude_self=excludes, columns=columns, unnamed="test")
    if split == HELD_OUT:
        dataset = with_held_out(dataset, model, "this model")
    split = split or default_split(dataset)
    check_fit(dataset, model, split)
    segments = [Segments.of(dataset, split, column) for column in ([by] if isinstance(by, str) else by or ())]
    with float32(), torch.inference_mode():
        systems = corpus_baselines(dataset) if baselines else None
        report = evaluate(dataset, model, split, systems, segments=segments)
    dataset.check_unchanged()
    return Evaluation(report)


class Evaluation:
    """Figures of a model on queries; printed, they are the tables of `smec evaluate`.

    Attributes:
        split: of the judgements; None where the measure is how many of the nearest documents stay so.
        queries: how many.
        dims: prefixes, descending.
        measures: names of the measures, the first of which baselines and intervals are of.
        advice: what to do where nothing is gained over PCA; None else.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        """Takes what `smec evaluate --json` writes."""
        self._report = dict(report)
        self.split: str | None = report["split"]
        self.queries: int = report["queries"]
        self.measures = tuple(name for name in report if "@" in name)
        self.dims = tuple(int(dim) for dim in report[self.measures[0]])
        self.advice: str | None = report.get("advice")

    def to_dict(self) -> dict[str, Any]:
        """All figures, as `smec evaluate --json` writes them: with intervals, of parts and segments of the queries."""
        return dict(self._report)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each of the dims, descending; a column for each measure, and for baselines in the first of them.

        `low` and `high` are the 95 % interval of the first measure; `seen` and `unseen` are it for queries with and
        without a relevant document that the model has learnt from.

        Example:
            >>> list(model.evaluate(corpus, queries, qrels).to_pandas().columns)[:4]
            ['ndcg@10', 'recall@10', 'recall@100', 'mrr@10']
        """
        report, first, rows = self._report, self.measures[0], [str(dim) for dim in self.dims]
        columns = {name: [report[name][dim] for dim in rows] for name in self.measures}
        if interval := report.get("intervals", {}).get(first):
            columns |= {name: [interval[dim][place] for dim in rows] for place, name in enumerate(("low", "high"))}
        for name, found in report.get("baselines", {}).items():
            columns[name] = [found[dim] for dim in rows] if isinstance(found, Mapping) else [found] * len(rows)
        for name, part in parts_of(report).items():
            columns[name] = [part[first][dim] for dim in rows]
        return pd.DataFrame(columns, index=pd.Index(self.dims, name="dims"))

    def __str__(self) -> str:
        out = io.StringIO()
        console = Console(file=out, width=_WIDTH, highlight=False)
        for table in quality_tables(self._report):
            console.print(table)
        return out.getvalue().rstrip()

    def __repr__(self) -> str:
        dims = ", ".join(f"{dim}: {self._report[self.measures[0]][str(dim)]:.4f}" for dim in self.dims)
        return f"Evaluation({self.measures[0]} on {self.split or 'nearest documents'}, {self.queries} queries; {dims})"

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(float_format="{:.4f}".format))


def quality_tables(report: dict[str, Any]) -> list[Table]:
    """The figures of a report, and where the model knows what it has seen those of seen and of unseen queries."""
    tables = [_quality_table(report)]
    if parts := parts_of(report):
        tables.append(_parts_table(report, parts))
    tables += [_segments_table(report, column, parts) for column in report.get("segments", {})]
    tables[-1].caption = NO_JUDGEMENTS if report["split"] is None else report.get("advice") or doubtful_dims(report)
    return tables


def _parts_table(report: dict[str, Any], parts: dict[str, dict[str, Any]]) -> Table:
    """Dims by part and system."""
    measure = next(name for name in report if "@" in name)
    counts = ", ".join(f"{part['queries']} {label}" for label, part in parts.items())
    table = Table(title=f"{measure} of queries with and without a relevant document seen in training: {counts}")
    table.add_column("dims", justify="right")
    for label, part in parts.items():
        for name in (label, *(("pca", "full") if "baselines" in part else ())):
            table.add_column(name, justify="right")
    for dim in report[measure]:
        cells = []
        for part in parts.values():
            cells.append(_cell(part, measure, dim))
            if "baselines" in part:
                cells += [f"{value:.4f}" for value in (part["baselines"]["pca"][dim], part["baselines"]["full"])]
        table.add_row(dim, *cells)
    return table


def _segments_table(report: dict[str, Any], column: str, parts: dict[str, dict[str, Any]]) -> Table:
    """Segments by dim, those with most queries, after the whole and its parts."""
    measure, found = next(name for name in report if "@" in name), report["segments"][column]
    left = found[MOST_SEGMENTS:]
    title = f"{measure} by {safe_line(column)}, {len(found)} segments, ± 95 % over their queries"
    if left:
        title += f"; {len(left)} with {sum(one['queries'] for one in left)} queries are left out here; --json has them"
    table = Table(title=Text(title), box=SIMPLE, padding=(0, 1, 0, 0))
    # built as text, since consoles differ in what they make of markup
    table.add_column(Text(safe_line(column)), overflow="fold")
    for name in ("queries", *report[measure]):
        table.add_column(name, justify="right")
    segments = [(segment_name(one["value"]), one) for one in found[:MOST_SEGMENTS]]
    for group in ([("all queries", report), *parts.items()], segments):
        for name, part in group:
            table.add_row(Text(name), str(part["queries"]), *(_cell(part, measure, dim) for dim in part[measure]))
            if "baselines" in part:
                table.add_row("  over PCA", "", *_gain_cells(part, measure))
        table.add_section()
    return table


def _gain_cells(part: dict[str, Any], measure: str) -> list[str]:
    """Gains over PCA and half their intervals."""
    cells = []
    for dim, value in part[measure].items():
        low, high = part.get("intervals", {}).get("pca", {}).get(dim, (0, 0))
        gain = f"{value - part['baselines']['pca'][dim]:+.4f}"
        cells.append(gain + (f" ± {(high - low) / 2:.4f}" if high > low else ""))
    return cells


def _cell(report: dict[str, Any], measure: str, dim: str) -> str:
    """A mean and half its interval."""
    low, high = report.get("intervals", {}).get(measure, {}).get(dim, (0, 0))
    return f"{report[measure][dim]:.4f}" + (f" ± {(high - low) / 2:.4f}" if high > low else "")


def _quality_table(report: dict[str, Any]) -> Table:
    """Dims by system, as figures of the report's first measure, with the bytes of a float32 vector."""
    measure = next(name for name in report if "@" in name)
    baselines = report.get("baselines", {})
    where = "nearest documents" if report["split"] is None else report["split"]
    intervals = report.get("intervals", {}).get(measure, {})
    over = ", ± 95 % over them" if intervals else ""
    table = Table(title=f"{measure} on {where}, {report['queries']} queries{over}")
    names = ["model", *(name for name in ("truncation", "pca") if name in baselines)]
    for name in ["dims", "bytes", *names, *(["full"] if "full" in baselines else [])]:
        table.add_column(name, justify="right")
    for dim, value in report[measure].items():
        values = [value, *(baselines[name][dim] for name in names[1:])]
        values += [baselines["full"]] if "full" in baselines else []
        cells = [_cell(report, measure, dim), *(f"{v:.4f}" for v in values[1:])]
        table.add_row(dim, str(int(dim) * np.dtype(np.float32).itemsize), *cells)
    return table
