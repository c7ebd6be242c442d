"""deploy/airflow/smec_retrain.py without Airflow: the command that it runs, and what it makes of exit codes.

`test_airflow_runs.py` has the same in a real Airflow.
"""

import runpy
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipelines.submit.bundle import parse_command
from pipelines.submit.settings import SubmitSettings
from tests.deploy.job_cluster import REPOSITORY


class _Raised(Exception):
    pass


class _Skip(_Raised):
    pass


class _Fail(_Raised):
    pass


class _Ran:
    """Stands for Airflow's hook: takes down the command, and ends as it is told."""

    exit_code = 0
    command: list[str]

    def run_command(self, command: list[str]) -> SimpleNamespace:
        _Ran.command = command
        return SimpleNamespace(exit_code=_Ran.exit_code, output="the last line")


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names in the DAG's file, and as `tasks` and `settings` what it hands to Airflow."""
    made: dict[str, Any] = {"tasks": []}

    class Operator:
        def __init__(self, **settings: Any) -> None:
            made["tasks"].append(settings)

    def take(**settings: Any) -> nullcontext[None]:
        made["settings"] = settings
        return nullcontext()

    exceptions = {"AirflowException": _Raised, "AirflowFailException": _Fail, "AirflowSkipException": _Skip}
    modules: dict[str, dict[str, Any]] = {
        "airflow.sdk": {"DAG": take, "BaseOperator": Operator, "Context": dict},
        "airflow.sdk.exceptions": exceptions,
        "airflow.providers.standard.hooks.subprocess": {"SubprocessHook": _Ran},
    }
    for name, content in modules.items():
        parts = name.split(".")
        for end in range(1, len(parts)):
            if ".".join(parts[:end]) not in sys.modules:
                monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return made | runpy.run_path(str(REPOSITORY / "deploy/airflow/smec_retrain.py"))


def _run(dag: dict[str, Any], run_id: str, exit_code: int = 0) -> list[str]:
    _Ran.exit_code = exit_code
    dag["SmecRetrain"]().execute({"run_id": run_id})
    return _Ran.command


# the last two: ids that a person may choose, and that look like an option or mean something to a shell
@pytest.mark.parametrize("run_id", ["scheduled__2026-01-02T03:00:00+00:00", "--detach", '"; touch ran; $(touch ran)'])
def test_smec_accepts_the_command_and_the_id_as_one_argument(dag: dict[str, Any], run_id: str) -> None:
    program, command, option, separator, *inner = _run(dag, run_id)

    assert [program, command, separator] == ["smec", "submit", "--"]
    assert option == f"--id={run_id}"
    assert str(parse_command(inner)["config"]).startswith("/")
    SubmitSettings(command=inner, id="night")


def test_exit_codes_become_states(dag: dict[str, Any]) -> None:
    _run(dag, "night", exit_code=0)
    for code, state in {1: _Raised, 2: _Fail, 3: _Skip, 4: _Skip, 143: _Raised, -9: _Raised}.items():
        with pytest.raises(_Raised, match=f"exit code {code}: the last line") as raised:
            _run(dag, "night", exit_code=code)
        assert raised.type is state


def test_one_run_at_a_time_is_tried_again_and_not_made_up_for(dag: dict[str, Any]) -> None:
    [task, *_] = dag["tasks"]
    assert task["task_id"] == "retrain"
    assert dag["settings"]["max_active_runs"] == 1
    assert dag["settings"]["catchup"] is False
    assert dag["settings"]["default_args"]["retries"] == 2
