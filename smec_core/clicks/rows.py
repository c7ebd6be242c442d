"""Rows of a click log, checked: what is wrong with one is told by file, row and column, and nothing is guessed.

Shapes: N rows of a batch.
"""

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from smec_core.clicks.log import IDS, ClickColumns, RawRows
from smec_core.errors import InputError

MOST_COUNT = 1 << 31
"""So that no sum of counts overflows."""
LAST_US = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
UNITS = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 0}
"""Microseconds of a unit; of ns, a thousand make one."""
_WHOLE = r"^[+-]?\d{1,18}(\.0*)?$"
_INTEGER = r"^-?(\d{1,18}|[1-8]\d{18})$"
_ZONE = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
_TIME = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:[Zz]|[+-]\d{2}:?\d{2})?)?$"


class Problem(NamedTuple):
    """What is wrong with some rows.

    Attributes:
        column: of the file.
        why: what is wrong and what to do, for the first of the rows.
        cause: the same in few words, for counts.
        bad_N: which rows.
    """

    column: str
    why: str
    cause: str
    bad_N: np.ndarray


class Rows(NamedTuple):
    """Rows without what is wrong; columns that were not asked for are None.

    Attributes:
        query_id, doc_id: strings (N).
        count_N: events that a row stands for, int64; ones where the log has no counts.
        clicked_N: whether they are clicks; None where the log does not say.
        rank_N: where the document was shown, from 1.
        time_N: microseconds since 1970, of UTC where the log has time zones.
    """

    query_id: pa.Array
    doc_id: pa.Array
    count_N: np.ndarray
    clicked_N: np.ndarray | None
    rank_N: np.ndarray | None
    time_N: np.ndarray | None


