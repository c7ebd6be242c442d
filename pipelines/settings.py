"""Settings of a command, merged from preset, file, --set and flags, each later one winning."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from smec_core.errors import InputError

Settings = TypeVar("Settings", bound=BaseModel)


def resolve(
    kind: type[Settings],
    flags: Mapping[str, Any],
    config: Path | None = None,
    assignments: Sequence[str] = (),
    preset: Mapping[str, Any] | None = None,
) -> Settings:
    """Builds a command's settings.

    Args:
        kind: the settings class.
        flags: values of the command line's flags; None means not given.
        config: YAML file of key: value.
        assignments: `key=value` of each --set, the value in YAML.
        preset: values under all the others.

    Raises:
        InputError: an unknown key, with the nearest known one, or a value that does not fit, with where it was set.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = [("the preset", preset or {})]
    if config is not None:
        layers.append((str(config), _read(config)))
    layers.append(("--set", dict(_assignment(text) for text in assignments)))
    layers.append(("flag", {name: value for name, value in flags.items() if value is not None}))
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, layer in layers:
        for key, value in layer.items():
            if key not in kind.model_fields:
                near = difflib.get_close_matches(key, kind.model_fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(f"{where}: unknown key {key!r}{hint}")
            values[key], origin[key] = value, where
    try:
        return kind(**values)
    except ValidationError as error:
        # of each key the first only: what else is wrong with a value often follows from that
        firsts = {problem["loc"][:1]: problem for problem in reversed(error.errors())}
        raise InputError("; ".join(_explain(problem, origin) for problem in reversed(firsts.values()))) from error


class _Loader(yaml.SafeLoader):
    """Reads on, off, yes and no as the words they are: only true and false are booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: must hold key: value lines")
    return content


def _assignment(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--set {text}: expected key=value")
    try:
        return key.strip(), yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: not a valid value") from error


def _explain(problem: Any, origin: Mapping[str, str]) -> str:
    key = str(problem["loc"][0]) if problem["loc"] else ""
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{key}: is required; give --{key.replace('_', '-')} or set it in --config"
    if not key:
        return message
    return f"{key}: {message} (given {problem['input']!r} by {origin.get(key, 'default')})"
