"""Bad rows are told by file, row and column, and good ones are the same in every form."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from smec_core.errors import InputError
from tests.smec_core.clicks.logs import found_in, judged_in, write_log, write_vectors

FORMS = ["log.parquet", "log.csv", "log.jsonl", "log.jsonl.gz"]
GOOD = {"query_id": ["q1", "q2", "q1"], "doc_id": ["d1", "d2", "d1"]}
ALL: dict[str, Any] = {"test_share": 0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_vectors(tmp_path / "data")


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same(tmp_path: Path, data: Path, form: str) -> None:
    columns = {
        **GOOD,
        "count": [2, 3, 4],
        "timestamp": ["2026-01-01T10:00:00Z", "2026-01-02T10:00:00+02:00", "2026-01-03T00:00:00.5Z"],
        "clicked": [True, True, False],
    }
    log = write_log(tmp_path / "logs" / form, columns)
    cut = judged_in(log.parent, data, test_from="2026-01-02T08:00:00")
    assert cut == {"train": {"q1 d1": 2}, "test": {"q2 d2": 3}}
    read, found = found_in(log, data, **ALL)
    assert (read.rows, read.clicks, read.split.first_us, read.split.last_us) == (
        3,
        5,
        1767261600000000,
        1767398400500000,
    )
    assert judged_in(log, data, **ALL) == {"train": {"q1 d1": 2, "q2 d2": 3}}
    assert found.unknown == {"query_id": 0, "doc_id": 0}


BAD: list[tuple[dict[str, list[Any]], str]] = [
    ({"query_id": ["q1", None, "q1"]}, "column query_id: is (null|empty); "),
    ({"doc_id": ["d1", "", "d1"]}, "column doc_id: is (null|empty); "),
    ({"count": [1, -2, 1]}, "column count: '?-2'? is not a whole number from 0; "),
    ({"count": [1, 2.5, 1]}, "column count: '?2.5'? is not a whole number from 0; "),
    ({"count": [1, None, 1]}, "column count: is null; "),
    ({"count": [1, 1 << 40, 1]}, "column count: '?1099511627776'? is not a whole number from 0 to 2147483648; "),
    ({"rank": [1, 0, 1]}, "column rank: '?0'? is not a whole number from 1; "),
    ({"clicked": [1, 2, 1]}, "column clicked: '?2'? is not 0 or 1; "),
    ({"timestamp": ["2026-01-01", "01/02/2026", "2026-01-01"]}, "column timestamp: '01/02/2026' is no time; "),
    ({"timestamp": ["2026-01-01", "2026-02-30", "2026-01-01"]}, "column timestamp: '2026-02-30' is no time; "),
    ({"timestamp": ["2026-01-01", "2300-01-01", "2026-01-01"]}, "column timestamp: lies before 1970 or after 2199; "),
    (
        {"timestamp": ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00Z"]},
        "column timestamp: has no time zone, but rows before it have one; ",
    ),
    ({"timestamp": ["2026-01-01", None, "2026-01-01"]}, "column timestamp: is null; "),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("columns", "why"), BAD)
def test_a_bad_row_is_named(tmp_path: Path, data: Path, form: str, columns: dict[str, list[Any]], why: str) -> None:
    log = write_log(tmp_path / form, {**GOOD, **columns})
    place = "line 2" if "jsonl" in form else "row 1"
    with pytest.raises(InputError, match=f"^{re.escape(str(log))}: {place}, {why}"):
        found_in(log, data, **ALL)


@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log.jsonl"])
def test_bad_rows_may_be_left_out_and_are_counted(tmp_path: Path, data: Path, form: str) -> None:
    columns = {"query_id": ["q1", "q2", "q3", None], "doc_id": ["d1", "d2", "d3", "d4"], "count": [1, -1, None, -1]}
    log = write_log(tmp_path / form, columns)
    read, _ = found_in(log, data, max_bad_rows=0.8, **ALL)
    assert sum(read.bad.values()) == 3
    assert read.bad["count is not a whole number from 0"] == 1
    assert judged_in(log, data, max_bad_rows=0.8, **ALL) == {"train": {"q1 d1": 1}}
    with pytest.raises(InputError, match=r"3 of the log's 4 rows are bad, more than a share of 0.5 \(max_bad_rows\)"):
        found_in(log, data, max_bad_rows=0.5, **ALL)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"query_id": [1.0, 2.0, 1.0]}, "column query_id is double; it must be a string or a whole number"),
        ({"count": ["1", "2", "3"]}, "column count is string; it must be a whole number from 0, as a number"),
        ({"clicked": ["y", "n", "y"]}, "column clicked is string; it must be 0 or 1, as a number"),
        ({"timestamp": [1.5, 2.5, 3.5]}, "column timestamp is double; it must be a timestamp, a date, or text"),
        ({"timestamp": [1767225600] * 3}, "holds whole numbers; say what they count since 1970, --set time_unit=s, ms"),
    ],
)
def test_a_column_of_another_type_is_refused(
    tmp_path: Path, data: Path, columns: dict[str, list[Any]], why: str
) -> None:
    log = write_log(tmp_path / "log.parquet", {**GOOD, **columns})
    with pytest.raises(InputError, match=re.escape(why)):
        found_in(log, data, **ALL)


@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log.jsonl"])
@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)])
def test_whole_numbers_are_times_of_a_unit(tmp_path: Path, data: Path, form: str, unit: str, factor: int) -> None:
    log = write_log(tmp_path / form, {**GOOD, "timestamp": [(1767225600 + row) * factor for row in range(3)]})
    read, _ = found_in(log, data, time_unit=unit, **ALL)
    assert (read.split.first_us, read.split.last_us) == (1767225600_000000, 1767225602_000000)


@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log.jsonl"])
def test_a_unit_of_times_that_have_their_own_is_refused(tmp_path: Path, data: Path, form: str) -> None:
    times = ["2026-01-01", "2026-01-02", "2026-01-03"]
    stamps = pa.array(times).cast(pa.timestamp("s"))
    for number, stored in enumerate((times, stamps) if form == "log.parquet" else (times,)):
        log = write_log(tmp_path / str(number) / form, {**GOOD, "timestamp": stored})
        with pytest.raises(InputError, match=f"time_unit: no time of .*{form} is a whole number"):
            found_in(log, data, time_unit="s", **ALL)


def test_a_wrong_unit_is_told(tmp_path: Path, data: Path) -> None:
    log = write_log(tmp_path / "log.csv", {**GOOD, "timestamp": [1767225600_000] * 3})
    with pytest.raises(InputError, match="row 0, column timestamp: lies before 1970 or after 2199, counted in s; fix"):
        found_in(log, data, time_unit="s", **ALL)


@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log.jsonl"])
@pytest.mark.parametrize("block", [1 << 24, 200])
@pytest.mark.parametrize(
    ("first", "last", "why"),
    [
        ("1767225600", "2026-01-01", "'2026-01-01' is no whole number, as the times before it in this file are; write"),
        ("2026-01-01", "1767225600", "'1767225600' is no time; write 2026-01-31T12:00:00Z"),
    ],
)
def test_numbers_and_dates_are_not_mixed_however_much_is_read_at_a_time(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, form: str, block: int, first: str, last: str, why: str
) -> None:
    monkeypatch.setattr("smec_core.clicks.log.BLOCK_BYTES", block)
    monkeypatch.setattr("smec_core.clicks.log.BATCH_ROWS", block // 8)
    stamps = [first] * 40 + [last] * 40
    columns = {"query_id": ["q1"] * 80, "doc_id": ["d1"] * 80, "timestamp": stamps}
    log = write_log(tmp_path / form, columns)
    with pytest.raises(InputError, match=rf"(row 40|line 41), .* {re.escape(why)}"):
        found_in(log, data, time_unit="s", **ALL)
    read, _ = found_in(log, data, time_unit="s", max_bad_rows=0.5, **ALL)
    assert (read.rows, read.bad) == (80, {"timestamp is no time": 40})


def test_times_with_and_without_a_zone_are_not_mixed_between_files(tmp_path: Path, data: Path) -> None:
    stamps = [pa.array([0, 1, 2], pa.timestamp("s", zone)) for zone in ("UTC", None)]
    for number, stamp in enumerate(stamps):
        write_log(tmp_path / f"log/{number}.parquet", {**GOOD, "timestamp": stamp})
    with pytest.raises(
        InputError, match=r"1\.parquet: column timestamp has no time zone, but that of .*0\.parquet has"
    ):
        found_in(tmp_path / "log", data, **ALL)


def test_an_instant_is_the_same_in_every_zone_and_unit(tmp_path: Path, data: Path) -> None:
    base = pa.array([1767225600, 1767225601, 1767225602], pa.timestamp("s", "UTC"))
    kinds = [pa.timestamp("s", "Asia/Tokyo"), pa.timestamp("ns", "UTC"), pa.timestamp("ms", "America/New_York")]
    for number, kind in enumerate(kinds):
        log = write_log(tmp_path / f"{number}.parquet", {**GOOD, "timestamp": base.cast(kind)})
        assert found_in(log, data, **ALL)[0].split.first_us == 1767225600_000000


def test_mixed_types_of_ids_are_told(tmp_path: Path, data: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"query_id": "q1", "doc_id": "d1"}\n{"query_id": 7, "doc_id": "d1"}\n')
    with pytest.raises(InputError, match=r"line 2, column query_id: 7 is whole number, but ids before it are strings"):
        found_in(log, data, **ALL)
    log.write_text('{"query_id": "q1", "doc_id": {"a": 1}}\n')
    with pytest.raises(InputError, match=r"line 1, column doc_id: \{'a': 1\} is not a string or a whole number"):
        found_in(log, data, **ALL)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"query_id": "q1", "doc_id": "d1"}\n{"query_id": "q1"\n', "line 2: is not JSON"),
        ('{"query_id": "q1", "doc_id": "d1"}\n\n', "line 2: is not JSON"),
        ('{"query_id": "q1", "doc_id": "d1"}\n[1]\n', "line 2: is no JSON object"),
        (
            '{"query_id": "q1", "doc_id": "d1"}\n{"query_id": "q1", "doc_id": "d1", "rank": 1}\n',
            "line 2: has rank, which line 1 has not",
        ),
        ('{"query_id": "q1", "doc_id": "d1"}\n' + "[" * 200_000 + "\n", "line 2: is not JSON"),
        (
            '{"query_id": "q1", "doc_id": "d1"}\n{"query_id": "\\ud800", "doc_id": "d1"}\n',
            "line 2, column query_id: half of a surrogate pair",
        ),
        ('{"query_id": "q1"}\n', "column doc_id is missing; it holds query_id"),
        ("", "column query_id is missing; it holds no columns"),
    ],
)
def test_malformed_lines_are_told(tmp_path: Path, data: Path, text: str, why: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(text)
    with pytest.raises(InputError, match=re.escape(why)):
        found_in(log, data, **ALL)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("query_id,doc_id\nq1,d1\nq1,d1,3\n", "log.csv: cannot be read (CSV parse error: row 1: Expected 2 columns"),
        ("query_id,doc_id\n" + "q1,d1\n" * 601 + "q1\n", "log.csv: cannot be read (CSV parse error: row 601:"),
        ("query_id;doc_id\nq1;d1\n", "column query_id is missing; it holds query_id;doc_id"),
        ("query_id,doc_id,doc_id\nq1,d1,d2\n", "column doc_id is there twice"),
        ("", "cannot be read (Empty CSV file)"),
    ],
)
def test_malformed_csv_is_told(tmp_path: Path, data: Path, text: str, why: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    with pytest.raises(InputError, match=re.escape(why)):
        found_in(log, data, **ALL)


def test_ids_of_csv_are_what_is_written(tmp_path: Path) -> None:
    from smec_core.clicks.log import ClickColumns, ClickLog

    log = tmp_path / "log.csv"
    log.write_text("\ufeffquery_id,doc_id,other\n007,1e3,x\nNA,null,1\n")
    [raw] = ClickLog(str(log), ClickColumns()).batches(("query_id", "doc_id"))
    assert raw.columns["query_id"].to_pylist() == ["007", "NA"]
    assert raw.columns["doc_id"].to_pylist() == ["1e3", "null"]
