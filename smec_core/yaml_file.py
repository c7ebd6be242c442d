"""YAML 1.2, for all that is read and written of it: 010 is ten, 1e-3 a number; 1:2, yes and 2024-01-01 are strings.

By the core schema of the specification (10.3), as yamlcore has it: PyYAML alone reads YAML 1.1, where 1:2 is 62.
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yamlcore import CoreDumper, CoreLoader

from smec_core.errors import InputError
from smec_core.masking import MASK, mask
from smec_core.shown import shortened

# the latter ones where a tag does not fit its value, as !!int x, or a value is beyond all bounds
BROKEN = (yaml.YAMLError, ValueError, LookupError, RecursionError)


class Entry(NamedTuple):
    """One `key: value` at the top of a file."""

    key: str
    value: Any
    line: int


def read_entries(path: Path) -> list[Entry]:
    """The entries of a file that holds `key: value` lines, or nothing.

    Raises:
        InputError: the file cannot be read, is not YAML or holds something else, with the line at fault.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8") from error
    try:
        loader = CoreLoader(text)
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path}: must hold key: value lines")
        entries: dict[str, Entry] = {}
        for key_node, value_node in root.value:
            line = key_node.start_mark.line + 1
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise InputError(f"{path}:{line}: must hold key: value lines, and {key!r} is no key")
            if key in entries:
                raise InputError(f"{path}:{line}: {key} is there twice, first in line {entries[key].line}; keep one")
            entries[key] = Entry(key, loader.construct_object(value_node, deep=True), line)
        return list(entries.values())
    except BROKEN as error:
        raise InputError(_explain(error, str(path))) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """What a file of `key: value` lines holds; see `read_entries`."""
    return {entry.key: entry.value for entry in read_entries(path)}


def parse_value(text: str) -> Any:
    """One value, as of a flag.

    Raises:
        ValueError: it is none.
    """
    try:
        return yaml.load(text, CoreLoader)
    except BROKEN as error:
        raise ValueError("not a valid value") from error


def dump(settings: dict[str, Any]) -> str:
    """Settings as a file's text, which `read_entries` reads as the same values."""
    text: str = yaml.dump(settings, Dumper=CoreDumper, sort_keys=False, default_flow_style=None)
    return text


def _explain(error: Exception, where: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return f"{where}: not valid YAML ({' '.join(str(error).split())})"
    return f"{where}:{mark.line + 1}: not valid YAML, {error.problem}, in: {_line(mark)}"


def _line(mark: yaml.Mark) -> str:
    """The line that an error is in, as it may be shown: a secret may go over several."""
    text = (mark.buffer or "").rstrip("\0")
    line = text.split("\n")[mark.line] if mark.line <= text.count("\n") else ""
    shown = mask(line)
    if shown == line and line not in mask(text).split("\n"):
        shown = MASK
    return shortened(shown.strip(), 60)
