"""What a log collector reads with SMEC_LOG=json."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from pipelines.console import (
    Pace,
    Progress,
    RowProgress,
    adopt_loggers,
    begin,
    console,
    context,
    say,
    say_failed,
    show,
    telling,
    warn,
)
from smec_core.errors import InputError, SmecError
from tests.builders import write_dataset

REPOSITORY = Path(__file__).resolve().parents[2]

LATE_MLFLOW = """
import logging, sys
from contextlib import suppress
from unittest.mock import MagicMock
from pipelines.console import adopt_loggers, begin

begin("train")
from pipelines.train import job as train

adopt_loggers()
assert "mlflow" not in sys.modules
train.connect = lambda cpus: None
with suppress(Exception):  # of a run of nothing
    train.Training._recorder(*[MagicMock()] * 5)
assert "mlflow" in sys.modules
logging.getLogger("mlflow.store").warning("no answer of http://me:hunter2@host/x")
"""


FORGING = """
import logging, warnings
from pipelines.console import begin
from pipelines.cli.command import fail

begin("check")
text = "refused http://me:hunter2@host/\\nFORGED: x\\x1b[2K"
warnings.warn(text)
library = logging.getLogger("some.library")
try:
    try:
        raise KeyError(text)
    except KeyError as error:
        library.exception(text)
        raise ValueError("password='hunter2'\\nsmec: FORGED") from error
except ValueError as error:
    fail(error)
"""


def smec(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "SMEC_LOG": "json"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The state of a process that logs JSON, undone afterwards."""
    monkeypatch.setenv("SMEC_LOG", "json")
    monkeypatch.setattr("pipelines.console._fields", {})
    before = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before
    logging.captureWarnings(False)


