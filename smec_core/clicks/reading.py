"""A click log read whole: where it is cut by time, and what it says added up.

Shapes: N rows of a batch, B bins of time.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from smec_core.clicks.log import IDS, ClickColumns, ClickLog
from smec_core.clicks.rows import RowReader, Rows, parse_time, shown_time
from smec_core.clicks.rules import ClickRules
from smec_core.clicks.tally import Entries, Tally
from smec_core.errors import InputError

BIN_US = 60_000_000
"""A share of the clicks ends at a full minute."""


class Split(NamedTuple):
    """How a log is cut.

    Attributes:
        by: what by, for people.
        from_us: where dev and test begin, in microseconds since 1970; None where queries are cut.
        first_us, last_us: of the log; None without timestamps.
    """

    by: str
    from_us: tuple[int, int] | None = None
    first_us: int | None = None
    last_us: int | None = None


class Read(NamedTuple):
    """All that was read of a log, and how."""

    entries: Entries
    split: Split
    rows: int
    bad: dict[str, int]
    present: list[str]
    clicks: int


def read_log(log: ClickLog, rules: ClickRules, on_rows: Callable[[int], object] = lambda _: None) -> Read:
    """Reads a log: once, and its times once before where a share of them is asked for.

    Args:
        log: the log.
        rules: of these, those on time, bad rows and what a log must have.
        on_rows: told how many rows are read so far.

    Raises:
        InputError: bad rows, rules that the log has not the columns for, or no clicks.
    """
    _check_rules(log, rules)
    times = _find_cut(log, rules) if "timestamp" in log.present else None
    reader, tally, clicks = _reader(log.names, rules), Tally(), 0
    first_us, last_us = [], []
    wanted = (*IDS, *log.present)
    for raw in log.batches(wanted):
        rows = reader.read(raw)
        clicks += _clicks(rows)
        part_N: np.ndarray = np.zeros(len(rows.count_N), np.int64)
        if times is not None and rows.time_N is not None and len(rows.time_N):
            first_us.append(int(rows.time_N.min()))
            last_us.append(int(rows.time_N.max()))
            part_N = np.searchsorted(times, rows.time_N, side="right")
        tally.add(rows, part_N)
        on_rows(reader.rows)
    _check_bad(log, rules, reader)
    if not clicks:
        raise InputError(f"{log.first}: no click in the log; {_without_clicks(log, reader.rows)}")
    if rules.time_unit is not None and not reader.has_numbers:
        raise InputError(f"time_unit: no time of {log.first} is a whole number, so it would do nothing; leave it out")
    split = Split("a hash of the query id")
    if times is not None:
        by = f"time, test from {shown_time(times[1])}" if rules.test_from or rules.test_share else "time"
        split = Split(by, (times[0], times[1]), min(first_us), max(last_us))
    return Read(tally.entries(), split, reader.rows, reader.bad, log.present, clicks)


def _reader(names: ClickColumns, rules: ClickRules) -> RowReader:
    return RowReader(names, rules.time_unit, rules.max_bad_rows > 0)


def _clicks(rows: Rows) -> int:
    return int((rows.count_N if rows.clicked_N is None else rows.count_N[rows.clicked_N]).sum())


def _without_clicks(log: ClickLog, rows: int) -> str:
    """Why there is no click."""
    counted = [getattr(log.names, name) for name in ("clicked", "count") if name in log.present]
    if not rows or not counted:
        return "no rows"
    return f"{counted[0]} is 0 everywhere" if len(counted) == 1 else f"no row has {' and '.join(counted)} above 0"


def _check_rules(log: ClickLog, rules: ClickRules) -> None:
    """Refuses rules that would do nothing.

    Raises:
        InputError: the log lacks a column that a rule needs, or has one that leaves a rule without use.
    """
    given = rules.model_fields_set
    needs = {
        "test_from": (rules.test_from is not None, ("timestamp",)),
        "time_unit": (rules.time_unit is not None, ("timestamp",)),
        "min_impressions": (rules.min_impressions > 1, ("clicked",)),
        "min_skips": (rules.min_skips is not None, ("clicked", "rank")),
        "eta": (rules.eta is not None, ("rank",)),
        "max_weight": (True, ("rank",)),
        "min_certainty": (rules.min_certainty > 0, ("clicked", "rank")),
    }
    for name, (is_set, columns) in needs.items():
        lacking = [column for column in columns if column not in log.present]
        if name in given and is_set and lacking:
            stored = getattr(log.names, lacking[0])
            raise InputError(
                f"{name}: needs the column {stored} ({lacking[0]}), which {log.first} does not have; leave {name} "
                f"out, or name the column with columns.{lacking[0]}"
            )
    if "seed" in given and "timestamp" in log.present:
        raise InputError(
            f"seed: {log.first} has the column {log.names.timestamp} (timestamp), by which it is split, and not by a "
            "seeded hash; leave seed out"
        )


def _find_cut(log: ClickLog, rules: ClickRules) -> np.ndarray:
    """Where dev and test begin, in microseconds (2)."""
    reader = _reader(log.names, rules)
    never = np.iinfo(np.int64).max
    given = None
    if rules.test_from is not None:
        given, zoned = parse_time(rules.test_from)
        # the first rows tell whether the log has zones
        first = next(iter(log.batches(("timestamp",))), None)
        if first is not None and len(first.columns["timestamp"]):
            reader.read(first)
        if zoned and reader.zoned is False:
            raise InputError(
                f"test_from: {rules.test_from} has a time zone, but the times of {log.first} have none; give it "
                "without one"
            )
        if not rules.dev_share:
            return np.array([given, given])
    if given is None and not rules.test_share + rules.dev_share:
        return np.array([never, never])
    reader = _reader(log.names, rules)
    bins: dict[int, int] = {}
    for raw in log.batches([name for name in log.present if name != "rank"]):
        rows = reader.read(raw)
        assert rows.time_N is not None
        clicks_N = rows.count_N if rows.clicked_N is None else rows.count_N * rows.clicked_N
        bin_B, place_N = np.unique(rows.time_N // BIN_US, return_inverse=True)
        clicks_B = np.bincount(place_N, clicks_N, len(bin_B))
        for number, clicks in zip(bin_B.tolist(), clicks_B.tolist(), strict=True):
            bins[number] = bins.get(number, 0) + int(clicks)
    start_B = np.array(sorted(bins), np.int64) * BIN_US
    clicks_B = np.array([bins[number] for number in sorted(bins)], np.int64)
    test = given if given is not None else _cut(start_B, clicks_B, rules.test_share)
    before_B = start_B < test
    share = rules.dev_share if given is not None else rules.dev_share / (1 - rules.test_share)
    dev = _cut(start_B[before_B], clicks_B[before_B], share) if rules.dev_share else test
    return np.array([min(dev, test), test])


def _cut(start_B: np.ndarray, clicks_B: np.ndarray, share: float) -> int:
    """The latest full minute from which on there is at least a share of the clicks."""
    if not share or not len(start_B):
        return int(np.iinfo(np.int64).max)
    after_B = clicks_B[::-1].cumsum()[::-1]
    return int(start_B[np.flatnonzero(after_B >= share * clicks_B.sum()).max()])


def _check_bad(log: ClickLog, rules: ClickRules, reader: RowReader) -> None:
    bad = sum(reader.bad.values())
    if bad > rules.max_bad_rows * reader.rows:
        causes = ", ".join(f"{cause}: {count:,}" for cause, count in sorted(reader.bad.items()))
        raise InputError(
            f"{log.first}: {bad:,} of the log's {reader.rows:,} rows are bad, more than a share of "
            f"{rules.max_bad_rows} (max_bad_rows): {causes}; fix them, or raise it"
        )
