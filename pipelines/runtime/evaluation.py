"""An evaluation of a model: its search of the corpus as Ray tasks, and its figures as a table."""

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from smec_core.distributed.group import rows_of_rank
from smec_core.evaluation.evaluate import Parts


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
