"""Figures by segment of the queries: read of a column, measured apart, and shown."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from smec_core.data.dataset import Dataset
from smec_core.data.segments import Segments, segment_name
from smec_core.errors import InputError
from smec_core.evaluation.evaluate import corpus_baselines, evaluate
from smec_core.evaluation.report import MOST_SEGMENTS, Evaluation
from smec_core.model.model import Model
from tests.builders import write_dataset

LANGUAGES = ["de", "en", None, "de", "de"]
MODEL = Model([], 8, {"dims": [8, 4]}, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("made") / "data", docs=80, queries=80, dim=8)


def labelled(folder: Path, column: pa.Array | pa.ChunkedArray, name: str = "language") -> Dataset:
    """The dataset, its queries in three files, with a column beside."""
    table = pq.read_table(folder / "queries.parquet").append_column(name, column)
    data = folder.parent / f"labelled-{len(list(folder.parent.iterdir()))}"
    (data / "queries").mkdir(parents=True)
    for part in ("corpus", "qrels"):
        (data / part).symlink_to(folder / part)
    for number, start in enumerate((0, 13, 50)):
        pq.write_table(table.slice(start, [13, 37, 30][number]), data / "queries" / f"{number}.parquet")
    return Dataset.open(str(data))


def cycled(values: Sequence[object], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([values[row % len(values)] for row in range(80)], kind)


def test_a_segment_has_the_figures_of_its_queries_alone(folder: Path) -> None:
    dataset = labelled(folder, cycled(LANGUAGES))
    baselines = corpus_baselines(dataset)
    segments = Segments.of(dataset, "test", "language")
    report = evaluate(dataset, MODEL, "test", baselines, segments=[segments])

    judged = dataset.splits["test"].with_positives()
    language_Q = np.array([str(LANGUAGES[row % 5]) for row in judged.query_row_Q])
    found = report["segments"]["language"]
    assert found[0]["value"] == "de"
    assert {one["value"] for one in found} == {"de", "en", None}
    assert sum(one["queries"] for one in found) == report["queries"] == len(judged)
    for one in found:
        alone = replace(dataset, splits={"test": judged.select(language_Q == str(one["value"]))})
        expected = evaluate(alone, MODEL, "test", baselines)
        for key in ("queries", "ndcg@10", "recall@100", "baselines", "intervals"):
            assert one[key] == expected[key]
    assert "segments" not in evaluate(dataset, MODEL, "test")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (cycled([7, 7, None]), {"7", None}),
        (cycled([True, False]), {"true", "false"}),
        (cycled(["a", "b", None]).dictionary_encode(), {"a", "b", None}),
        (cycled(["a", ""], pa.large_string()), {"a", ""}),
        (pa.nulls(80), {None}),
    ],
)
def test_columns_of_labels_are_read_whatever_holds_them(folder: Path, column: pa.Array, values: set[str]) -> None:
    dataset = labelled(folder, column, "tenant")
    found = Segments.of(dataset, "train", "tenant")
    assert set(found.values) == values
    assert np.array_equal(np.sort(np.concatenate(found.rows)), np.arange(len(dataset.splits["train"].with_positives())))
    assert [len(rows) for rows in found.rows] == sorted(map(len, found.rows), reverse=True)


def test_a_table_that_is_partitioned_by_the_column_has_it(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "queries.parquet").append_column("language", cycled(LANGUAGES))
    write_deltalake(tmp_path / "queries", table, partition_by=["language"])
    for part in ("corpus", "qrels"):
        (tmp_path / part).symlink_to(folder / part)
    found = Segments.of(Dataset.open(str(tmp_path)), "test", "language")
    plain = Segments.of(labelled(folder, cycled(LANGUAGES)), "test", "language")
    assert {value: len(rows) for value, rows in zip(found.values, found.rows, strict=True)} == {
        value: len(rows) for value, rows in zip(plain.values, plain.rows, strict=True)
    }


def test_what_is_no_column_of_labels_is_refused(folder: Path) -> None:
    dataset = labelled(folder, cycled([1.5, 2.5]))
    with pytest.raises(InputError, match=r"queries/0\.parquet: column lang is missing; it holds id, embedding, langu"):
        Segments.of(dataset, "test", "lang")
    with pytest.raises(InputError, match="column language is double; it must be a string, a whole number or a boolean"):
        Segments.of(dataset, "test", "language")
    with pytest.raises(InputError, match="column embedding is"):
        Segments.of(dataset, "test", "embedding")
    with pytest.raises(InputError, match="language divides judged queries, and there are none"):
        Segments.of(replace(dataset, splits={}), None, "language")


def test_a_digest_tells_whether_a_query_has_changed_its_segment(folder: Path) -> None:
    digests = [Segments.of(labelled(folder, cycled(LANGUAGES)), "test", "language").digest for _ in range(2)]
    other = Segments.of(labelled(folder, cycled(["de", "en", "en", "de", "de"])), "test", "language")
    assert digests[0] == digests[1] != other.digest


def test_in_python_a_column_of_the_queries_divides_them(folder: Path) -> None:
    tables = [pq.read_table(folder / name) for name in ("corpus", "queries.parquet")]
    qrels = pq.read_table(folder / "qrels" / "test.parquet")
    queries = tables[1].append_column("language", cycled(LANGUAGES))
    found = MODEL.evaluate(tables[0], queries, qrels, by="language")
    assert found.to_dict()["segments"]["language"][0]["value"] == "de"
    assert "ndcg@10 by language, 3 segments" in str(found)
    columns = {name: queries[name].to_pylist() for name in queries.column_names}
    assert MODEL.evaluate(tables[0], columns, qrels, by="language").to_dict() == found.to_dict()
    with pytest.raises(InputError, match="queries: column tenant is missing; it holds id, embedding, language"):
        MODEL.evaluate(tables[0], queries, qrels, by=["language", "tenant"])


def test_the_table_says_what_it_leaves_out_and_shows_foreign_text_safely(folder: Path) -> None:
    values: list[object] = ["[red]\x1b[2J", "", "(null)", None, "all queries"]
    many = [value for value in values for _ in range(3)] + [f"rare {number}" for number in range(40)]
    dataset = labelled(folder, cycled(many), "[b]\x1b]0;x")
    report = evaluate(dataset, MODEL, "train", segments=[Segments.of(dataset, "train", "[b]\x1b]0;x")])
    found = report["segments"]["[b]\x1b]0;x"]
    left = found[MOST_SEGMENTS:]
    text = str(Evaluation(report))
    told = f"{len(left)} with {sum(one['queries'] for one in left)} queries are left out here; --json has them"
    assert told in " ".join(text.split())
    assert r"by [b]\x1b]0;x" in text
    for shown in (r"[red]\x1b[2J", "''", "'(null)'", "(null)", "all queries"):
        assert f" {shown} " in text
    assert "\x1b" not in text
    assert text.count("rare ") == MOST_SEGMENTS - len(values)


def test_names_of_segments_cannot_be_taken_for_one_another() -> None:
    values = [None, "(null)", "", " ", "a", "a ", " a"]
    assert len({segment_name(value) for value in values}) == len(values)
    assert len(segment_name("x" * 1000)) <= 60
