"""`smec evaluate`: the quality of a stored model at every prefix, beside truncation, PCA and the full embeddings."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from rich.table import Table

from pipelines.console import show
from pipelines.indexes.store import StoreName
from pipelines.vector_types import VectorType
from smec_core.columns import DEFAULT_NAMES, ColumnNames
from smec_core.dataset import HELD_OUT, Dataset
from smec_core.errors import InputError
from smec_core.evaluation import Parts, default_split, evaluate, in_one_part
from smec_core.group import rows_of_rank
from smec_core.model import Model, load


def _funnel(value: Any) -> Any:
    """Reads 48:384."""
    if not isinstance(value, str):
        return value
    try:
        first, last = (int(dim) for dim in value.split(":"))
    except ValueError:
        raise ValueError("must be two dims, as 48:384") from None
    if not 1 <= first < last:
        raise ValueError("the first dims must be fewer than the second, as 48:384")
    return first, last


Funnel = Annotated[tuple[int, int], BeforeValidator(_funnel)]


class EvaluateSettings(BaseModel):
    """What `smec evaluate` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str
    """Dataset folder or URI."""
    columns: ColumnNames = DEFAULT_NAMES
    """What the columns are called where they have other names: --set columns.id=sku."""
    model: str
    """Model folder."""
    split: Literal["train", "dev", "test", "held_out"] | None = None
    """Judgements to score by; default: test, else dev, else the nearest documents by the original embeddings. held_out:
    those of the queries that the model's training has left out (hold_out)."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Share of a split's judgements that may name ids which the data does not hold; they are left out."""
    baselines: bool = False
    """Score truncation, PCA and the original embeddings too."""
    exclude_self: bool = False
    """Never return the document that has the query's own id; always so for a model that was trained that way."""
    workers: int = Field(1, ge=1)
    """Ray tasks that search parts of the corpus side by side; 1: this process searches it, without Ray."""
    index: StoreName | None = None
    """Measure whole searches in this vector store: quality, bytes and time. pgvector takes the server from libpq's own
    environment variables (PGHOST, PGUSER, PGPASSWORD, ...)."""
    funnel: Funnel | None = None
    """With `index`: search by the first dims, order the shortlist by the second ones as float32; 48:384. By default
    each of the model's dims is searched plainly."""
    dtype: VectorType = "float32"
    """With `index`: number type that all vectors are searched as; binary (signs) is followed by rescoring a shortlist
    with int8 vectors, in pgvector with float16."""
    shortlist: int = Field(100, ge=10)
    """With `index`: rows that rescoring or the second half of a funnel is given."""
    threads: int = Field(1, ge=1)
    """With `index`: threads of exact search and FAISS; with more than one, FAISS's graph is another one every time."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = self.model_fields_set
        if self.index is None and (found := given & {"funnel", "dtype", "shortlist", "threads"}):
            raise ValueError(f"{sorted(found)[0]}: needs --index, the store to search")
        if self.index is not None and (self.baselines or self.workers > 1):
            raise ValueError("index: goes without --baselines and --workers; evaluate those apart")
        return self


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluates a model, or whole searches with it, prints the table and returns the figures."""
    model = load(settings.model)
    exclude_self = settings.exclude_self or bool(model.config.get("train", {}).get("exclude_self"))
    dataset = Dataset.open(settings.data, settings.max_unknown, exclude_self, settings.columns)
    if settings.split == HELD_OUT:
        dataset = _with_held_out(dataset, model, settings.model)
    split = settings.split or default_split(dataset)
    if settings.index is not None:
        from pipelines import evaluate_index

        return evaluate_index.run(settings, dataset, model, split)
    parts = in_one_part if settings.workers == 1 else on_cluster(settings.workers)
    report = evaluate(dataset, model, split, settings.baselines, parts)
    show(quality_table(report))
    return report


def _with_held_out(dataset: Dataset, model: Model, name: str) -> Dataset:
    share = model.config.get("hold_out")
    if not share:
        raise InputError(f"split: the training of {name} has held out no queries (smec train --set hold_out=0.2)")
    return dataset.holding_out(share)


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
    intervals = report.get("intervals", {}).get(measure, {})
    over = ", ± 95 % over them" if intervals else ""
    table = Table(title=f"{measure} on {where}, {report['queries']} queries{over}")
    names = ["model", *(name for name in ("truncation", "pca") if name in baselines)]
    for name in ["dims", "bytes", *names, *(["full"] if "full" in baselines else [])]:
        table.add_column(name, justify="right")
    for dim, value in report[measure].items():
        values = [value, *(baselines[name][dim] for name in names[1:])]
        values += [baselines["full"]] if "full" in baselines else []
        cells = [f"{v:.4f}" for v in values]
        if dim in intervals:
            cells[0] += f" ± {(intervals[dim][1] - intervals[dim][0]) / 2:.4f}"
        table.add_row(dim, str(int(dim) * np.dtype(np.float32).itemsize), *cells)
    return table
