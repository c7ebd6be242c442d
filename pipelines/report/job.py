"""`smec report`: one self-contained HTML page about a model, for whoever decides whether to ship it, or about a study.

The page opens offline: plotly.js, styles and figures are inside it, and its content security policy forbids it to load
anything.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipelines.console import say
from pipelines.report import figures
from pipelines.report.files import ConfigFile, Evaluation, MetricsFile, Record, Stage, read, read_history
from pipelines.report.settings import ReportSettings
from pipelines.report.study import study_page
from pipelines.report.words import (
    NAMES,
    NDCG,
    NEIGHBOURS,
    PROJECTIONS,
    Row,
    count,
    duration,
    gained,
    named,
    notes_of,
    number,
    percent,
    plain,
    reason_of,
    span,
)
from pipelines.storage.apart import check_file_apart, file_above
from pipelines.storage.study import SUMMARY_FILE
from smec_core.checksums import check_folder
from smec_core.errors import InputError
from smec_core.model.files import load
from smec_core.shown import safe_line


def run(settings: ReportSettings) -> dict[str, Any]:
    """Writes the page and returns its key figures.

    Raises:
        InputError: the folder is no model folder, one of its files cannot be read, or `out` cannot be written or is
            a file that has checksums.
    """
    folder = Path(settings.folder)
    check_file_apart("out", Path(settings.out))
    is_study = (folder / SUMMARY_FILE).is_file()
    page = study_page(folder / SUMMARY_FILE) if is_study else _model_page(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        # of every value that the page shows; what is written for it is left as it is
        finalize=lambda value: safe_line(value) if type(value) is str else value,
    )
    environment.filters.update(
        number=number, percent=percent, span=span, gained=gained, count=count, duration=duration, plain=plain
    )
    template = environment.get_template("study.html.j2" if is_study else "report.html.j2")
    _write(Path(settings.out), template.render(page, plotly_js=Markup(get_plotlyjs())))
    say(f"report: {settings.out}")
    if is_study:
        best = [trial.number for trial in page["best"]]
        return {"out": settings.out, "headline": page["headline"], "best": best, "importance": page["importance"]}
    rows = [row._asdict() for row in page["rows"]]
    return {"out": settings.out, "headline": page["headline"], "measure": page["measure"], "dims": rows}


def _model_page(folder: Path) -> dict[str, Any]:
    """Everything the template shows about one model folder: texts, tables, and figures by element id."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give a model folder, as `smec train --out` writes it, or that of smec tune"
        )
    check_folder(folder)
    if (folder / "adapter.safetensors").exists():
        # no page about a model that every other command refuses
        load(folder)
    config = read(folder / "config.json", ConfigFile)
    metrics = read(folder / "metrics.json", MetricsFile)
    # earlier versions have tried several projections in the same steps
    kept = {(stage.dim, stage.projection) for stage in metrics.stages}
    history = [record for record in read_history(folder / "history.jsonl") if (record.stage, record.projection) in kept]
    page = _quality(config.input_dim, metrics)
    drawn, reasons = page["figures"], {}
    for stage in metrics.stages:
        records = [record for record in history if record.stage == stage.dim]
        losses, dev = _curves(stage, records)
        if losses:
            drawn[f"loss-{stage.dim}"] = figures.losses(losses)
        if dev:
            drawn[f"dev-{stage.dim}"] = figures.dev_scores(dev, stage.epochs, stage.dev_score)
            if reason := reason_of(stage, dev):
                reasons[stage.dim] = reason
        # what is still as it began was not learned
        if stage.dim < stage.d_in and stage.epochs and any(stage.importance):
            drawn[f"importance-{stage.dim}"] = figures.importance(stage.importance, stage.dim)
    stages = metrics.stages
    steps = [record for record in history if record.loss is not None]
    seconds = {
        name: [sum(getattr(step, part) for step in steps if step.stage == stage.dim) for stage in stages]
        for name, part in (("compute", "compute"), ("memory search", "search"), ("data", "data"))
    }
    total = sum(map(sum, seconds.values()))
    if total > 0:
        drawn["time"] = figures.times([f"{stage.d_in} → {stage.dim}" for stage in stages], seconds)
    page["time_shares"] = {name: sum(values) / total for name, values in seconds.items()} if total > 0 else {}
    files = {"name": folder.resolve().name, "config": config, "metrics": metrics, "has_history": bool(history)}
    return page | files | {"projections": PROJECTIONS, "reasons": reasons}


