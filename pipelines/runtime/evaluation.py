"""An evaluation of a model: its search of the corpus as Ray tasks, and its figures as tables."""

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from smec_core.data.seen import parts_of
from smec_core.distributed.group import rows_of_rank
from smec_core.evaluation.corpus_search import Parts


def on_cluster(workers: int, cpus: int = 1) -> Parts:
    """Parts of the corpus as Ray tasks, each with some CPUs."""
    # here and not above: `smec evaluate` in one process needs no Ray
    import ray

    from pipelines.runtime.cluster import connect, unwrap

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


def quality_tables(report: dict[str, Any]) -> list[Table]:
    """The figures of a report, and where the model knows what it has seen those of seen and of unseen queries."""
    tables = [_quality_table(report)]
    if parts := parts_of(report):
        tables.append(_parts_table(report, parts))
    # evaluations of earlier versions have none
    tables[-1].caption = report.get("advice")
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
