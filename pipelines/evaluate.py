"""`smec evaluate`: the quality of a stored model at every prefix, beside truncation, PCA and the full embeddings."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from pipelines.console import show
from smec_core.dataset import Dataset
from smec_core.evaluation import default_split, evaluate
from smec_core.model import load


class EvaluateSettings(BaseModel):
    """What `smec evaluate` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str
    """Dataset folder or URI."""
    model: str
    """Model folder."""
    split: Literal["train", "dev", "test"] | None = None
    """Judgements to score by; default: test, else dev, else the nearest documents by the original embeddings."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Share of a split's judgements that may name ids which the data does not hold; they are left out."""
    baselines: bool = False
    """Score truncation, PCA and the original embeddings too."""
    exclude_self: bool = False
    """Never return the document that has the query's own id."""


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluates a model, prints the table and returns the figures."""
    dataset, model = Dataset.open(settings.data, settings.max_unknown), load(settings.model)
    split = settings.split or default_split(dataset)
    report = evaluate(dataset, model, split, settings.baselines, settings.exclude_self)
    show(quality_table(report))
    return report


def quality_table(report: dict[str, Any]) -> Table:
    """Dims by system, as figures of the report's first measure, with the bytes of a float32 vector."""
    measure = next(name for name in report if "@" in name)
    baselines = report.get("baselines", {})
    where = "nearest documents" if report["split"] is None else report["split"]
    table = Table(title=f"{measure} on {where}, {report['queries']} queries")
    names = ["model", *(name for name in ("truncation", "pca") if name in baselines)]
    for name in ["dims", "bytes", *names, *(["full"] if "full" in baselines else [])]:
        table.add_column(name, justify="right")
    for dim, value in report[measure].items():
        values = [value, *(baselines[name][dim] for name in names[1:])]
        values += [baselines["full"]] if "full" in baselines else []
        table.add_row(dim, str(int(dim) * np.dtype(np.float32).itemsize), *(f"{v:.4f}" for v in values))
    return table
