"""`smec evaluate`: the quality of a stored model at every prefix, beside truncation, PCA and the full embeddings."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from pipelines.console import show
from smec_core.dataset import Dataset
from smec_core.evaluation import Parts, default_split, evaluate, in_one_part
from smec_core.group import rows_of_rank
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
    """Never return the document that has the query's own id; always so for a model that was trained that way."""
    workers: int = Field(1, ge=1)
    """Ray tasks that search parts of the corpus side by side; 1: this process searches it, without Ray."""


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluates a model, prints the table and returns the figures."""
    model = load(settings.model)
    exclude_self = settings.exclude_self or bool(model.config.get("train", {}).get("exclude_self"))
    dataset = Dataset.open(settings.data, settings.max_unknown, exclude_self)
    split = settings.split or default_split(dataset)
    parts = in_one_part if settings.workers == 1 else on_cluster(settings.workers)
    report = evaluate(dataset, model, split, settings.baselines, parts)
    show(quality_table(report))
    return report


def on_cluster(workers: int, cpus: int = 1) -> Parts:
    """Parts of the corpus as Ray tasks, each with some CPUs."""
    # here and not above: `smec evaluate` in one process needs no Ray
    import ray

    from pipelines.cluster import connect, unwrap

    def parts(work: Callable[[int, int], Any], rows: int) -> list[Any]:
        connect(workers * cpus)
        # the model and the queries go once to a node, not with every task
        held, task = ray.put(work), ray.remote(num_cpus=cpus)(_call)
        ranges = [rows_of_rank(rows, part, workers) for part in range(workers)]
        try:
            found: list[Any] = ray.get([task.remote(held, *part) for part in ranges])
        except ray.exceptions.RayError as error:
            raise unwrap(error) from error
        return found

    return parts


def _call(work: Callable[[int, int], Any], start: int, stop: int) -> Any:
    return work(start, stop)


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
