"""Files of judgements, as spreadsheets, click logs and databases write them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from smec_core.data.columns import ColumnNames
from smec_core.data.qrels import as_table, read_qrels
from smec_core.data.tables import Table
from smec_core.errors import InputError

Rows = list[tuple[str, str, float]]
ROWS = [("q0", "d0", 1.0), ("q1", "d 1", 0.0)]


def read(path: Path, names: ColumnNames | None = None) -> Rows:
    files = read_qrels(pafs.LocalFileSystem(), Table(path.name, [str(path)]), names or ColumnNames())
    return [tuple(row.values()) for row in as_table(files).to_pylist()]


@pytest.mark.parametrize(
    "text",
    [
        b"q0\td0\t1\nq1\td 1\t0\n",
        b"query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td 1\t0\n",
        b"query_id\tdoc_id\tScore\nq0\td0\t1\nq1\td 1\t0",
        b"\xef\xbb\xbfq0\td0\t1\nq1\td 1\t0\n",
        b"\xef\xbb\xbfquery-id\tcorpus-id\tscore\r\nq0\td0\t1\r\nq1\td 1\t0\r\n",
        b"q0\td0\t1\rq1\td 1\t0\r",
        b'"q0"\t"d0"\t1\n"q1"\t"d 1"\t0\n',
        b'"query-id"\t"corpus-id"\t"score"\n"q0"\t"d0"\t"1"\n"q1"\t"d 1"\t"0"\n',
        b"q0\td0\t1.0\n\nq1\td 1\t0e0\n\n",
    ],
)
def test_tsv_is_read_however_it_was_written(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "train.tsv").write_bytes(text)
    assert read(tmp_path / "train.tsv") == ROWS


def test_signs_within_an_id_are_part_of_it(tmp_path: Path) -> None:
    rows = [('5" pipe', "a\u2028b", 1.0), ("ü", 'say "hi"', 2.5)]
    (tmp_path / "train.tsv").write_text("".join(f"{query}\t{doc}\t{score}\n" for query, doc, score in rows))
    assert read(tmp_path / "train.tsv") == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b"q0\td0\t1\nq1\td1\n",
            r"train\.tsv: line 2: needs query_id, doc_id and score \(BEIR: query-id, .*; it has 2 field\(s\)",
        ),
        (b"q0 d0 1\n", r"line 1: needs .*; it has 1 field"),
        (b"q0\t0\td0\t1\n", r"line 1: needs .*; it has 4 field"),
        (b"q0\td0\thigh\n", r"line 1: needs .*; 'high' is no score"),
        (b"q0\td0\tnan\n", r"line 1: needs .*; 'nan' is no score"),
        (b"q0\td0\t1_000\n", r"line 1: needs .*; '1_000' is no score"),
        (b"q0\td0\t1\n\td1\t1\n", r"line 2: needs .*; an id is empty"),
        (b'q0\td0\t1\n"q1\td1\t1\n', r"line 2: needs .*; unexpected end of data"),
        ("q0\td0\t1\n".encode("utf-16"), r"train\.tsv: is not UTF-8 text"),
        (b"q\xe4\td0\t1\n", r"train\.tsv: is not UTF-8 text \(.* at byte 1\)"),
        (b"query-id\tcorpus-id\tscore\n", r"train\.tsv: the split is empty"),
        (b"", r"train\.tsv: the split is empty"),
    ],
)
def test_malformed_tsv_is_refused_with_its_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "train.tsv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "train.tsv")


STRINGS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_ids_are_strings_of_any_kind(tmp_path: Path, kind: str) -> None:
    columns = {"query_id": ["q0", "q1"], "doc_id": ["d0", "d 1"]}
    table = {name: pa.array(ids, pa.string()).cast(STRINGS[kind]) for name, ids in columns.items()}
    pq.write_table(pa.table({**table, "score": [1, 0]}), tmp_path / "train.parquet")
    assert read(tmp_path / "train.parquet") == ROWS


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.int64(), pa.dictionary(pa.int32(), pa.int64())], ids=str)
def test_ids_that_are_whole_numbers_count_as_written(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array([7, 12], pa.int64())
    ids = ids.dictionary_encode() if pa.types.is_dictionary(kind) else ids.cast(kind)
    pq.write_table(pa.table({"query_id": ids, "doc_id": ids, "score": [1, 0]}), tmp_path / "train.parquet")
    assert read(tmp_path / "train.parquet") == [("7", "7", 1), ("12", "12", 0)]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (pa.array([20_000_000, 0], pa.int32()), [20_000_000, 0]),
        (pa.array([2**40, 0], pa.int64()), [2**40, 0]),
        (pa.array([2**63, 0], pa.uint64()), [2.0**63, 0]),
        (pa.array([3.0, 0.0], pa.float64()), [3, 0]),
        (pa.array([0.5, -1.0], pa.float32()), [0.5, -1]),
        (pa.array([0.5, 0.0], pa.float16()), [0.5, 0]),
        (pa.array([12, 0]).cast(pa.decimal128(38, 2)), [12, 0]),
        (pa.array([True, False]).cast(pa.int8()), [1, 0]),
    ],
)
def test_scores_are_any_finite_numbers(tmp_path: Path, scores: pa.Array, expected: list[float]) -> None:
    pq.write_table(
        pa.table({"query_id": ["q0", "q1"], "doc_id": ["d0", "d1"], "score": scores}), tmp_path / "t.parquet"
    )
    assert [score for *_, score in read(tmp_path / "t.parquet")] == expected


def test_columns_of_other_names_are_read(tmp_path: Path) -> None:
    table = pa.table({"search": ["q0", "q1"], "sku": ["d0", "d 1"], "clicks": [1, 0], "query_id": ["not", "these"]})
    pq.write_table(table, tmp_path / "train.parquet")
    names = ColumnNames(query_id="search", doc_id="sku", score="clicks")
    assert read(tmp_path / "train.parquet", names) == ROWS


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"query_id": ["q0"], "doc_id": ["d0"]},
            r"column score is missing; .* \(another name: --set columns\.score=NAME",
        ),
        ({"query_id": [None], "doc_id": ["d0"], "score": [1]}, r"column query_id is null; it must be a string"),
        ({"query_id": ["q0"], "doc_id": [b"d0"], "score": [1]}, r"column doc_id is binary; it must be a string"),
        ({"query_id": ["q0"], "doc_id": ["d0"], "score": [[1]]}, r"column score is list<.*; it must be a number"),
        ({"query_id": ["q0"], "doc_id": ["d0"], "score": [True]}, r"column score is bool; it must be a number"),
    ],
)
def test_what_is_no_judgement_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=rf"train\.parquet: {message}"):
        read(tmp_path / "train.parquet")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    arrays = [pa.array(["q0"]), pa.array(["d0"]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.Table.from_arrays(arrays, ["query_id", "doc_id", "score", "score"]), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: column score is there twice; rename or remove one"):
        read(tmp_path / "train.parquet")
