"""Runs the job of a command: its settings, its figures, its exit code. Imports nothing that --help need not have."""

import importlib
import json
import math
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from pipelines import signals
from smec_core.config import PRESETS
from smec_core.errors import InputError, SmecError, one_line
from smec_core.masking import mask
from smec_core.temporary import base_folder


def run_job(
    name: str,
    run: str,
    kind: type[BaseModel],
    flags: Mapping[str, Any],
    *,
    preset: str | None,
    config: str | None,
    assign: Sequence[str],
    json_file: str | None,
    rerun: str,
) -> None:
    """Runs a job; ends the process with the exit code of what went wrong.

    Args:
        name: the command.
        run: the module that has the job's `run`.
        kind: the job's settings class.
        flags: values of the flags and arguments, by setting; None where not given.
        preset: name of the settings under all others.
        config: YAML file of settings.
        assign: each --set.
        json_file: where the figures go.
        rerun: what the same command does after a signal.
    """
    from pipelines.console import adopt_loggers, begin, say_failed, warn

    figures_file = None if json_file is None else Path(json_file)
    try:
        begin(name)
        signals.then(rerun)
        signals.begin(lambda text: say_failed(KeyboardInterrupt(), text))
        settings = settings_of(kind, flags, preset, config, assign)
        if figures_file is not None:
            _check_writable(figures_file)
        if signals.is_installed():
            from pipelines.runtime.leftovers import remove_left

            remove_left(base_folder())
        module = importlib.import_module(run)
        adopt_loggers()
        figures = module.run(settings)
        if figures_file is not None:
            _write_json(figures_file, figures)
    except KeyboardInterrupt as error:
        # a signal is said when it comes
        if not signals.came():
            say_failed(error, str(error) or "interrupted")
        sys.exit(130)
    except Exception as error:
        if signals.came():
            # it is what led to this
            sys.exit(130)
        if figures_file is not None and isinstance(error, SmecError) and error.figures is not None:
            try:
                _write_json(figures_file, error.figures)
            except SmecError as problem:
                warn(str(problem))
        fail(error)


def settings_of(
    kind: type[BaseModel], flags: Mapping[str, Any], preset: str | None, config: str | None, assign: Sequence[str]
) -> BaseModel:
    """A command's settings out of what its command line gives, as `run_job` takes it.

    Raises:
        InputError: they do not fit.
    """
    from pipelines.cli.settings import resolve

    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset {preset}: unknown; known: {', '.join(PRESETS)}")
    return resolve(kind, flags, config, assign, PRESETS[preset] if preset else None)


def _check_writable(json_file: Path) -> None:
    """Makes the folder of a file that is written when all else is done.

    Raises:
        InputError: it could not be written.
    """
    from pipelines.storage.apart import check_file_apart
    from pipelines.storage.model_folder import check_local_path

    try:
        # of a URI pathlib has taken a slash
        check_local_path(str(json_file))
    except ValueError as error:
        raise InputError(f"json: {json_file} {error}") from error
    if os.path.isdir(json_file):
        raise InputError(f"json: {json_file} is a folder; name a file")
    if _is_stream(json_file):
        if not os.access(json_file, os.W_OK):
            raise InputError(f"json: {json_file} may not be written to")
        return
    check_file_apart("json", json_file)
    folder = Path(os.path.realpath(json_file)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"json: {json_file} cannot be written ({one_line(error)})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"json: {json_file} cannot be written, {folder} may not be written to")


def _is_stream(path: Path) -> bool:
    """Whether it is to be written to and not replaced: a pipe, a device, or a file that this process prints into."""
    try:
        state = path.stat()
    except OSError:
        return False
    printed_into = []
    for stream in (1, 2):
        # it may be closed
        with suppress(OSError):
            printed_into.append(os.fstat(stream))
    return not stat.S_ISREG(state.st_mode) or any(os.path.samestat(state, one) for one in printed_into)


def _write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes the figures: a file, or what a link leads to, whole.

    Raises:
        SmecError: they cannot be written.
    """
    text = json.dumps(_masked(figures), indent=2) + "\n"
    try:
        if _is_stream(path):
            # behind what was printed
            sys.stdout.flush()
            with path.open("a") as stream:
                stream.write(text)
            return
        target = Path(os.path.realpath(path))
        partial = target.with_name(f".{target.name}.partial")
        partial.write_text(text)
        os.replace(partial, target)
    except OSError as error:
        raise SmecError(f"json: {path} cannot be written ({one_line(error)}), so it lacks the figures") from error


def _masked(value: Any) -> Any:
    """Figures without secrets, since some hold the place that the user has named; JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _masked(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return mask(value) if isinstance(value, str) else value


def fail(error: Exception) -> NoReturn:
    """Prints why a command ends, and ends the process with the error's exit code."""
    from pipelines.console import say_failed

    message = str(error)
    if not isinstance(error, SmecError):
        message = f"unexpected {type(error).__name__}: {message}; SMEC_DEBUG=1 shows where"
    say_failed(error, message)
    sys.exit(getattr(error, "exit_code", 1))