class RowReader:
    """Checks batches of a log.

    Attributes:
        rows: read so far.
        bad: how many of them were left out, by cause.
        zoned: whether timestamps have a time zone; None before the first.
        has_numbers: whether any of them is a whole number, which a time unit is for.
    """

    def __init__(self, names: ClickColumns, time_unit: str | None = None, leaves_out: bool = False) -> None:
        """Prepares the checks.

        Args:
            names: what the columns are called.
            time_unit: of timestamps that are whole numbers since 1970: s, ms, us or ns.
            leaves_out: bad rows are counted and left out; else the first ends the reading.
        """
        self._names, self._time_unit, self._leaves_out = names, time_unit, leaves_out
        self.rows = 0
        self.bad: dict[str, int] = {}
        self.zoned: bool | None = None
        self.has_numbers = False
        self._first_time = ""
        self._dated = ("", False)
        """The file whose times are being read as text, and whether that holds whole numbers."""

    def read(self, raw: RawRows) -> Rows:
        """The sound rows of a batch.

        Raises:
            InputError: a column of a type that it cannot have, or a bad row.
        """
        problems: list[Problem] = []
        ids = [self._ids(raw, name, problems) for name in IDS if name in raw.columns]
        count_N = self._whole(raw, "count", problems, least=0, most=MOST_COUNT)
        rank_N = self._whole(raw, "rank", problems, least=1, most=MOST_COUNT)
        clicked_N = self._whole(raw, "clicked", problems, least=0, most=1)
        time_N = self._times(raw, problems)
        rows = len(next(iter(raw.columns.values())))
        self.rows += rows
        bad_N = np.zeros(rows, bool)
        problems = [problem for problem in problems if problem.bad_N.any()]
        if problems and not self._leaves_out:
            first = min(problems, key=lambda problem: int(problem.bad_N.argmax()))
            place = f"{raw.unit} {raw.row + int(first.bad_N.argmax())}"
            raise InputError(f"{raw.path}: {place}, column {first.column}: {first.why}")
        # a row counts once, by the first that is wrong with it
        for problem in problems:
            fresh_N = problem.bad_N & ~bad_N
            if fresh_N.any():
                cause = f"{problem.column} {problem.cause}"
                self.bad[cause] = self.bad.get(cause, 0) + int(fresh_N.sum())
                bad_N |= fresh_N
        keep = slice(None) if not bad_N.any() else np.flatnonzero(~bad_N)
        query_id, doc_id = [column if isinstance(keep, slice) else column.take(pa.array(keep)) for column in ids] or [
            pa.array([], pa.string())
        ] * 2
        count_N = np.ones(rows, np.int64) if count_N is None else count_N
        return Rows(
            query_id,
            doc_id,
            count_N[keep],
            None if clicked_N is None else (clicked_N == 1)[keep],
            None if rank_N is None else rank_N[keep],
            None if time_N is None else time_N[keep],
        )

    def _name(self, name: str) -> str:
        return str(getattr(self._names, name))

    def _ids(self, raw: RawRows, name: str, problems: list[Problem]) -> pa.Array:
        column = raw.columns[name]
        self._add_nulls(column, name, problems)
        text = pc.cast(column, pa.string())
        empty_N = _flags(pc.equal(pc.binary_length(text), 0))
        problems.append(
            Problem(self._name(name), "is empty; every row needs an id, fix or remove it", "is empty", empty_N)
        )
        return text

    def _add_nulls(self, column: pa.Array, name: str, problems: list[Problem]) -> None:
        null_N = column.is_null().to_numpy(zero_copy_only=False)
        problems.append(Problem(self._name(name), "is null; fix or remove the row", "is null", null_N))

    def _whole(self, raw: RawRows, name: str, problems: list[Problem], least: int, most: int) -> np.ndarray | None:
        """A column of whole numbers as int64 (N)."""
        if name not in raw.columns:
            return None
        column, stored = raw.columns[name], self._name(name)
        kind = column.type
        must_be = "0 or 1" if name == "clicked" else f"a whole number from {least}"
        if raw.is_text:
            column = _without_empty(column)
            self._add_nulls(column, name, problems)
            text = pc.utf8_trim_whitespace(pc.fill_null(column, "0"))
            if name == "clicked":
                text = pc.replace_substring_regex(
                    pc.replace_substring_regex(text, "(?i)^true$", "1"), "(?i)^false$", "0"
                )
            is_whole_N = _flags(pc.match_substring_regex(text, _WHOLE))
            shown = text
            value_N = pc.cast(pc.if_else(pa.array(is_whole_N), text, "0"), pa.float64()).to_numpy()
        elif pa.types.is_boolean(kind) and name == "clicked":
            self._add_nulls(column, name, problems)
            value_N = pc.cast(pc.fill_null(column, False), pa.int64()).to_numpy()
            is_whole_N, shown = np.ones(len(column), bool), column
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            self._add_nulls(column, name, problems)
            shown = column
            value_N = pc.fill_null(pc.cast(column, pa.float64(), safe=False), least).to_numpy(zero_copy_only=False)
            is_whole_N = np.isfinite(value_N) & (value_N == np.floor(value_N))
        else:
            raise InputError(f"{raw.path}: column {stored} is {kind}; it must be {must_be}, as a number")
        with np.errstate(invalid="ignore"):
            bad_N = ~(is_whole_N & (value_N >= least) & (value_N <= most))
        if bad_N.any():
            why = f"{shown[int(bad_N.argmax())].as_py()!r} is not {must_be}"
            why += f" to {most}" if name != "clicked" and value_N[bad_N.argmax()] > most else ""
            problems.append(Problem(stored, f"{why}; fix or remove the row", f"is not {must_be}", bad_N))
        value_N = np.where(bad_N, least, value_N)
        return value_N.astype(np.int64)

    def _times(self, raw: RawRows, problems: list[Problem]) -> np.ndarray | None:
        """A column of timestamps as microseconds (N)."""
        if "timestamp" not in raw.columns:
            return None
        column, stored = raw.columns["timestamp"], self._name("timestamp")
        kind = column.type
        if raw.is_text or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            column = _without_empty(pc.cast(column, pa.string()))
            self._add_nulls(column, "timestamp", problems)
            time_N = self._times_of_text(raw, column, problems)
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            self._add_nulls(column, "timestamp", problems)
            self._set_zoned(bool(pa.types.is_timestamp(kind) and kind.tz), raw.path)
            stamps = (
                pc.cast(column, pa.timestamp(kind.unit))
                if pa.types.is_timestamp(kind)
                else pc.cast(column, pa.timestamp("s"))
            )
            number_N = pc.fill_null(pc.cast(stamps, pa.int64()), 0).to_numpy()
            time_N = _microseconds(number_N, stamps.type.unit)
        elif pa.types.is_integer(kind):
            self._add_nulls(column, "timestamp", problems)
            time_N = self._times_of_numbers(raw, pc.fill_null(pc.cast(column, pa.int64()), 0).to_numpy())
        else:
            raise InputError(
                f"{raw.path}: column {stored} is {kind}; it must be a timestamp, a date, or text such as "
                "2026-01-31T12:00:00Z"
            )
        bad_N = (time_N < 0) | (time_N >= LAST_US)
        why = "lies before 1970 or after 2199; fix or remove the row"
        if self._time_unit:
            why = f"lies before 1970 or after 2199, counted in {self._time_unit}; fix it, or give another time_unit"
        problems.append(Problem(stored, why, "is no likely time", bad_N))
        return time_N

    def _times_of_numbers(self, raw: RawRows, number_N: np.ndarray) -> np.ndarray:
        if self._time_unit is None:
            raise InputError(
                f"{raw.path}: column {self._name('timestamp')} holds whole numbers; say what they count since 1970, "
                "--set time_unit=s, ms, us or ns"
            )
        self.has_numbers |= len(number_N) > 0
        self._set_zoned(True, raw.path)
        return _microseconds(number_N, self._time_unit)

    def _times_of_text(self, raw: RawRows, column: pa.Array, problems: list[Problem]) -> np.ndarray:
        stored = self._name("timestamp")
        text = pc.utf8_trim_whitespace(pc.fill_null(column, "1970-01-01"))
        is_null_N = column.is_null().to_numpy(zero_copy_only=False)
        is_number_N = _flags(pc.match_substring_regex(text, _INTEGER))
        is_time_N = _flags(pc.match_substring_regex(text, _TIME))
        self.has_numbers |= bool((is_number_N & ~is_null_N).any())
        told_N = (is_number_N | is_time_N) & ~is_null_N
        if self._dated[0] != raw.path and told_N.any():
            # by the first one, whatever is read at a time
            self._dated = (raw.path, bool(is_number_N[told_N.argmax()]))
        if self._dated == (raw.path, True):
            bad_N = ~is_number_N & ~is_null_N
            why = "is no whole number, as the times before it in this file are; write all of them the same way"
            self._add_bad_times(column, bad_N, why, problems)
            number = pc.if_else(pa.array(is_number_N & ~is_null_N), text, "0")
            return self._times_of_numbers(raw, pc.cast(number, pa.int64()).to_numpy())
        bad_N = ~is_time_N
        if bad_N.any():
            text = pc.if_else(pa.array(bad_N), "1970-01-01", text)
        has_zone_N = _flags(pc.match_substring_regex(text, _ZONE))
        parsed_N, impossible_N = _parsed(text, has_zone_N)
        bad_N |= impossible_N
        why = "is no time; write 2026-01-31T12:00:00Z, or 2026-01-31 12:00:00 without time zones"
        self._add_bad_times(column, bad_N, why, problems)
        sound_N = ~bad_N & ~is_null_N
        if sound_N.any():
            zoned = bool(has_zone_N[sound_N.argmax()])
            self._set_zoned(zoned, raw.path)
            other_N = sound_N & (has_zone_N != zoned)
            if other_N.any():
                # not left out: which of them is wrong cannot be told
                what, rest = ("no time zone", "have one") if zoned else ("a time zone", "have none")
                raise InputError(
                    f"{raw.path}: {raw.unit} {raw.row + int(other_N.argmax())}, column {stored}: has {what}, but rows "
                    f"before it {rest}; write all times of a log the same way"
                )
        return parsed_N

    def _add_bad_times(self, column: pa.Array, bad_N: np.ndarray, why: str, problems: list[Problem]) -> None:
        first = column[int(bad_N.argmax())].as_py() if len(column) else None
        why = f"{first!r} {why}, or fix the row"
        problems.append(Problem(self._name("timestamp"), why, "is no time", bad_N))

    def _set_zoned(self, zoned: bool, path: str) -> None:
        if self.zoned is None:
            self.zoned, self._first_time = zoned, path
        elif self.zoned != zoned:
            has, lacks = (path, self._first_time) if zoned else (self._first_time, path)
            raise InputError(
                f"{lacks}: column {self._name('timestamp')} has no time zone, but that of {has} has; write "
                "all times of "
                "a log the same way"
            )


