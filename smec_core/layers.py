"""Settings merged from layers, each later one winning, and what is wrong with them, by key and layer.

A setting may be a section of further ones: `{"gate": {"min_gain": 0.01}}`, or `{"gate.min_gain": 0.01}`.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from smec_core.errors import InputError

Kind = TypeVar("Kind", bound=BaseModel)
Layer = tuple[str, Mapping[str, Any]]
"""What a layer is called in messages, and its values."""


def merged(kind: type[Kind], layers: Sequence[Layer], cure: Callable[[str], str]) -> Kind:
    """Builds settings.

    Args:
        kind: the settings class.
        layers: the layers.
        cure: says of a missing setting how to give it.

    Raises:
        InputError: an unknown key, with the nearest known one, or a value that does not fit, with where it was set.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, layer in layers:
        for key, value in _flat(kind, layer, where):
            values[key], origin[key] = value, where
    try:
        return kind(**nested(values))
    except ValidationError as error:
        raise InputError(explained(kind, error, origin, cure)) from error


def explained(
    kind: type[BaseModel],
    error: ValidationError,
    origin: Mapping[str, str],
    cure: Callable[[str], str] | None,
) -> str:
    """What is wrong, of each key the first only: what else is wrong with a value often follows from that.

    Missing settings, and what settings must be together, are told only where there is a `cure`.
    """
    firsts = {_key(kind, problem): problem for problem in reversed(error.errors())}
    return "; ".join(
        _explain(key, problem, origin, cure)
        for key, problem in reversed(firsts.items())
        if cure is not None or (problem["type"] != "missing" and problem["loc"])
    )


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by keys with dots as sections."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        place = found
        for section in path:
            place = place.setdefault(section, {})
        place[name] = value
    return found


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


def _explain(key: str, problem: Any, origin: Mapping[str, str], cure: Callable[[str], str] | None) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{key}: is required; {cure(key) if cure else ''}"
    if key not in origin:
        return message if not key else f"{key}: {message}"
    return f"{key}: {message} (given {problem['input']!r} by {origin[key]})"
