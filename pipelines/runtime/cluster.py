"""The Ray cluster that a job runs on, and what of a Ray failure a user should read."""

import atexit
import logging
import os
import shutil
import time
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from joblib import cpu_count
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group

from pipelines.console import say, telling, warn
from pipelines.runtime.leftovers import end_processes, remove_left
from pipelines.runtime.preflight import check_address, check_limits, keep_token, ray_place
from pipelines.runtime.ray_private import end_calls, end_executions, light_agent, masked_entrypoint, wait_for
from pipelines.runtime.settings import ClusterSettings
from smec_core.errors import InputError, SmecError, first_line
from smec_core.masking import mask
from smec_core.temporary import base_folder, make_folder, remove_folder

# how long Ray takes to end an actor whose owner has died, and to say so
DEATH_SECONDS = 2.0

# addresses of the clusters that this process has started
_started: set[str] = set()


class RayFailure(SmecError):
    """Something failed on the cluster that is nobody's mistake, as a lost node: trying again may help."""


def connect(cpus: float, has_metrics: bool = False) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts one on this machine; does nothing when connected.

    Args:
        cpus: logical CPUs that the job needs at once; a cluster started here has at least as many, since Ray would wait
            for ever for CPUs that are not there.
        has_metrics: whether a cluster started here exports metrics; beside another one it then takes four seconds
            longer.

    Raises:
        InputError: this machine lacks what Ray needs.
        SmecError: there is no such cluster.
    """
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address:
            check_address(address)
        else:
            local_cpus = max(int(cpus), cpu_count())
            check_limits(local_cpus)
            keep_token()
            options |= {"num_cpus": local_cpus, "include_dashboard": False, "_temp_dir": str(_new_folder())}
        # where Lance is imported it warns of every fork, and Ray's end in another program
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        agent = nullcontext() if address or has_metrics else light_agent()
        going_on = f"connecting to Ray at {mask(address)}" if address else "starting Ray on this machine"
        try:
            with masked_entrypoint(), agent, telling(going_on):
                ray.init(address or "local", **options)
        except Exception as error:
            # of any kind: Ray raises what it met
            doing = f"connect to Ray at {mask(address)}" if address else "start Ray on this machine"
            raise SmecError(f"cannot {doing}: {first_line(error)}; where the machine is busy, run again") from error
        if not address:
            _started.add(ray.get_runtime_context().gcs_address)
            # Ray opens it to everybody
            os.chmod(options["_temp_dir"], 0o700)
        # Ray's own way out of a process waits half a second for lines of its workers, which are not printed here
        atexit.register(_leave)
    quiet_data()


def _new_folder() -> Path:
    """A folder for a Ray, which goes with it at the end of this process."""
    place = ray_place()
    remove_left(place)
    folder = make_folder(place)
    # before it starts, which may be interrupted, too
    atexit.register(_end, folder)
    return folder


def _leave() -> None:
    """Leaves Ray, with nothing of this process still at work on it."""
    end_executions()
    if ray.is_initialized():
        with suppress(Exception):
            end_calls()
    ray.shutdown()


def _end(folder: Path) -> None:
    """Ends the Ray that this process has started, and whatever of it Ray itself leaves running."""
    with suppress(Exception):
        ray.shutdown()
    with suppress(Exception):
        end_processes(folder)
        if os.environ.get("SMEC_DEBUG") == "1":
            kept = base_folder() / f"smec-ray-logs-{os.getpid()}"
            for logs in folder.glob("session_2*/logs"):
                shutil.move(logs, kept)
                say(f"Ray's logs: {kept}")
    remove_folder(folder)


def is_own() -> bool:
    """Whether the cluster is one that `connect` has started for this process: it is this machine, and ends with it."""
    return ray.is_initialized() and ray.get_runtime_context().gcs_address in _started


def threads_of(settings: ClusterSettings) -> int:
    """CPUs, and torch threads, of each worker of a training."""
    if settings.cpus_per_worker is not None:
        return settings.cpus_per_worker
    is_alone = is_own() or not (ray.is_initialized() or os.environ.get("RAY_ADDRESS"))
    # no more where there are more: the last bits depend on it, and machines should agree
    return 2 if settings.is_one_process and is_alone and cpu_count() > 1 else 1


def quiet_data() -> None:
    """Keeps Ray Data, Train and Tune, in this process, from printing what a user cannot act on."""
    # here and not above: not every process that imports this module uses Ray Data
    from ray.data import DataContext

    # every error that it logs, with a page of traceback, it also raises
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def release_after(actor: Any | None, group_id: str) -> None:
    """Waits for the end of the process that runs a Ray Train run, then gives back what the run's workers hold.

    Where such a process is killed within a job that goes on, Ray Train itself gives it back only with the help of the
    cluster's dashboard, and only of one that it can tell from others on the same machine.

    Args:
        actor: the process, an actor; None for one that has ended.
        group_id: the workers' placement group; one that is gone already does no harm.
    """
    with suppress(ray.exceptions.RayError):
        while actor is not None:
            wait_for(actor)
            time.sleep(DEATH_SECONDS)
    # its controller, which would replace the workers, ends a moment later
    time.sleep(DEATH_SECONDS)
    with suppress(ray.exceptions.RayError):
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group_id)))


def unwrap(error: BaseException) -> SmecError:
    """The error that a user should read, out of whatever Ray wrapped around it."""
    innermost = error
    for cause in _causes(error):
        # what Ray raises in place of an error is of that error's class, too, but of one that cannot be pickled
        if isinstance(cause, SmecError) and not isinstance(cause, ray.exceptions.RayError):
            return cause
        # Ray Data names an empty one as the cause of what it does not hold for a user's mistake
        innermost = cause if str(cause) else innermost
    return RayFailure(f"a Ray worker failed: {type(innermost).__name__}: {first_line(innermost)}")


def _causes(error: BaseException) -> "list[BaseException]":
    """An error and all that it was caused by, outermost first."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or one in found:
            continue
        found.append(one)
        # Ray keeps causes in attributes of its own: tasks in `cause`, Train in `worker_failures`
        waiting += [getattr(one, "cause", None), one.__cause__]
        waiting += list(getattr(one, "worker_failures", {}).values())
    return found


def use_gpus(settings: ClusterSettings, workers: int) -> bool:
    """Whether so many workers train on a GPU each.

    Raises:
        InputError: the settings insist on GPUs, and the cluster has too few.
    """
    found = ray.cluster_resources().get("GPU", 0)
    if settings.gpu == "on" and found < workers:
        raise InputError(f"gpu: {workers} GPU(s) wanted, but the cluster has {found:g}; auto and off train on CPUs")
    if settings.gpu == "wait" and found < workers:
        warn(f"{workers} worker(s) need {workers} GPUs, the cluster has {found:g} now; waiting")
        return True
    return bool(found >= workers and settings.gpu != "off")
