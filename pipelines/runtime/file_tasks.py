"""Jobs of one task per file on a pool of Ray Data actors: what compressing and encoding have in common."""

import json
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from joblib import cpu_count
from ray.util.annotations import RayDeprecationWarning

from pipelines.console import telling, warn
from pipelines.runtime.cluster import connect, unwrap
from pipelines.runtime.ray_private import reading
from smec_core.data.stored_files import StoredFile
from smec_core.errors import InputError, SmecError, first_line

# a lost node takes with it what its workers have made
WORKER_DIED = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError)
DEATHS_IN_A_ROW = 3
"""How often workers may die without a new file in between, before the job is given up."""


def record(
    rows: int = 0, done: StoredFile | None = None, error: SmecError | None = None, warning: str = ""
) -> dict[str, Any]:
    """What a file task hands back as it goes: rows since its last record, its finished file, or why it cannot go on.

    A warning is what the user is to know meanwhile.
    """
    return {
        "rows": rows,
        "done": json.dumps(done) if done else "",
        # whole: what becomes of the job's work depends on the kind
        "error": pickle.dumps(error) if error else b"",
        "warning": warning,
    }


def report_errors(records: Iterator[dict[str, Any]], file: str) -> Iterator[dict[str, Any]]:
    """Turns errors that a user can act on into a last record: Ray Data logs a page for every exception it meets."""
    try:
        yield from records
    except SmecError as error:
        yield record(error=error)
    except (OSError, pa.ArrowException) as error:
        yield record(error=SmecError(f"{file}: {first_line(error)}"))


def run_file_tasks(
    worker: type, arguments: dict[str, Any], tasks: list[dict[str, Any]], workers: int, gpus: float
) -> Iterator[tuple[int, StoredFile | None]]:
    """Runs one task per file on a pool of actors, as a Ray Data job.

    Args:
        worker: class of the actors, made once each with `arguments`; a call takes a task and yields `record`s.
        arguments: keyword arguments of `worker`.
        tasks: JSON-like, all with the same keys.
        workers: actors in the pool.
        gpus: GPUs of each actor; a fraction is shared.

    Where a worker dies, all tasks are given out again: those that are finished are found so, and hand their files back.

    Yields:
        As they come, in no order: rows done since the task's last record, and each file once, when it is finished.

    Raises:
        SmecError: the first error of a task, of the kind it was raised as, or workers that die again and again.
    """
    finished: set[str] = set()
    left = DEATHS_IN_A_ROW
    while True:
        try:
            for rows, done in _run(worker, arguments, tasks, workers, gpus):
                is_new = done is not None and done.name not in finished
                if done is not None and is_new:
                    finished.add(done.name)
                    left = DEATHS_IN_A_ROW
                yield rows, done if is_new else None
            return
        except WORKER_DIED as error:
            left -= 1
            if not left:
                raise unwrap(error) from error
            warn(f"a worker died ({type(error).__name__}); going on with the files that are not finished")
        except ray.exceptions.RayError as error:
            raise unwrap(error) from error


def _run(
    worker: type, arguments: dict[str, Any], tasks: list[dict[str, Any]], workers: int, gpus: float
) -> Iterator[tuple[int, StoredFile | None]]:
    """Runs all tasks once."""
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    # a record is handed over when it is made, not with the block of 128 MiB that it would be part of
    dataset.context.target_max_block_size = 1
    pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2)
    # Ray prints an error for every pool whose actors it may restart, which it cannot always (ray#57733, ray#53727);
    # the argument is to go, but no other way to say this has come yet
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        records = dataset.flat_map(
            worker, fn_constructor_kwargs=arguments, compute=pool, num_cpus=1, num_gpus=gpus, max_restarts=0
        )
    with telling("starting workers, or working on long files"), reading(records.iter_rows()) as items:
        for item in items:
            if item["error"]:
                raise pickle.loads(item["error"])
            if item["warning"]:
                warn(item["warning"])
            yield item["rows"], StoredFile(*json.loads(item["done"])) if item["done"] else None


def actor_pool(tasks: int, workers: int | None, gpu: str, share_gpus: bool) -> tuple[int, float]:
    """Connects to Ray and sizes a pool: how many actors, and the GPUs of each.

    Args:
        tasks: how many there are; no more actors than that.
        workers: actors that the user wants; None for as many as the cluster has room for.
        gpu: "auto", "on" or "off".
        share_gpus: whether one actor per CPU shares the GPUs evenly, or an actor has a GPU of its own.

    Raises:
        InputError: gpu is "on" and the cluster has none.
    """
    connect(float(workers or cpu_count()))
    resources = ray.cluster_resources()
    found = 0 if gpu == "off" else int(resources.get("GPU", 0))
    if gpu == "on" and not found:
        raise InputError("gpu is on, but the Ray cluster has no GPU; use gpu=auto or off")
    if found and not share_gpus:
        return min(tasks, workers or found, found), 1.0
    workers = min(tasks, workers or max(1, int(resources.get("CPU", 1))))
    if not resources.get("CPU"):
        warn(f"the cluster has no CPUs now; {workers} worker(s) will run when it has, name --workers for more")
    # Ray counts GPUs in steps of 1/10000
    sharers = -(-workers // found) if found else 1
    return workers, 10_000 // sharers / 10_000 if found else 0.0
