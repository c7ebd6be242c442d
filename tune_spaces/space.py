"""Search spaces as YAML: which settings of the method to search, and in what range.

    tau: {loguniform: [0.1, 10]}        uniform, loguniform: numbers between the two
    queue_size: {logint: [1000, 20000]} int, logint: whole numbers, both ends included
    init: {choice: [closed, pca]}     choice: one of these

Every key is a setting of smec_core.config.TrainConfig.
"""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from pydantic import ValidationError

from smec_core.config import TrainConfig
from smec_core.errors import InputError
from smec_core.yaml_file import read_entries

Space = dict[str, BaseDistribution]

KINDS = ("uniform", "loguniform", "int", "logint", "choice")
_IS_MEASURED = "decides how trials are compared and cannot be searched; give it with --set"
FIXED = {
    **dict.fromkeys(
        (
            "dims",
            "seed",
            "guard",
            "guard_tolerance",
            "dev_fraction",
            "dev_queries",
            "dev_corpus",
            "refit",
            "sample_rows",
        ),
        _IS_MEASURED,
    ),
    "exclude_self": "is how the data is read, the same for all trials, and cannot be searched; give it with --set",
    "compatible": "is for a warm start, which no trial is, and cannot be searched; leave it out",
}
"""Settings that cannot be searched, and why: trials that differ in how they are measured cannot be compared."""


def shipped_spaces() -> dict[str, Path]:
    """The search spaces that come with the project, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def read_space(name_or_path: str, base: TrainConfig) -> Space:
    """Reads a search space and checks it against the settings.

    Args:
        name_or_path: a YAML file, or the name of a space that is shipped.
        base: the settings that are not searched, and the defaults of those that are, all of which have a value.

    Returns:
        The distribution of every setting that is searched.

    Raises:
        InputError: the file cannot be read or is no search space, with the line at fault.
    """
    path = shipped_spaces().get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a YAML file, or one of {', '.join(shipped_spaces())}")
    entries = read_entries(path)
    if not entries:
        raise InputError(f"{path}: holds no search space; write lines as  tau: {{loguniform: [0.1, 10]}}")
    space: Space = {}
    lines = {entry.key: f"{path}:{entry.line}" for entry in entries}
    for name, value, _ in entries:
        _check_name(name, lines[name])
        space[name] = _checked(name, _distribution(name, value, lines[name]), base, lines[name])
    _check_queue(space, lines, base)
    return space


def describe(space: Space) -> dict[str, Any]:
    """A space as plain values, by which two can be told apart."""
    return {name: json.loads(distribution_to_json(one)) for name, one in space.items()}


def distributions(described: Mapping[str, Any]) -> Space:
    """The space that `describe` described."""
    return {name: json_to_distribution(json.dumps(one)) for name, one in described.items()}


def _check_name(name: str, where: str) -> None:
    if name not in TrainConfig.model_fields:
        near = difflib.get_close_matches(name, TrainConfig.model_fields, n=1)
        raise InputError(f"{where}: unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if name in FIXED:
        raise InputError(f"{where}: {name} {FIXED[name]}")


def _distribution(name: str, spec: Any, where: str) -> BaseDistribution:
    if not isinstance(spec, Mapping) or len(spec) != 1 or next(iter(spec)) not in KINDS:
        raise InputError(f"{where}: {name} must be one of {', '.join(KINDS)}, as  {name}: {{{KINDS[0]}: [1, 2]}}")
    [(kind, values)] = spec.items()
    if not isinstance(values, list) or len(values) < 2:
        raise InputError(f"{where}: {name} needs a list, {kind}: [{'LOW, HIGH' if kind != 'choice' else 'A, B, ...'}]")
    if kind == "choice":
        if any(not isinstance(value, str | int | float) for value in values) or len({*map(str, values)}) < len(values):
            raise InputError(f"{where}: {name} must list different words, numbers, true or false")
        return CategoricalDistribution(values)
    if len(values) > 2:
        raise InputError(f"{where}: {name} has {len(values)} ends; {kind} takes LOW and HIGH")
    low, high = (_number(value, kind, name, where) for value in values)
    if low >= high:
        raise InputError(f"{where}: {name} goes from {values[0]} to {values[1]}; the lower end comes first")
    if kind.startswith("log") and low <= 0:
        raise InputError(f"{where}: {name} starts at {values[0]}, but {kind} needs a start above 0")
    if kind.endswith("int"):
        return IntDistribution(int(low), int(high), log=kind == "logint")
    return FloatDistribution(low, high, log=kind == "loguniform")


def _number(value: Any, kind: str, name: str, where: str) -> float:
    """A number, in quotes or not."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (kind.endswith("int") and number != int(number)):
        raise InputError(f"{where}: {name}: {value!r} is not a {'whole ' if kind.endswith('int') else ''}number")
    return number


def _checked(name: str, one: BaseDistribution, base: TrainConfig, where: str) -> BaseDistribution:
    """The distribution, its choices as the settings' types have them."""
    default = getattr(base, name)
    if default is None:
        raise InputError(f"{where}: {name} has no default to start from; give one with --set {name}=VALUE")
    annotation = TrainConfig.model_fields[name].annotation
    if isinstance(one, FloatDistribution) and int in (annotation, *get_args(annotation)):
        raise InputError(f"{where}: {name} takes whole numbers; use int or logint")
    is_choice = isinstance(one, CategoricalDistribution)
    values = one.choices if is_choice else (one.low, one.high)  # type: ignore[attr-defined]
    taken = []
    for value in values:
        # a queue is large enough for any K here; how the two go together is checked last
        others = {"queue_size": 2**62} if name == "top_k" else {"top_k": 1} if name == "queue_size" else {}
        try:
            taken.append(getattr(TrainConfig.model_validate(base.model_dump() | others | {name: value}), name))
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InputError(f"{where}: {name}: {problem} (given {value!r})") from error
    if not (default in taken if is_choice else taken[0] <= default <= taken[1]):
        raise InputError(
            f"{where}: {name} leaves out {default!r}, the default, which is the first trial; widen the range, or give "
            f"another default with --set {name}=VALUE"
        )
    if len(set(taken)) < len(taken):
        raise InputError(f"{where}: {name} lists the same value twice")
    return CategoricalDistribution(taken) if is_choice else one


def _check_queue(space: Space, lines: Mapping[str, str], base: TrainConfig) -> None:
    if not space.keys() & {"queue_size", "top_k"}:
        return
    slots, most = (_ends(space.get(name), getattr(base, name)) for name in ("queue_size", "top_k"))
    if slots[0] < most[1]:
        where = lines.get("queue_size", lines.get("top_k"))
        raise InputError(
            f"{where}: queue_size can be {slots[0]} where top_k is up to {most[1]}; a queue must hold at least top_k"
        )


def _ends(one: BaseDistribution | None, value: int) -> tuple[int, int]:
    if one is None:
        return value, value
    if isinstance(one, CategoricalDistribution):
        return min(one.choices), max(one.choices)  # type: ignore[type-var, return-value]
    return one.low, one.high  # type: ignore[attr-defined]