def parse_time(text: str) -> tuple[int, bool]:
    """Microseconds since 1970 of a time as people write it, and whether it has a time zone.

    Raises:
        ValueError: it is none.
    """
    when = datetime.fromisoformat(text)
    zoned = when.tzinfo is not None
    whole = (when if zoned else when.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return (whole.days * 86_400 + whole.seconds) * 1_000_000 + whole.microseconds, zoned


def shown_time(time_us: int) -> str:
    """A time for people, in UTC where the log has time zones."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _parsed(text: pa.Array, has_zone_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds (N) of times that look like some, and which are none (as February 30th)."""
    time_N, bad_N = np.zeros(len(text), np.int64), np.zeros(len(text), bool)
    for zoned, zone in ((False, None), (True, "UTC")):
        place = np.flatnonzero(has_zone_N == zoned)
        if not len(place):
            continue
        some = text.take(pa.array(place))
        try:
            nanoseconds = pc.cast(pc.cast(some, pa.timestamp("ns", zone)), pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            for row in place:
                try:
                    time_N[row] = parse_time(text[int(row)].as_py())[0]
                except ValueError:
                    bad_N[row] = True
            continue
        time_N[place] = nanoseconds // 1000
    return time_N, bad_N


def _microseconds(number_N: np.ndarray, unit: str) -> np.ndarray:
    factor = UNITS[unit]
    if not factor:
        return number_N // 1000
    # beyond all likely times, rather than wrapped to one of them
    return np.where(np.abs(number_N) > LAST_US // factor, LAST_US, number_N * factor)


def _without_empty(column: pa.Array) -> pa.Array:
    """Text in which an empty value, as CSV has it, is null."""
    is_empty = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0)
    return pc.if_else(is_empty, pa.scalar(None, pa.string()), column)


def _flags(column: pa.Array) -> np.ndarray:
    flags: np.ndarray = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return flags
