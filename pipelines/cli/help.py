"""What `--help` shows of a settings class: flags, settings, defaults."""

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


def option_of(kind: type[BaseModel], setting: str, flag: str = "") -> click.Option:
    """The flag of a setting: a switch for a bool or for one that has an `on` value, otherwise an option with a value.

    Args:
        kind: the settings class.
        setting: its name, with dots where it is in a section.
        flag: the flag's name, where it is not the setting's.
    """
    field = _field(kind, setting)
    name = setting.rpartition(".")[2]
    declarations = [flag or f"--{name.replace('_', '-')}", setting.replace(".", "__")]
    is_switch = field.annotation is bool or _extra(field, "on") is not None
    if is_switch:
        text = _extra(field, "help") or _help(field, shows_default=False)
        return click.Option(declarations, is_flag=True, default=None, help=text)
    is_many = get_origin(field.annotation) is list
    return click.Option(declarations, metavar=_metavar(field), help=_help(field), type=str, multiple=is_many)


def flags_of(kind: type[BaseModel], params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that flags and arguments give, from a command's parameters; None where not given."""
    flags: dict[str, Any] = {}
    for param, value in params.items():
        setting = param.replace("__", ".")
        on = _extra(_field(kind, setting), "on")
        if isinstance(value, tuple):
            flags[setting] = list(value) or None
        else:
            flags[setting] = on if value is True and on is not None else value
    return flags


class SettingsCommand(click.Command):
    """A command whose help is the docstring of its settings class, its flags, and all other settings."""

    def __init__(self, name: str, kind: type[BaseModel], **more: Any) -> None:
        super().__init__(name, help=inspect.getdoc(kind), **more)
        self.kind = kind

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes arguments and flags, then all other settings with their defaults."""
        fields = dict(_fields(self.kind))
        arguments = [param for param in self.params if isinstance(param, click.Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(param.make_metavar(ctx), _help(fields[str(param.name)])) for param in arguments])
        super().format_options(ctx, formatter)
        flags = {str(param.name).replace("__", ".") for param in self.params}
        others = [(name, _help(field)) for name, field in fields.items() if name not in flags]
        if others:
            with formatter.section("Settings for --set and --config"):
                formatter.write_dl(others)


def describe(kind: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """All settings of a class: name, what a value looks like, default, docstring; for the documentation."""
    for name, field in _fields(kind):
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        yield name, _metavar(field), default, " ".join((field.description or "").split())


def _field(kind: type[BaseModel], setting: str) -> FieldInfo:
    return dict(_fields(kind))[setting]


def _fields(kind: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All settings, those of sections with dots."""
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _fields(section, f"{above}{name}.")
        else:
            yield above + name, field


def _extra(field: FieldInfo, key: str) -> Any:
    extra = field.json_schema_extra
    return extra.get(key) if isinstance(extra, dict) else None


def _help(field: FieldInfo, shows_default: bool = True) -> str:
    """The setting's docstring, with what it is where it is not given."""
    text = " ".join((field.description or "").split())
    if field.is_required():
        return f"{text} [required]"
    default = field.get_default(call_default_factory=True)
    is_said = "default:" in text.lower() or "by default" in text.lower()
    if is_said or not shows_default or default is PydanticUndefined:
        return text
    return f"{text} [default: {_shown(default) or 'none'}]"


def _shown(default: Any) -> str:
    """A default as one would write it; empty where nothing is set."""
    if default is None:
        return ""
    return ",".join(map(str, default)) if isinstance(default, list | tuple) else str(default).lower()


def _metavar(field: FieldInfo) -> str:
    """What a value looks like: what its field says, its choices, or its type."""
    if metavar := _extra(field, "metavar"):
        return str(metavar)
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, types.UnionType) else ()
    kind = next((one for one in kinds if one is not type(None)), field.annotation)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    names = {int: "N", float: "NUMBER", str: "TEXT"}
    return names.get(kind, "VALUE")  # type: ignore[arg-type]