def read(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.ray
def test_all_that_a_training_says_is_lines_of_json(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    began = datetime.now(UTC)

    # the files of a run lie where the process runs, so not in the repository
    ended = smec(tmp_path, "train", "--data", str(data), "--dims", "8", "--out", "model", "--set", "epochs=1")

    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    for line in lines:
        assert began <= datetime.fromisoformat(line["time"]) <= datetime.now(UTC)
        assert (line["level"], line["command"]) == ("info", "train")
        assert line["message"]
    # a run's name is known once the data are read
    assert "documents and" in lines[0]["message"] and "run" not in lines[0]
    [run] = {line["run"] for line in lines[1:]}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["run"] == run
    step = next(line for line in lines if "step" in line)
    assert (step["pass"], step["stage"], step["projection"], step["epoch"]) == ("first", 32, "linear", 0)
    assert step["step"] >= 1
    assert step["loss"] > 0
    assert step["rows_per_s"] > 0
    assert "ndcg@10" in ended.stdout, "results stay on stdout"


@pytest.mark.parametrize(("debug", "has_traceback"), [("0", False), ("1", True)])
def test_a_command_that_fails_says_so_in_one_line_without_the_password(
    tmp_path: Path, debug: str, has_traceback: bool
) -> None:
    uri = "sftp://someone:hunter2@host/data"
    ended = smec(tmp_path, "check", uri, SMEC_DEBUG=debug)

    assert ended.returncode == 2
    line = json.loads(ended.stderr)
    assert (line["level"], line["command"]) == ("error", "check")
    assert "host/data" in line["message"]
    assert ("traceback" in line) == has_traceback
    assert "hunter2" not in ended.stdout + ended.stderr


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    ended = smec(tmp_path, "check", "data", SMEC_LOG="xml")
    assert ended.returncode == 2
    assert ended.stderr.strip() == "smec: SMEC_LOG=xml: unknown; text, the default, or json"


def test_lines_tell_the_run_that_they_are_of(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    begin("retrain")
    with context(run="nightly"):
        with context(run="training"):
            say("inside")
        warn("outside")
        try:
            with context(run="training"):
                raise SmecError("the workers are gone")
        except SmecError as error:
            say("goes on")
            say_failed(error, str(error))
    say("after")

    found = [(line["message"], line["level"], line["command"], line.get("run")) for line in read(capsys)]
    assert found == [
        ("inside", "info", "retrain", "training"),
        ("outside", "warning", "retrain", "nightly"),
        ("goes on", "info", "retrain", "nightly"),
        ("the workers are gone", "error", "retrain", "training"),
        ("after", "info", "retrain", None),
    ]


def test_what_libraries_log_has_the_same_form(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("some.library")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    begin("train")
    adopt_loggers()
    library.warning("retry of %s", "http://me:hunter2@host/x")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        library.exception("gave up")

    first, second = read(capsys)
    assert (first["level"], first["logger"], first["command"]) == ("warning", "some.library", "train")
    assert first["message"] == "retry of http://***@host/x"
    assert "ValueError: two\nlines" in second["traceback"]


FORGERY = "x\nsmec: done\x1b[2K [red]:bug:"


def test_a_line_for_people_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SMEC_LOG", raising=False)
    console.cache_clear()
    try:
        say(FORGERY)
        table = Table(FORGERY, title="[b]t[/b]")
        table.add_row(f"漢 {FORGERY}")
        show(table)
        say("x" * 1_000_000)
    finally:
        console.cache_clear()
    printed = capsys.readouterr()
    shown = r"x\nsmec: done\x1b[2K [red]:bug:"
    said, long = printed.err.splitlines()
    assert said == shown
    assert len(long) <= 4000
    assert f"│ 漢 {shown} " in printed.out
    assert "[b]t[/b]" in printed.out
    assert "\x1b" not in printed.out + printed.err


def test_what_libraries_log_and_raise_forges_nothing(tmp_path: Path) -> None:
    for form in ("text", "json"):
        ended = subprocess.run(
            [sys.executable, "-c", FORGING],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "SMEC_LOG": form, "SMEC_DEBUG": "1"},
            capture_output=True,
        )
        text = ended.stderr.decode()
        assert ended.returncode == 1, text
        assert "hunter2" not in text
        assert "\x1b" not in text
        assert text.count("KeyError") == 2
        if form == "text":
            assert "refused http://***@host" in text
            lines = text.rstrip("\n").split("\n")
            assert not [line for line in lines if line.startswith("FORGED")]
            # the last one is our own
            assert [line for line in lines if line.startswith("smec: ")] == [lines[-1]]
        else:
            for line in text.splitlines():
                assert "\n" not in json.loads(line)["message"]


def test_what_mlflow_logs_has_the_same_form_though_it_is_imported_late(tmp_path: Path) -> None:
    # in a process of its own: here MLflow has been imported
    ended = subprocess.run(
        [sys.executable, "-c", LATE_MLFLOW],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "SMEC_LOG": "json"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    line = [json.loads(line) for line in ended.stderr.splitlines()][-1]
    assert (line["logger"], line["message"]) == ("mlflow.store", "no answer of http://***@host/x")


def test_a_loss_that_is_no_number_is_still_json(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    record: dict[str, float | int | str] = {
        "pass": "first",
        "stage": 8,
        "projection": "linear",
        "epoch": 0,
        "step": 1,
        "rows_per_s": 5.0,
    }
    with Progress() as progress:
        progress.update(record | {"loss": float("nan")})
    [line] = capsys.readouterr().err.splitlines()

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not in JSON")

    assert json.loads(line, parse_constant=refuse)["loss"] == "nan"


def test_what_cannot_tell_how_far_it_is_says_that_it_goes_on_and_only_where_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RowProgress, "EVERY_SECONDS", 0.05)
    with telling("thinking"):
        told = ""
        while "thinking, 0 s so far" not in told:
            time.sleep(0.01)
            told += capsys.readouterr().err
    monkeypatch.setattr(RowProgress, "EVERY_SECONDS", 60)
    with telling("thinking"):
        say("a line")
    assert capsys.readouterr().err == "a line\n"


def test_rows_and_steps_are_told_with_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RowProgress, "EVERY_SECONDS", 0)
    rows = RowProgress("compared", 100, "bytes")
    rows.add(40)
    rows.add(60)
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"compared 40 of 100 bytes, [\d,]+ bytes/s, 0 s to go", line)
    monkeypatch.setattr(Progress, "EVERY_SECONDS", -1)
    common: dict[str, float | int | str] = {"projection": "linear", "epoch": 1, "rows_per_s": 5.0, "loss": 1.0}
    with Progress([("first", 16, 4), ("first", 8, 4)]) as progress:
        for step, dim in ((1, 16), (2, 16), (3, 8)):
            progress.update({**common, "pass": "first", "stage": dim, "step": step})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "to go" not in lines[0]
    assert all(re.search(r"rows/s, at this pace at most [\d,]+ s to go$", line) for line in lines[1:])
    pace = Pace()
    assert re.fullmatch(r"2 to go, about [\d,]+ s", pace.done(2)) and pace.done(0) == "0 to go"


def test_people_read_no_json_and_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SMEC_LOG", raising=False)
    console.cache_clear()
    try:
        with context(run="nightly"):
            say("stored at http://me:hunter2@host/x", step=3)
        say_failed(InputError("x"), "x")
    finally:
        console.cache_clear()
    assert capsys.readouterr().err == "stored at http://***@host/x\nsmec: x\n"


def test_a_log_has_every_digit_of_a_wide_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = Table(*[f"column {n} of many" for n in range(12)])
    table.add_row(*[f".{n:02}4321 ± .0123" for n in range(12)])
    show(table)
    [row] = [line for line in capsys.readouterr().out.splitlines() if ".004321" in line]
    assert all(f".{n:02}4321 ± .0123" in row for n in range(12))
