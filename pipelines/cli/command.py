"""Runs the job of a command: its settings, its figures, its exit code. Imports nothing that --help need not have."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from smec_core.errors import GateError, InputError, SmecError, one_line

MODULES = {
    "check": "pipelines.data.check",
    "rollback": "pipelines.retrain.rollback",
    "sample": "pipelines.data.sample",
}
"""Jobs that are no folder of their own."""


def run_job(
    job: str,
    flags: Mapping[str, Any],
    config: Path | None,
    assignments: list[str] | None,
    json_file: Path | None,
    preset: Mapping[str, Any] | None = None,
) -> None:
    """Runs a job module with its settings; ends the process with the exit code of what went wrong."""
    from pipelines.cli.settings import resolve
    from pipelines.console import adopt_loggers, begin, say_failed

    try:
        begin(job)
        module = importlib.import_module(MODULES.get(job, f"pipelines.{job}"))
        adopt_loggers()
        kind = getattr(module, f"{job.capitalize()}Settings")
        if json_file is not None:
            _check_writable(json_file)
        figures = module.run(resolve(kind, flags, config, assignments or [], preset))
        if json_file is not None:
            _write_json(json_file, figures)
    except KeyboardInterrupt as error:
        say_failed(error, str(error) or "interrupted")
        sys.exit(130)
    except Exception as error:
        if json_file is not None and isinstance(error, GateError):
            _write_json(json_file, error.figures)
        fail(error)


def _check_writable(json_file: Path) -> None:
    """Makes the folder of a file that is written when all else is done.

    Raises:
        InputError: it could not be written.
    """
    from pipelines.storage.model_folder import check_local_path

    try:
        # of a URI pathlib has taken a slash
        check_local_path(str(json_file))
    except ValueError as error:
        raise InputError(f"json: {json_file} {error}") from error
    try:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"json: {json_file} cannot be written ({one_line(error)})") from error
    if os.path.isdir(json_file):
        raise InputError(f"json: {json_file} is a folder; name a file")
    if not os.access(json_file.parent, os.W_OK | os.X_OK):
        raise InputError(f"json: {json_file} cannot be written, {json_file.parent} may not be written to")


def _write_json(path: Path, figures: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(figures, indent=2) + "\n")
    os.replace(partial, path)


def fail(error: Exception) -> NoReturn:
    """Prints why a command ends, and ends the process with the error's exit code."""
    from pipelines.console import is_json, say_failed

    message = str(error)
    if os.environ.get("SMEC_DEBUG") == "1" and not is_json():
        message = "".join(traceback.format_exception(error))
    elif not isinstance(error, SmecError):
        message = f"unexpected {type(error).__name__}: {message}; SMEC_DEBUG=1 shows where"
    say_failed(error, message)
    sys.exit(getattr(error, "exit_code", 1))
