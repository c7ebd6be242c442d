"""YAML 1.2: what is read as what, what is refused with its line, and that what is written is read back."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smec_core.errors import InputError
from smec_core.yaml_file import dump, parse_value, read_entries, read_mapping

# numbers and words as text: those of YAML 1.1 and 1.2, and what looks like them
WORDS = st.from_regex(r"[-+]?(0[box]?)?[0-9_:.]{1,6}([eE][-+]?[0-9]+)?", fullmatch=True) | st.sampled_from(
    ["yes", "no", "on", "off", "y", "true", "null", "~", "", ".inf", ".nan", "=", "<<", "2024-01-01", "1e-3", "010"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | WORDS
SETTINGS = st.dictionaries(
    st.text() | WORDS,
    st.recursive(
        SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(WORDS, one, max_size=3), max_leaves=4
    ),
    max_size=4,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("010", 10), ("0o10", 8), ("0x1F", 31), ("-0", 0), ("+7", 7), ("-12", -12), ("00", 0)),
        *(("1e-3", 0.001), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-2e+3", -2000.0), (".inf", math.inf)),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, False) for word in ("false", "False", "FALSE")),
        *((word, None) for word in ("null", "Null", "NULL", "~", "")),
    ],
)
def test_words_of_the_core_schema(text: str, value: Any) -> None:
    read = parse_value(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        *("1:2", "1:4", "190:20:30", "1:2.5", "0b11", "1_000", "0o9", "0x", "1e", "0.0.1", "-0o10"),
        *("yes", "no", "on", "off", "y", "n", "Yes", "ON", "tRUE", "nUll", "=", "<<"),
        *("2024-01-01", "2024-01-01T10:00:00Z", "12:30:45"),
    ],
)
def test_what_yaml_1_1_makes_of_these_they_are_not(text: str) -> None:
    assert parse_value(text) == text


def test_a_yaml_1_1_directive_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("%YAML 1.1\n---\nworkers: 1:2\n")
    assert read_mapping(tmp_path / "a.yaml") == {"workers": "1:2"}


def test_anchors_are_followed_and_merge_keys_are_keys(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: *x\n<<: *x\n")
    assert read_mapping(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1}, "<<": {"b": 1}}


@given(SETTINGS)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(dump(settings))
    assert read_mapping(path) == settings


def test_bytes_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("\ufeffname: café\r\nworkers: 1:2\r\n".encode())
    assert [tuple(entry) for entry in read_entries(path)] == [("name", "café", 1), ("workers", "1:2", 2)]
    path.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.yaml: is not text in UTF-8$"):
        read_entries(path)


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("a: 1\nb: 2\na: 3", ":3", "a is there twice, first in line 1; keep one"),
        ("x:\n  a: 1\n  a: 2", ":3", "not valid YAML, found duplicate key, in: a: 2"),
        ("a: 1\nb: [1", ":2", "not valid YAML, expected ',' or ']', but got '<stream end>', in: b: [1"),
        ("a: 1\n\tb: 1", ":2", "not valid YAML, found character '\\t' that cannot start any token, in: b: 1"),
        ("a: *b", ":1", "not valid YAML, found undefined alias 'b', in: a: *b"),
        ("a: 1\n---\nb: 2", ":2", "not valid YAML, but found another document, in: ---"),
        ("a: !!python/object:os.system {}", ":1", "not valid YAML, could not determine a constructor"),
        ("a: !!timestamp 2024-01-01", ":1", "not valid YAML, could not determine a constructor"),
        ("b: s3://me:secret@host/x: y", ":1", "not valid YAML, mapping values are not allowed here, in: b: s3://***@"),
        ("a: 1\n5: 1", ":2", "must hold key: value lines, and 5 is no key"),
        ("? [a]\n: 3", ":1", "must hold key: value lines, and ['a'] is no key"),
        ("- a", "", "must hold key: value lines"),
        ("a: !!int x", "", "not valid YAML ("),
        ("a: !!bool x", "", "not valid YAML ("),
        ("a: \0", "", "not valid YAML ("),
        ("a: " + "9" * 5000, "", "not valid YAML ("),
        ("a: " + "[" * 1000, "", "not valid YAML ("),
    ],
)
def test_what_is_refused_names_its_line(tmp_path: Path, text: str, where: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_entries(path)
    assert str(refused.value).startswith(f"{path}{where}: {message}")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
