"""Settings of a command, merged from preset, file, --set and flags, each later one winning.

A setting may be a section of further ones: `gate: {min_gain: 0.01}` in a file, --set gate.min_gain=0.01.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from smec_core.errors import InputError
from smec_core.yaml_file import parse_value, read_mapping

Settings = TypeVar("Settings", bound=BaseModel)


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
    layers: list[tuple[str, Mapping[str, Any]]] = [("the preset", preset or {})]
    if config is not None:
        layers.append((str(config), read_mapping(Path(config))))
    layers.append(("--set", dict(read_assignment(text) for text in assignments)))
    layers.append(("flag", {name: value for name, value in flags.items() if value is not None}))
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, layer in layers:
        for key, value in _flat(kind, layer, where):
            values[key], origin[key] = value, where
    try:
        return kind(**_nested(values))
    except ValidationError as error:
        raise InputError(_explained(kind, error, origin, flags)) from error


def check_flags(kind: type[BaseModel], flags: Mapping[str, Any]) -> None:
    """Checks the values of flags by themselves, where the other settings cannot be read.

    Raises:
        InputError: a value does not fit.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        kind(**_nested(given))
    except ValidationError as error:
        # what settings must be together cannot be said of some of them
        if any(problem["type"] != "missing" and problem["loc"] for problem in error.errors()):
            raise InputError(_explained(kind, error, dict.fromkeys(given, "flag"), None)) from error


def _explained(
    kind: type[BaseModel], error: ValidationError, origin: Mapping[str, str], flags: Mapping[str, Any] | None
) -> str:
    """What is wrong, of each key the first only: what else is wrong with a value often follows from that.

    Missing settings are reported only if `flags` says which of them have a flag.
    """
    firsts = {_key(kind, problem): problem for problem in reversed(error.errors())}
    return "; ".join(
        _explain(key, problem, origin, flags is not None and key in flags)
        for key, problem in reversed(firsts.items())
        if flags is not None or (problem["type"] != "missing" and problem["loc"])
    )


def _section(kind: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The settings class of a section."""
    field = kind.model_fields.get(key)
    found = field.annotation if field else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _flat(kind: type[BaseModel], layer: Mapping[str, Any], where: str, above: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots for what is in sections, and their values."""
    for key, value in layer.items():
        name, dot, rest = key.partition(".")
        section = _section(kind, name)
        if name not in kind.model_fields or (dot and section is None):
            near = difflib.get_close_matches(key, kind.model_fields, n=1)
            hint = f"; did you mean {above + near[0]!r}?" if near else ""
            raise InputError(f"{where}: unknown key {above + key!r}{hint}")
        if section is None:
            yield above + key, value
            continue
        content = {rest: value} if dot else value
        if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
            raise InputError(f"{where}: {above + key}: must hold key: value lines")
        yield from _flat(section, content, where, f"{above}{name}.")


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        place = nested
        for section in path:
            place = place.setdefault(section, {})
        place[name] = value
    return nested


def _key(kind: type[BaseModel], problem: Any) -> str:
    """The key that a problem is with, with dots."""
    path: list[str] = []
    for part in problem["loc"]:
        path.append(str(part))
        section = _section(kind, str(part))
        if section is None:
            break
        kind = section
    return ".".join(path)


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


def _explain(key: str, problem: Any, origin: Mapping[str, str], has_flag: bool) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        flag = f"give --{key.replace('_', '-')} or " if has_flag else ""
        return f"{key}: is required; {flag}set it in --config"
    if key not in origin:
        return message if not key else f"{key}: {message}"
    return f"{key}: {message} (given {problem['input']!r} by {origin[key]})"
