"""deploy/airflow/smec_retrain.py, read without Airflow: the command that it runs, as a shell and smec read it."""

import ast
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipelines.submit.bundle import parse_command
from pipelines.submit.settings import SubmitSettings

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    """The arguments of the DAG's one task."""
    tree = ast.parse((REPOSITORY / "deploy/airflow/smec_retrain.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    [operator] = [call for call in calls if getattr(call.func, "id", "") == "BashOperator"]
    return {
        str(keyword.arg): ast.literal_eval(keyword.value)
        for keyword in operator.keywords
        if not isinstance(keyword.value, ast.Call)
    }


def _arguments(task: dict[str, Any], run_id: str) -> list[str]:
    """What the shell makes of the command: the arguments of smec."""
    show = task["bash_command"].replace("exec smec", "printf '%s\\n'")
    shell = subprocess.run(["bash", "-c", show], env={"RUN_ID": run_id}, text=True, capture_output=True, check=True)
    return shell.stdout.splitlines()


def test_smec_accepts_the_command(task: dict[str, Any]) -> None:
    command, option, run_id, separator, *inner = _arguments(task, "scheduled__2026-01-02T03:00:00+00:00")

    assert [command, option, separator] == ["submit", "--id", "--"]
    SubmitSettings(command=inner, id=run_id)
    assert str(parse_command(inner)["config"]).startswith("/")


def test_a_hostile_run_id_is_one_argument(task: dict[str, Any], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hostile = f'"; touch {ran}; $(touch {ran})'

    assert _arguments(task, hostile)[2] == hostile
    assert not ran.exists()
    assert task["env"] == {"RUN_ID": "{{ run_id }}"}
    assert "{{" not in task["bash_command"]


def test_a_refused_gate_and_a_run_at_work_are_no_failures(task: dict[str, Any]) -> None:
    assert task["skip_on_exit_code"] == [3, 4]
