"""A real Airflow with its scheduler, in an environment of its own, and its public API as a person's clicks use it."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from tests.kills import descendants
from tests.own_environment import own_environment

REQUIREMENTS = Path(__file__).with_name("airflow-requirements.txt")
PATIENCE_SECONDS = 600  # until something has hung, on a busy machine


def airflow_environment() -> Path:
    """The folder of an environment with Airflow, outside of this repository.

    Airflow's pins are not those of this project, so it cannot be part of the development environment.
    """
    return own_environment("airflow", REQUIREMENTS)


class Airflow(NamedTuple):
    """A running Airflow with one DAG."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    """AIRFLOW_HOME, which has the log of the server and those of all tasks."""
    address: str
    dag: str
    """Id of the DAG; its one task has the id `task`."""
    task: str

    def trigger(self, run_id: str) -> None:
        """Starts a run by hand."""
        self._ask("POST", f"/dags/{self.dag}/dagRuns", {"dag_run_id": run_id, "logical_date": None})

    def clear(self, run_id: str) -> None:
        """Clears the run's task, as a person who wants it to run again."""
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [self.task], "only_failed": False}
        self._ask("POST", f"/dags/{self.dag}/clearTaskInstances", body)

    def mark_failed(self, run_id: str) -> None:
        """Marks the run's task as failed, which ends a running one."""
        self._ask("PATCH", f"{self._task_path(run_id)}", {"new_state": "failed"})

    def state(self, run_id: str) -> tuple[str | None, int]:
        """State of the run's task, and the number of its tries."""
        task = self._ask("GET", self._task_path(run_id))
        return task["state"], task["try_number"]

    def wait(self, run_id: str, number: int = 1) -> str | None:
        """Waits for the end of a try of the run's task, and gives the state it has then."""
        self.until(lambda: _is_over(*self.state(run_id), number), f"the end of try {number} of {run_id}")
        state, tries = self.state(run_id)
        assert tries == number, f"{run_id} was tried again:\n{self.task_log(run_id, number)}"
        return state

    def wait_for_line(self, run_id: str, number: int, text: str) -> None:
        """Waits until a try of the run's task has printed something."""
        self.until(lambda: text in self.task_log(run_id, number), f"{text!r} in try {number} of {run_id}")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Waits until something is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, f"Airflow has ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.log()}"
            time.sleep(0.5)

    def task_log(self, run_id: str, number: int) -> str:
        """What a try of the run's task has printed; nothing before it has started."""
        if self.state(run_id)[1] < number:
            return ""
        try:
            content = self._ask("GET", f"{self._task_path(run_id)}/logs/{number}?full_content=true")["content"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
            raise
        return "\n".join(line["event"] if isinstance(line, dict) else str(line) for line in content)

    def log(self) -> str:
        """What the server has printed."""
        return (self.folder / "airflow.log").read_text()

    def _task_path(self, run_id: str) -> str:
        return f"/dags/{self.dag}/dagRuns/{quote(run_id, safe='')}/taskInstances/{self.task}"

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        return _ask(f"{self.address}/api/v2{path}", method, body)


def _is_over(state: str | None, tries: int, number: int) -> bool:
    return tries >= number and state in ("success", "skipped", "failed")


@contextmanager
def start_airflow(folder: Path, dag_file: str, dag: str, task: str, env: Mapping[str, str]) -> Iterator[Airflow]:
    """Airflow with SQLite and one DAG, whose tasks run in `env`; its PATH must have what they start."""
    binaries = airflow_environment() / "bin"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    (folder / "dags").mkdir(parents=True)
    (folder / "dags" / "dag.py").write_text(dag_file)
    settings = {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        # as in production, but sooner: a task whose worker was lost is noticed
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "PATH": f"{binaries}{os.pathsep}{env['PATH']}",
    }
    with (folder / "airflow.log").open("w") as log:
        process = subprocess.Popen(
            [binaries / "airflow", "standalone"],
            env={**env, **settings},
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    airflow = Airflow(process, folder, address, dag, task)
    try:
        _wait_for_dag(airflow)
        yield airflow
    finally:
        # commands of tasks are in groups of their own
        started = descendants(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for left in started:
            if left.is_alive():
                os.kill(left.pid, signal.SIGKILL)


def _wait_for_dag(airflow: Airflow) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and airflow.process.poll() is None:
        with suppress(OSError):
            errors = _ask(f"{airflow.address}/api/v2/importErrors", "GET")["import_errors"]
            assert not errors, errors
            if not _ask(f"{airflow.address}/api/v2/dags/{airflow.dag}", "GET")["is_paused"]:
                return
        time.sleep(0.5)
    pytest.fail(f"Airflow did not start:\n{airflow.log()}")


def _ask(url: str, method: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=30) as answer:
        return json.load(answer)
