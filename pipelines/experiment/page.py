"""What an experiment leaves behind: a page in Markdown, its figures, and its tables for machines and for papers."""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from pyarrow.fs import LocalFileSystem
from rich.table import Table

from pipelines.storage.files import write_record
from smec_core.data.dataset import Dataset
from smec_core.data.records import read_record
from smec_core.evaluation.significance import query_interval
from smec_core.shown import csv_cell, latex, markdown, safe_line

_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}}
FILES = ".files.json"
"""In the folder of a page: the files that belong to it."""
PACKAGES = ("smec-ray", "torch", "ray", "numpy", "faiss-cpu")


@dataclass(frozen=True)
class ResultTable:
    """A table as it is shown: cells are text, the first column names the row.

    Attributes:
        name: of its files.
        caption: what it shows.
        frame: the cells.
    """

    name: str
    caption: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Page:
    """What an experiment found.

    Attributes:
        title: of the page.
        lead: what was done, in a few sentences.
        findings: what is to be seen, a sentence each.
        tables: shown on the page, and written as CSV.
        figures: by file name.
        data: CSV files by name: what the tables and figures are made of.
        picture: format of the figures.
    """

    title: str
    lead: str
    findings: Sequence[str]
    tables: Sequence[ResultTable]
    figures: Mapping[str, Figure]
    data: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    picture: Literal["svg", "png"] = "svg"


def write_page(
    page: Page,
    out: Path,
    command: str,
    datasets: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    as_latex: bool = False,
) -> Path:
    """Writes README.md, figures and tables into a folder, and removes those of the page before that this one lacks.

    Args:
        page: what was found.
        out: the folder.
        command: the command that made it.
        datasets: `name`, `dim`, `corpus`, `queries`, `train`, `test` of each dataset.
        seeds: of the trainings, where the page is about those.
        as_latex: the tables are written as LaTeX, too.

    Returns:
        The page's path.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [f"{name}.csv" for name in [*page.data, *(table.name for table in page.tables)]]
    files += [f"{table.name}.tex" for table in page.tables if as_latex]
    files += [f"{name}.{page.picture}" for name in page.figures]
    _remove_others(out, files)
    for name, frame in page.data.items():
        _safe(frame, csv_cell).to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    for table in page.tables:
        _safe(table.frame, csv_cell).to_csv(out / f"{table.name}.csv", index=False)
        if as_latex:
            shown = _safe(table.frame, latex)
            shown.to_latex(out / f"{table.name}.tex", index=False, escape=False, caption=latex(table.caption))
    for name, figure in page.figures.items():
        # without a date, and with names of its parts that do not change: the same figures make the same file
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(out / f"{name}.{page.picture}", dpi=150, metadata=_UNDATED[page.picture])
    environment = Environment(
        loader=PackageLoader("pipelines.experiment"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(markdown=lambda value: markdown(str(value)), line=safe_line)
    versions = {name: metadata.version(name) for name in PACKAGES if _is_installed(name)}
    text = environment.get_template("experiment.md.j2").render(
        page=page,
        command=command,
        datasets=datasets,
        seeds=seeds,
        versions={"Python": sys.version.split()[0], **versions},
    )
    path = out / "README.md"
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path


def _remove_others(out: Path, files: Sequence[str]) -> None:
    """Removes files of the page before, which would show older figures beside the new ones; then `files` are known."""
    record = read_record(LocalFileSystem(), str(out / FILES), f"remove {out}, or take another folder") or {}
    for name in {*record.get("files", ())} - {*files}:
        (out / name).unlink(missing_ok=True)
    write_record(LocalFileSystem(), str(out / FILES), {"files": sorted(files)})


def _safe(frame: pd.DataFrame, safe: Callable[[str], Any]) -> pd.DataFrame:
    """A table whose text, names of columns and cells, has gone through a function."""
    return frame.rename(columns=lambda name: safe(str(name))).map(
        lambda cell: safe(cell) if isinstance(cell, str) else cell
    )


def describe(name: str, dataset: Dataset) -> dict[str, Any]:
    """What a page says of a dataset."""
    judged = {split: len(found.with_positives()) for split, found in dataset.splits.items()}
    described = {"name": name, "dim": dataset.dim, "corpus": dataset.corpus.rows, "queries": dataset.queries.rows}
    return described | {split: judged.get(split, 0) for split in ("train", "test")}


def gain_text(gain_Q: np.ndarray) -> str:
    """A mean gain over queries, and half its 95 % interval where there is one: one query has none."""
    half = query_interval(gain_Q)
    return f"{gain_Q.mean():+.4f}" + (f" ± {half:.4f}" if math.isfinite(half) else "")


def file_name(text: str) -> str:
    """A name as it stands in names of files."""
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")


def rich_table(table: ResultTable) -> Table:
    """The table for a terminal."""
    shown = Table(title=table.caption)
    for number, name in enumerate(table.frame.columns):
        shown.add_column(str(name), justify="right" if number else "left")
    for row in table.frame.itertuples(index=False):
        shown.add_row(*map(str, row))
    return shown


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
