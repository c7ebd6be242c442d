"""Files of judgements, Parquet or TSV as BEIR has it: query, document, score.

Shapes: J judgements.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from smec_core.data.columns import DEFAULT_NAMES, MAX_SCORE, ColumnNames, ids_of, judge_schema, scores_of
from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements
from smec_core.data.table_files import open_rows
from smec_core.data.tables import Table
from smec_core.data.uri import shown_path
from smec_core.errors import InputError, one_line

_READ_ROWS = 1 << 18
_NEEDS = "needs query_id, doc_id and score (BEIR: query-id, corpus-id, score), separated by tabs"
OWN_NAMES = {"query_id": "query_id", "doc_id": "doc_id"}
_HEADINGS = ("score", "rel", "relevance")


class QrelsFile(NamedTuple):
    """The judgements of one file.

    Attributes:
        path: the file, as it is shown.
        query_id, doc_id: strings.
        score_J: float64.
        line_J: line of each judgement in a text file, from 1; None in Parquet, whose rows count from 0.
        stored: what the file calls the columns of query_id and doc_id.
    """

    path: str
    query_id: pa.ChunkedArray
    doc_id: pa.ChunkedArray
    score_J: np.ndarray
    line_J: np.ndarray | None = None
    stored: Mapping[str, str] = OWN_NAMES

    def locate(self, row: int) -> str:
        """Names the file and the place of a judgement in it."""
        return f"{self.path}: " + (f"row {row}" if self.line_J is None else f"line {self.line_J[row]}")


def read_qrels(filesystem: pafs.FileSystem, table: Table, names: ColumnNames = DEFAULT_NAMES) -> list[QrelsFile]:
    """Judgements of a split, file by file.

    Raises:
        InputError: a file that cannot be read, is malformed, or holds nothing.
    """
    files = [
        _read_tsv(filesystem, path) if path.endswith(".tsv") else _read_rows(filesystem, path, names)
        for path in table.paths
    ]
    if not sum(len(file.score_J) for file in files):
        raise InputError(f"{files[0].path}: the split is empty; add judgements or remove the file")
    return files


def _read_rows(filesystem: pafs.FileSystem, path: str, names: ColumnNames) -> QrelsFile:
    shown = shown_path(filesystem, path)
    with open_rows(filesystem, path) as opened:
        column = judge_schema(shown, opened.schema, names.of_qrels)
        stored = list(dict.fromkeys(column.values()))
        batches = [batch for _, batch in opened.batches(stored, _READ_ROWS)]
        table = pa.Table.from_batches(batches, pa.schema([opened.schema.field(name) for name in stored]))
    return judgements_in(table, shown, column)


def judgements_in(table: pa.Table, path: str, column: Mapping[str, str]) -> QrelsFile:
    """The judgements of a table, given what its columns are called.

    Raises:
        RowError: a null, an empty id, or what is no score.
    """
    query_id, doc_id = (ids_of(table[column[name]], path, column[name]) for name in ("query_id", "doc_id"))
    scores = scores_of(table[column["score"]], path, column["score"])
    return QrelsFile(path, query_id, doc_id, scores, stored=dict(column))


def _read_tsv(filesystem: pafs.FileSystem, path: str) -> QrelsFile:
    rows: list[tuple[str, str, float, int]] = []
    shown = shown_path(filesystem, path)
    for line, fields in _tsv_lines(filesystem, path):
        where = f"{shown}: line {line}: {_NEEDS}"
        if len(fields) != 3:
            raise InputError(f"{where}; it has {len(fields)} field(s)")
        query, doc, grade = fields
        if line == 1 and grade.lower() in _HEADINGS:
            continue
        if not query or not doc:
            raise InputError(f"{where}; an id is empty")
        score = _number(grade)
        if not abs(score) <= MAX_SCORE:
            raise InputError(f"{where}; {grade!r} is no score")
        rows.append((query, doc, score, line))
    query_id, doc_id, score_J, line_J = zip(*rows, strict=True) if rows else ((), (), (), ())
    queries, docs = (pa.chunked_array([pa.array(column, pa.string())]) for column in (query_id, doc_id))
    return QrelsFile(shown, queries, docs, np.array(score_J, np.float64), np.array(line_J, np.int64))


def _number(text: str) -> float:
    """A number as it is written in text; NaN for anything else."""
    try:
        return float(text) if "_" not in text else float("nan")
    except ValueError:
        return float("nan")


def _tsv_lines(filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[int, list[str]]]:
    """Fields of each line that is not empty, with its number from 1; pandas and spreadsheets quote fields."""
    shown = shown_path(filesystem, path)
    with filesystem.open_input_file(path) as content:
        try:
            # a byte order mark is no part of the first id
            text = content.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{shown}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    for line, row in enumerate(io.StringIO(text, newline=None), start=1):
        if not row.rstrip("\n"):
            continue
        try:
            [fields] = csv.reader([row], delimiter="\t", strict=True)
        except csv.Error as error:
            raise InputError(f"{shown}: line {line}: {_NEEDS}; {one_line(error)}") from None
        yield line, fields


def as_table(files: list[QrelsFile]) -> pa.Table:
    """Judgements of a split as a table: query_id, doc_id, score; whole scores as int32."""
    score_J = np.concatenate([file.score_J for file in files])
    ids = {
        name: pa.chunked_array([chunk for file in files for chunk in getattr(file, name).chunks], pa.string())
        for name in ("query_id", "doc_id")
    }
    return pa.table({**ids, "score": score_column(score_J)})


def score_column(score_J: np.ndarray) -> np.ndarray:
    """Scores as a file has them: whole ones as int32."""
    is_whole = np.abs(score_J).max() < 2**31 and bool((score_J == score_J.astype(np.int32)).all())
    return score_J.astype(np.int32) if is_whole else score_J


def distinct(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """The ids of some columns, each once."""
    return pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()))


def judgements_of(
    files: list[QrelsFile],
    query_ids: TableIds,
    doc_ids: TableIds,
    max_unknown: float,
    own_doc_of: np.ndarray | None,
) -> tuple[Judgements, int]:
    """The judgements of a split by rows, and how many were left out since their ids are not in the data."""
    query_row, doc_row = (
        [ids.rows_of(getattr(file, name)) for file in files]
        for ids, name in ((query_ids, "query_id"), (doc_ids, "doc_id"))
    )
    known = [(query_J >= 0) & (doc_J >= 0) for query_J, doc_J in zip(query_row, doc_row, strict=True)]
    total = sum(len(known_J) for known_J in known)
    unknown = total - sum(int(known_J.sum()) for known_J in known)
    if unknown > max_unknown * total:
        number = next(number for number, known_J in enumerate(known) if not known_J.all())
        file, row = files[number], int(known[number].argmin())
        column = "doc_id" if query_row[number][row] >= 0 else "query_id"
        raise InputError(
            f"{file.path}: {unknown} of {total} judgements name ids that the data does not hold, more than a share of "
            f"{max_unknown}, first {file.locate(row).removeprefix(f'{file.path}: ')}, column {file.stored[column]}: "
            f"{getattr(file, column)[row].as_py()!r}"
        )
    query_row_J, doc_row_J = (
        np.concatenate([rows[keep] for rows, keep in zip(found, known, strict=True)]) for found in (query_row, doc_row)
    )
    score_J = np.concatenate([file.score_J[keep] for file, keep in zip(files, known, strict=True)])
    judged = Judgements.from_pairs(query_row_J, doc_row_J, score_J.astype(np.float32), own_doc_of)
    if not len(judged.with_positives()):
        own = 0 if own_doc_of is None else int(((doc_row_J == own_doc_of[query_row_J]) & (score_J > 0)).sum())
        left_out = f" but the {own:,} of queries and their own document, which exclude_self leaves out" if own else ""
        raise InputError(f"{files[0].path}: no judgement has a score above 0{left_out}; the split is empty")
    return judged, unknown
