"""The search of a corpus, here or as Ray tasks; either says how far it is."""

from collections.abc import Iterator
from typing import Any

from pipelines.console import RowProgress
from smec_core.distributed.group import rows_of_rank
from smec_core.evaluation.corpus_search import Parts, Work, result_of

SAID_ROWS = 1 << 16
"""A task says how far it is after each so many rows: always after the same ones, so that it can be run again."""


def in_process(work: Work, rows: int) -> list[Any]:
    """All rows at once, in this process."""
    return [result_of(work(0, rows), RowProgress("went through", rows).add)]


def on_cluster(workers: int, cpus: int = 1) -> Parts:
    """Parts of the corpus as Ray tasks, each with some CPUs."""
    # here and not above: `smec evaluate` in one process needs no Ray
    import ray

    from pipelines.runtime.cluster import connect, unwrap

    def parts(work: Work, rows: int) -> list[Any]:
        connect(workers * cpus)
        # the model and the queries go once to a node, not with every task
        held, task = ray.put(work), ray.remote(num_cpus=cpus, num_returns="streaming")(_call)
        ranges = [rows_of_rank(rows, part, workers) for part in range(workers)]
        waiting = {task.remote(held, *part): number for number, part in enumerate(ranges)}
        found: dict[int, Any] = {}
        progress = RowProgress("went through", rows)
        try:
            while waiting:
                some: Any = ray.wait(list(waiting), num_returns=1)[0][0]
                count, result = ray.get(next(some))
                progress.add(count)
                if result is not None:
                    found[waiting.pop(some)] = result
        except ray.exceptions.RayError as error:
            raise unwrap(error) from error
        return [found[number] for number in range(workers)]

    return parts


def _call(work: Work, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """How many rows are done since it last said so, and in the end the result."""
    under_way, rows = work(start, stop), 0
    while True:
        try:
            rows += next(under_way)
        except StopIteration as done:
            yield rows, done.value
            return
        if rows >= SAID_ROWS:
            yield rows, None
            rows = 0