def _quality(full_dim: int, metrics: MetricsFile) -> dict[str, Any]:
    """The headline, the table by dim, what to know before shipping, and the two figures of quality against size."""
    found = metrics.evaluation or Evaluation.model_validate({"split": "dev"} | metrics.dev)
    measure = NEIGHBOURS if found.neighbours and not found.ndcg else NDCG
    scores, base = found.ndcg or found.neighbours, found.baselines
    if measure == NEIGHBOURS:
        full = 1.0  # the full embeddings' neighbours are the truth that this measure compares with
        phrase = "{} dims find {} of the full embeddings' ten nearest neighbours at {:.3g}% of the bytes"
    else:
        own = base.full is None
        # a share of nothing is none
        full = (scores.get(full_dim) if own else base.full) or math.nan
        whole = f"this model's nDCG@10 at {full_dim} dims," if own else "the full-dimension nDCG@10"
        phrase = f"{{}} dims keep {{}} of {whole} at {{:.3g}}% of the bytes"
    intervals = found.intervals.get(NAMES[measure], {})
    # a share of the model's own score, where there are no baselines, has none
    kept_intervals = intervals if measure == NEIGHBOURS else found.intervals.get("kept", {})
    rows = [
        Row(
            dim,
            4 * dim,
            full_dim / dim,
            score,
            base.truncation.get(dim),
            base.pca.get(dim),
            score / full,
            intervals.get(dim),
            kept_intervals.get(dim),
        )
        for dim, score in sorted(scores.items(), reverse=True)
    ]
    pick = _pick([row for row in rows if row.dim < full_dim])
    headline = "This model has not been evaluated"
    if rows and not any(row.model for row in rows):
        headline = "No query found a relevant document"
    elif pick:
        between = f" ({span(pick.kept_interval)})" if pick.kept_interval else ""
        headline = phrase.format(pick.dim, percent(pick.kept) + between, 100 / pick.compression)
    elif rows:
        headline = f"{measure} {number(rows[0].model)} at {rows[0].dim} dims"
    drawn: dict[str, figures.Figure] = {}
    if len(rows) > 1:
        across = base.full if measure == NDCG else None
        drawn["quality"] = figures.quality(scores, base.truncation, base.pca, across, measure, intervals)
    if len(rows) > 1 and math.isfinite(full):
        lines = (scores, base.truncation, base.pca)
        model, truncation, pca = ({full_dim / d: 100 * y / full for d, y in line.items()} for line in lines)
        spans = {full_dim / d: (100 * low, 100 * high) for d, (low, high) in kept_intervals.items()}
        drawn["compression"] = figures.compression(model, truncation, pca, measure, spans)
    page = {"full_dim": full_dim, "found": found, "measure": measure, "full": full, "rows": rows, "pick": pick}
    notes = notes_of(full_dim, rows, measure, found, metrics.evaluation is not None)
    if kept := metrics.start.get("kept"):
        name = "PCA" if kept == "pca" else "the closed form"
        notes.append(("info", f"The trained stages were no better on dev than {name}, which this model is."))
    return page | {"headline": headline, "notes": notes, "figures": drawn}


def _pick(rows: Sequence[Row]) -> Row | None:
    """The row to put in the headline: the smallest dim that keeps everything, else 98, 95 or 90 %, else the best."""
    for least in (1.0, 0.98, 0.95, 0.90):
        if good := [row for row in rows if row.kept >= least]:
            return min(good, key=lambda row: row.dim)
    return max(rows, key=lambda row: row.kept, default=None)


def _curves(stage: Stage, records: Sequence[Record]) -> tuple[list[figures.Curve], figures.Curve | None]:
    """Loss curves and the dev score curve of one stage, against epochs trained."""
    losses = []
    for run_name in dict.fromkeys(record.run for record in records):
        steps = [record for record in records if record.run == run_name and record.loss is not None]
        in_epoch, seen = Counter(step.epoch for step in steps), Counter[int]()
        points: dict[float, float | None] = {}
        for step in steps:
            seen[step.epoch] += 1
            points[step.epoch + seen[step.epoch] / in_epoch[step.epoch]] = step.loss
        if points:
            is_replay = run_name == "refit"
            losses.append(figures.Curve("replay" if is_replay else named(stage.projection), is_replay, points))
    scores = {float(record.epoch): record.dev_score for record in records if record.dev_score is not None}
    return losses, figures.Curve(named(stage.projection), False, scores) if scores else None


def _write(out: Path, text: str) -> None:
    """Puts the page in place in one step, so that a reader never sees half of it."""
    if out.is_dir():
        raise InputError(
            f"{out}: cannot write the report: this is a folder; give a file, such as {out / 'report.html'}"
        )
    if below := file_above(out):
        raise InputError(f"{out}: cannot write the report: {below} is a file; give another --out")
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot write the report: {error.strerror}; give another --out") from None
