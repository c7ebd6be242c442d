"""Settings of a command, merged from preset, file, --set and flags, each later one winning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from smec_core.errors import InputError
from smec_core.layers import Layer, explained, merged, nested
from smec_core.yaml_file import parse_value, read_mapping

Settings = TypeVar("Settings", bound=BaseModel)


FLAGS_ONLY = {
    "preset": "a preset is given by a flag of smec train, --preset NAME",
    "json": "figures are asked for by a flag, --json FILE",
    "config": "a file of settings is given by a flag, --config FILE",
    "set": "single settings are given by a flag, --set KEY=VALUE",
    "from": "what --from gives is called base here",
}
"""What are flags and no settings, or settings under another name; and what to do."""

PLACES = {"path", "data", "input", "output", "out", "model", "folder", "storage", "scratch", "base", "warm_start"}
PLACES |= {"source", "clicks", "encoder", "space"}
"""Settings that are files or folders."""


def resolve(
    kind: type[Settings],
    flags: Mapping[str, Any],
    config: str | Path | None = None,
    assignments: Sequence[str] = (),
    preset: Mapping[str, Any] | None = None,
) -> Settings:
    """Builds a command's settings.

    Args:
        kind: the settings class.
        flags: values of all the flags that the command has; None means not given.
        config: YAML file of key: value.
        assignments: `key=value` of each --set, the value in YAML.
        preset: values under all the others.

    Raises:
        InputError: an unknown key, with the nearest known one, or a value that does not fit, with where it was set.
    """
    layers: list[Layer] = [("the preset", preset or {})]
    assigned = dict(read_assignment(text) for text in assignments)
    if config is not None:
        layers.append((str(config), read_mapping(Path(config))))
    layers.append(("--set", assigned))
    for where, layer in layers:
        for key in FLAGS_ONLY.keys() & layer.keys() - kind.model_fields.keys():
            raise InputError(f"{where}: unknown key {key!r}; {FLAGS_ONLY[key]}")
    layers.append(("flag", {name: value for name, value in flags.items() if value is not None}))

    def cure(key: str) -> str:
        flag = f"give --{key.replace('_', '-')} or " if key in flags else ""
        return f"{flag}set it in --config"

    settings = merged(kind, layers, cure)
    _refuse_empty(settings)
    return settings


def _refuse_empty(settings: BaseModel, section: str = "") -> None:
    """Refuses an empty path, as of a variable that is not set: it would be the working directory, or the root.

    Raises:
        InputError: one is empty.
    """
    for key, value in settings:
        if isinstance(value, BaseModel):
            _refuse_empty(value, f"{section}{key}.")
        elif key in PLACES and (value == "" or (isinstance(value, tuple) and "" in value)):
            raise InputError(f"{section}{key}: is empty; name a file or folder (a variable that is not set?)")


def check_flags(kind: type[BaseModel], flags: Mapping[str, Any]) -> None:
    """Checks the values of flags by themselves, where the other settings cannot be read.

    Raises:
        InputError: a value does not fit.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        kind(**nested(given))
    except ValidationError as error:
        # what settings must be together cannot be said of some of them
        if any(problem["type"] != "missing" and problem["loc"] for problem in error.errors()):
            raise InputError(explained(kind, error, dict.fromkeys(given, "flag"), None)) from error


def read_assignment(text: str) -> tuple[str, Any]:
    """Key and value of one --set.

    Raises:
        InputError: it is none.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--set {text}: expected key=value")
    try:
        return key.strip(), parse_value(value)
    except ValueError as error:
        raise InputError(f"--set {text}: {error}") from error
