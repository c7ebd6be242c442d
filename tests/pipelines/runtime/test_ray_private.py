"""Canaries: what is used of Ray beyond its public API is still there. Each says what to fix where it is not."""

import inspect
import os
import subprocess
import sys
import threading
import time

import pytest
import ray
import ray.data
from ray.job_submission import JobSubmissionClient
from ray.train.torch import TorchTrainer

from pipelines.runtime.ray_private import (
    COORDINATOR,
    end_executions,
    lean_trainer,
    masked_entrypoint,
    reading,
    run_id_of,
    start_coordinator,
    wait_for,
)

pytestmark = pytest.mark.ray


def test_the_coordinator_starts_and_takes_back_a_claim(ray_cluster: None) -> None:
    start_coordinator()
    coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
    assert hasattr(coordinator, "cancel_request"), "Ray's coordinator has no cancel_request: fix withdraw_claim"


def test_a_trainer_leaves_out_callbacks_and_has_a_run_id(ray_cluster: None) -> None:
    whole, lean = TorchTrainer(print), lean_trainer(print, {"PlacementGroupCleanerCallback"})
    names = [type(callback).__name__ for callback in whole._create_default_callbacks()]  # type: ignore[attr-defined]
    assert "PlacementGroupCleanerCallback" in names, (
        "Ray Train has renamed its callbacks: fix `needless` in pipelines/train/driver.py"
    )
    left = [type(callback).__name__ for callback in lean._create_default_callbacks()]  # type: ignore[attr-defined]
    assert sorted([*left, "PlacementGroupCleanerCallback"]) == sorted(names)
    assert run_id_of(lean), "Ray Train has no train_run_context.run_id: fix run_id_of"


def test_an_actor_says_when_it_is_ready(ray_cluster: None) -> None:
    @ray.remote(num_cpus=0)
    class Idle:
        pass

    wait_for(Idle.remote())  # type: ignore[attr-defined]


def test_an_execution_that_is_left_in_its_middle_is_ended(ray_cluster: None) -> None:
    def slowly(row: dict[str, int]) -> dict[str, int]:
        time.sleep(0.2)
        return row

    before = set(threading.enumerate())
    with reading(ray.data.range(1000, override_num_blocks=1000).map(slowly).iter_rows()) as rows:
        next(rows)
        begun = set(threading.enumerate()) - before
    names = sorted(thread.name for thread in begun)
    assert any(name.startswith("StreamingExecutor") for name in names), f"mend end_executions: {names}"
    end_executions()
    # one waits for work that nobody gives it any more
    left = {thread.name for thread in begun if thread.is_alive()} - {"Prefetcher"}
    assert not left, f"mend end_executions: {left}"


WAITING = """
import os, threading, time
import ray
from pipelines.runtime.cluster import _leave, connect

@ray.remote(num_cpus=0)
class Slow:
    def work(self):
        time.sleep(100)

def wait():
    try:
        ray.get(actor.work.remote())
    except ray.exceptions.RayActorError:
        os.write(1, b"ended\\n")

connect(1)
actor = Slow.remote()
for _ in range(3):
    threading.Thread(target=wait, daemon=True).start()
time.sleep(2)
_leave()
# each looks up once a second
time.sleep(2)
os._exit(0)
"""


def test_threads_that_wait_for_an_actor_do_not_crash_a_process_that_ends() -> None:
    # memory that is freed is overwritten at once
    environment = os.environ | {"MALLOC_PERTURB_": "165"}
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "ended\n" * 3), f"mend end_calls: {done.stderr}"


PORT = """
import sys
import ray
from pipelines.runtime.cluster import connect

connect(1, has_metrics=sys.argv[1] == "with")
[node] = ray.nodes()
print(node["MetricsExportPort"])
"""


@pytest.mark.parametrize(("metrics", "is_there"), [("with", True), ("without", False)])
def test_a_ray_of_a_command_exports_metrics_where_they_are_asked_for(metrics: str, is_there: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", PORT, metrics], stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    assert (int(done.stdout) > 0) == is_there, "Ray chooses the modules of its agent elsewhere: fix light_agent"


def test_the_job_client_sends_its_requests_in_one_place() -> None:
    parameters = inspect.signature(JobSubmissionClient._do_request).parameters
    assert list(parameters)[:3] == ["self", "method", "endpoint"], "fix timed_job_client"
    source = inspect.getsource(JobSubmissionClient._do_request)
    assert "**kwargs" in source, "Ray's job client takes no timeout any more: fix timed_job_client"


def test_the_command_line_of_a_driver_is_had_from_one_place() -> None:
    source = inspect.getsource(ray._private.worker)
    assert "entrypoint=ray._private.utils.get_entrypoint_name()" in source, "fix masked_entrypoint"


def test_secrets_of_a_command_line_are_kept_from_the_list_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import utils

    monkeypatch.setattr(utils, "get_entrypoint_name", lambda: "smec check s3://key:hunter2@bucket/x?sig=hunter2")
    with masked_entrypoint():
        assert utils.get_entrypoint_name() == "smec check s3://***@bucket/x?sig=***"
    assert "hunter2" in utils.get_entrypoint_name()


def test_serve_tells_where_it_listens() -> None:
    from ray.serve.context import _get_global_client

    assert "raise_if_no_controller_running" in inspect.signature(_get_global_client).parameters
