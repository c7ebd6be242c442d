"""Foreign text as a terminal, a log, a page and a spreadsheet take it."""

import csv
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smec_core.errors import InputError, RowError, one_line
from smec_core.shown import csv_cell, latex, markdown, printable, safe_line, safe_lines, shortened

ANY = st.text(st.characters())
"""Surrogates, too."""


@pytest.mark.parametrize(
    "text",
    [
        "Straße größer",
        "漢字、カナ 한글",
        "नमस्ते ﷺ",
        "👩‍🔬 👨‍👩‍👧 ❤️‍🔥 🏴‍☠️ 👍🏽",
        "葛\U000e0100 1\ufe0f\u20e3",
        "a\u00a0b\u3000c",
        "± 95 %",
    ],
)
def test_text_of_all_scripts_stays_readable(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m\x85\x7f\x00", r"\x9b31m\x85\x7f\x00"),
        ("abc\u202etxt.exe\u2066\u200f", r"abc\u202etxt.exe\u2066\u200f"),
        ("a\u200bb\u200dc\ufeff\u2060\u00ad\u3164\u115f", r"a\u200bb\u200dc\ufeff\u2060\xad\u3164\u115f"),
        ("a\ufe0fb\ufe01 \U000e0100", r"a\ufe0fb\ufe01 \U000e0100"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_obeys_or_does_not_show_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANY)
def test_a_line_is_one_printable_line_and_stays(text: str) -> None:
    line = safe_line(text)
    assert line.splitlines() in ([], [line])
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in line)
    assert safe_line(line) == line
    assert all(one.encode() is not None for one in safe_lines(text))


@given(st.text(st.characters(categories=("L", "N", "Po", "Zs"), exclude_characters="@:,%\u115f\u1160\u3164\uffa0")))
def test_printable_text_stays(text: str) -> None:
    assert safe_line(text) == text


@given(ANY, st.integers(80, 300))
def test_long_text_keeps_both_ends(text: str, most: int) -> None:
    text = f"{text * 50}end"
    short = shortened(text, most)
    assert len(short) <= most
    assert short.endswith("end")
    assert short[:20] == text[:20]
    assert shortened(short, most) == short


@pytest.mark.parametrize("letter", ["x", "\x1b", "=", "://", "漢"])
def test_a_megabyte_is_a_line_of_some_thousand_letters(letter: str) -> None:
    assert len(safe_line(letter * 1_000_000)) <= 4000
    assert len(str(RowError("file", 3, letter * 1_000_000, "is null"))) <= 4000


def test_our_errors_are_one_line_without_secrets() -> None:
    name = "id\nsmec: done\x1b[2K"
    assert str(InputError(f"{name}: is there twice")) == r"id\nsmec: done\x1b[2K: is there twice"
    assert str(RowError(name, 3, name, "is null")) == (
        r"id\nsmec: done\x1b[2K: row 3, column id\nsmec: done\x1b[2K: is null"
    )
    assert one_line(ValueError("GET\n https://me:hunter2@host\n\x1b[0m")) == r"GET https://***@host \x1b[0m"


@given(ANY)
def test_a_cell_is_no_formula(text: str) -> None:
    cell = csv_cell(text)
    written = io.StringIO()
    csv.writer(written).writerow([cell, 1])
    assert next(csv.reader(io.StringIO(written.getvalue()))) == [cell, "1"]
    assert cell.lstrip()[:1] not in ("=", "@", "\t", "\r", "\n")
    if cell.lstrip()[:1] in ("+", "-"):
        float(cell.rstrip("*").split(" ± ")[0])


@pytest.mark.parametrize("number", ["-0.5", "+0.0123 ± 0.0040*", "1e-05", "-1e+20", "0.7 ± 0.1", "-inf", "nan"])
def test_numbers_stay_numbers(number: str) -> None:
    assert csv_cell(number) == number
    assert csv_cell(-0.5) == -0.5


@pytest.mark.parametrize("text", ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1", "＝1", "-1\n=2"])
def test_a_formula_is_text(text: str) -> None:
    assert csv_cell(text).startswith("'")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("`rm`", r"\`rm\`"),
        ("[x](javascript:1)", r"\[x\](javascript:1)"),
        ("<img src=x onerror=1>", "&lt;img src=x onerror=1>"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("a\n\n# b", r"a\\n\\n# b"),
        ("my_data-v2, p < 0.05 & more", "my_data-v2, p < 0.05 & more"),
        ("__x__", r"\_\_x\_\_"),
        ("https://evil.example www.evil.example", "https&#58;//evil.example www&#46;evil.example"),
    ],
)
def test_markdown_shows_the_text_itself(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


def test_latex_shows_the_text_itself() -> None:
    assert latex(r"a_b & 5% {x} \input{y} $z$ ~^#") == (
        r"a\_b \& 5\% \{x\} \textbackslash{}input\{y\} \$z\$ \textasciitilde{}\textasciicircum{}\#"
    )
