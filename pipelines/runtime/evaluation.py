"""The search of a corpus as Ray tasks."""

from collections.abc import Callable
from typing import Any

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
