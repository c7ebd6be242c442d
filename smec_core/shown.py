"""Foreign text (ids, column and file names, keys, URIs, what libraries say) as it may be shown.

Whatever shows text takes it through here: a terminal would obey escape sequences, a log would take a line break for the
start of a line, a spreadsheet would run a formula, a browser or a Markdown page an element. Letters of all scripts and
emoji stay as they are.
"""

import re
import unicodedata
from typing import Any

from smec_core.masking import mask

LONGEST_LINE = 4000
"""Characters of one line that is shown; an id may have a million."""
_WINDOW = 16_000
# of the characters that Unicode calls printable, those that are not seen
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")
_SELECTORS = frozenset(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
_WITH_FORMS = ("So", "Sm", "Lo", "Nd", "Po")
_JOINER = "\u200d"
_NUMBER = re.compile(r"[+-]?\d[\d.]*(e[+-]?\d+)?( ± \d[\d.]*)?\*?|[+-]?(nan|inf)")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20|%]")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {letter: f"\\{letter}" for letter in "{}$&%#_"}


def printable(text: str) -> str:
    r"""The text with escapes, as \n, \x1b and \u202e, for what a terminal does not print as a character.

    Those are control characters (C0, C1), line breaks, marks of direction, characters without width, surrogates, and
    what is in no use. What is escaped once stays as it is.

    Example:
        >>> printable("Ünï漢👩‍🔬\x1b[2J")
        'Ünï漢👩‍🔬\\x1b[2J'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter if _is_seen(text, place) else letter.encode("unicode_escape").decode()
        for place, letter in enumerate(text)
    )


def shortened(text: str, most: int) -> str:
    """The text, its middle left out where it has more than `most` characters: what is wrong and what to do stay."""
    if len(text) <= most:
        return text
    note = f" ...({len(text):,} characters)... "
    room = most - len(note)
    return text[: room - room // 4] + note + text[len(text) - room // 4 :]


def safe_line(text: str, most: int = LONGEST_LINE) -> str:
    """The text as one line: without secrets, printable, and not too long."""
    # first, since patterns take their time on text of megabytes; far from the places where it is cut below
    text = shortened(text, max(_WINDOW, 4 * most))
    return shortened(printable(mask(text)), most)


def safe_lines(text: str) -> list[str]:
    """The lines of a text that may have some, as a traceback or a log; a secret may go over several."""
    return [shortened(printable(line), LONGEST_LINE) for line in mask(text).split("\n")]


def markdown(text: str) -> str:
    """The text as Markdown that shows just that, in a table, too."""
    text = re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", safe_line(text))
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))
    # what a renderer would make a link of by itself
    return re.sub(r"(?i)\b(https?|ftp)://", r"\1&#58;//", re.sub(r"(?i)\bwww\.", "www&#46;", text))


def latex(text: str) -> str:
    """The text as LaTeX that shows just that."""
    return "".join(_LATEX.get(letter, letter) for letter in safe_line(text))


def csv_cell(value: Any) -> Any:
    """A cell of a CSV file, which no spreadsheet takes for a formula; numbers, also those of text, stay numbers."""
    if not isinstance(value, str):
        return value
    text = safe_line(value)
    is_formula = (_FORMULA.match(value) or value[:1] in ("\t", "\r", "\n")) and not _NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def _is_seen(text: str, place: int) -> bool:
    letter = text[place]
    if letter == _JOINER:
        return _joins_emoji(text, place)
    if letter in _SELECTORS:
        # it chooses among the forms of a sign
        return place > 0 and unicodedata.category(text[place - 1]) in _WITH_FORMS
    # a space of any width is a space
    return (letter.isprintable() and letter not in _UNSEEN) or unicodedata.category(letter) == "Zs"


def _joins_emoji(text: str, place: int) -> bool:
    """Whether a joiner makes one picture of two, as in that of a family."""
    before, after = text[max(place - 1, 0) : place], text[place + 1 : place + 2]
    # before it may stand the tone of the skin, or the mark that says that it is a picture
    is_one = before == "\ufe0f" or (before != "" and unicodedata.category(before) in ("So", "Sk"))
    return is_one and after != "" and unicodedata.category(after) == "So"
