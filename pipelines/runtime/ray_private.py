"""What this project uses of Ray's private API, each with its reason.

tests/pipelines/runtime/test_ray_private.py has a canary for each, which fails when Ray changes it.
"""

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import ray.exceptions

from smec_core.shown import safe_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from ray.serve.config import HTTPOptions
    from ray.train.torch import TorchTrainer

Row = TypeVar("Row")
REQUEST_SECONDS = 30.0
COORDINATOR = "AutoscalingCoordinator"
DATA_THREADS = ("iter_threaded", "ray-data-metadata-prefetch")
"""Of Ray Data, which end with the execution that they read from."""
LEAVE_SECONDS = 2.0
CALL_SECONDS = 10.0
LOOK_SECONDS = 0.05


def start_coordinator() -> None:
    """Starts the actor that a Ray Train run would start, and wait for, before its workers.

    Without it, the run starts later.
    """
    with suppress(ImportError):
        from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

        get_or_create_autoscaling_coordinator()


def withdraw_claim(run_id: str) -> None:
    """Gives back the nodes that a killed Ray Train run has claimed; Ray itself would keep them for three minutes.

    An elastic run takes only what no run before it claims; without this, the next run waits.

    Args:
        run_id: Ray Train's id of the run; one of another cluster, or that has ended well, does no harm.
    """
    with suppress(ValueError, AttributeError, ray.exceptions.RayError):
        coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
        ray.get(coordinator.cancel_request.remote(f"train-{run_id}"))


def run_id_of(trainer: "TorchTrainer") -> str:
    """Ray Train's id of a run, by which its claim is found when a kill has left that behind."""
    return str(trainer.train_run_context.run_id)  # type: ignore[attr-defined]


def wait_for(actor: Any) -> None:
    """Waits until an actor has started; raises where it has ended. No public method is one of all actors."""
    ray.get(actor.__ray_ready__.remote())


@contextmanager
def reading(rows: Iterable[Row]) -> Iterator[Iterator[Row]]:
    """Reads what an execution of Ray Data gives, and closes it at once, also after an error.

    What is left open asks Ray for something once more when it is collected, which may be when there is no Ray any more.
    """
    found = iter(rows)
    try:
        yield found
    finally:
        found.close()  # type: ignore[attr-defined]


def end_executions() -> None:
    """Ends executions of Ray Data that an error has left in their middle.

    Their threads would go on, meet a Ray that has been shut down, and end the process at once with an exit code of 1.
    """
    # no other process has any, and the import takes a second
    if "ray.data" not in sys.modules:
        return
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    threads = threading.enumerate()
    for thread in threads:
        if isinstance(thread, StreamingExecutor):
            with suppress(Exception):
                thread.shutdown(force=True)
    for thread in threads:
        if isinstance(thread, StreamingExecutor) or thread.name in DATA_THREADS:
            thread.join(LEAVE_SECONDS)


def end_calls() -> None:
    """Has threads that wait for an actor of this process wait no more, by ending the actor.

    They would wait in memory that `ray.shutdown` frees, and some of such processes crash.
    """
    until = time.monotonic() + CALL_SECONDS
    while _is_waited_for() and time.monotonic() < until:
        job = ray.get_runtime_context().get_job_id()
        core: Any = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined]
        for name, actor in ray._private.state.actors(job_id=ray.JobID.from_hex(job)).items():
            # fails for an actor that this process does not know
            with suppress(Exception):
                if not actor["IsDetached"]:
                    core.kill_actor(ray.ActorID.from_hex(name), True)
        time.sleep(LOOK_SECONDS)


def _is_waited_for() -> bool:
    """Whether another thread is in `ray.get` or `ray.wait`."""
    here = threading.get_ident()
    for thread, frame in sys._current_frames().items():
        found: FrameType | None = frame
        while found is not None and thread != here:
            if found.f_code.co_name in ("get", "wait") and found.f_code.co_filename == ray._private.worker.__file__:
                return True
            found = found.f_back
    return False


def lean_trainer(loop: Callable[[Any], None], needless: Collection[str], **options: Any) -> "TorchTrainer":
    """Ray Train's trainer without processes that nothing here needs; each takes more than a second to start.

    Args:
        loop: what each worker does.
        needless: names of the classes of Ray Train's own callbacks to leave out.
        options: the trainer's.
    """
    from ray.train.torch import TorchTrainer

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if type(callback).__name__ not in needless]

    return LeanTrainer(loop, **options)


@contextmanager
def masked_entrypoint() -> Iterator[None]:
    """Keeps secrets of this process's command line out of the cluster's list of jobs, in which Ray shows it whole.

    No option of `ray.init` gives it another one.
    """
    from ray._private import utils

    found = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: safe_line(found())
    try:
        yield
    finally:
        utils.get_entrypoint_name = found


@contextmanager
def light_agent() -> Iterator[None]:
    """Has a Ray that starts meanwhile leave out what nobody asks of one that ends with its command.

    Its agent then serves no metrics, jobs and logs, as if Ray were installed without "default"; with them it waits four
    seconds for a port that the agent of another Ray on this machine has. No option of `ray.init` says so.
    """
    from ray._private import utils

    found = utils.get_dashboard_dependency_error
    utils.get_dashboard_dependency_error = lambda: ImportError("left out")
    try:
        yield
    finally:
        utils.get_dashboard_dependency_error = found


def timed_job_client(address: str) -> "JobSubmissionClient":
    """Ray's job client with a time limit on its requests, without which a lost machine is waited for."""
    from ray.job_submission import JobSubmissionClient

    class TimedJobClient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": REQUEST_SECONDS, **options})

    return TimedJobClient(address)


def serve_http_options() -> "HTTPOptions | None":
    """Where Serve listens on the cluster; None where it does not run. No public API tells."""
    from ray.serve.context import _get_global_client

    running = _get_global_client(raise_if_no_controller_running=False)
    return None if running is None else running.http_config
