"""Each rule by which clicks become judgements; and that the order of rows and the cut into files do not matter."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smec_core.clicks import tally
from smec_core.clicks.judge import figures_of, table_of
from smec_core.clicks.log import BATCH_ROWS
from smec_core.clicks.mistakes import fit_rates
from smec_core.clicks.tally import MOST_RANK
from smec_core.clicks.weights import _asked
from smec_core.errors import InputError
from tests.smec_core.clicks.logs import found_in, judged_in, write_log, write_vectors

PLAIN: dict[str, Any] = {"test_share": 0, "weight": "clicks"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("of") / "data")


def model_log(sessions: int, seed: int = 0, noise: float = 0.05, eta: float = 1.0) -> dict[str, list[Any]]:
    """Users of the position-based model: query qi has one relevant document, di, among ten in a random order."""
    rng = np.random.default_rng(seed)
    query = rng.integers(0, 30, sessions)
    others = np.argsort(rng.random((sessions, 30)), axis=1)
    shown = np.array([[*row[row != own][:9], own] for row, own in zip(others, query, strict=True)])
    # the relevant one first more often than last, as a search that works has it
    place = np.argsort(rng.random(shown.shape) - 0.3 * (shown == query[:, None]), axis=1)
    shown = np.take_along_axis(shown, place, 1)
    rank = np.arange(1, 11)
    click = rng.random(shown.shape) < np.where(shown == query[:, None], 0.7, noise) * rank**-eta
    return {
        "query_id": [f"q{one}" for one in np.repeat(query, 10)],
        "doc_id": [f"d{one}" for one in shown.ravel()],
        "rank": np.tile(rank, sessions).tolist(),
        "clicked": click.ravel().astype(int).tolist(),
    }


def test_counts_are_scores_as_they_are(tmp_path: Path, data: Path) -> None:
    columns = {"query_id": ["q1", "q1", "q2", "q1"], "doc_id": ["d1", "d2", "d3", "d1"], "count": [1000, 1, 0, 7]}
    read, found = found_in(write_log(tmp_path / "log.parquet", columns), data, test_share=0)
    table = table_of(found.parts["train"], found.ids)
    assert table.schema == pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.int32())])
    assert table.to_pydict() == {"query_id": ["q1", "q1"], "doc_id": ["d1", "d2"], "score": [1007, 1]}
    assert (read.clicks, found.told) == (1008, "none, since the log has no ranks")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.booleans()), min_size=1, max_size=60
    ),
    seed=st.integers(0, 100),
    cuts=st.integers(1, 4),
)
def test_order_files_and_counts_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, data: Path, events: list[Any], seed: int, cuts: int
) -> None:
    """Events one by one, shuffled and cut into files, and the same added up give the same table, byte for byte."""
    folder = tmp_path_factory.mktemp("logs")
    names = ("query_id", "doc_id", "rank", "clicked")
    rows = [(f"q{query}", f"d{doc}", rank, int(clicked)) for query, doc, rank, clicked in [*events, (0, 0, 1, True)]]
    write_log(folder / "plain/0.parquet", dict(zip(names, zip(*rows, strict=True), strict=True)))
    order = np.random.default_rng(seed).permutation(len(rows))
    for number, part in enumerate(part for part in np.array_split(order, cuts) if len(part)):
        some = [rows[place] for place in part]
        write_log(folder / f"cut/{number}.parquet", dict(zip(names, zip(*some, strict=True), strict=True)))
    counts = {row: rows.count(row) for row in rows}
    added = dict(zip(names, zip(*counts, strict=True), strict=True))
    write_log(folder / "added/0.parquet", {**added, "count": list(counts.values())})
    tried: list[dict[str, Any]] = [{"eta": 0.7}, {}, {"weight": "clicks", "min_clicks": 2}, {"min_skips": 1, "eta": 1}]
    for rules in tried:
        found: list[Any] = []
        for name in ("plain", "cut", "added"):
            try:
                _, made = found_in(folder / name, data, test_share=0.3, seed=seed, **rules)
                found.append({split: table_of(part, made.ids) for split, part in made.parts.items()})
            except InputError as error:
                found.append(str(error).partition(": ")[2])
        assert found[0] == found[1] == found[2]


def test_a_log_in_many_batches_is_added_up_the_same(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path / "log.parquet", model_log(300))
    once = judged_in(log, data, test_share=0.2)
    monkeypatch.setattr(tally, "HELD_ROWS", 10)
    monkeypatch.setattr("smec_core.clicks.log.BATCH_ROWS", 64)
    assert BATCH_ROWS > 64
    assert judged_in(log, data, test_share=0.2) == once


def test_memory_is_bounded_by_pairs_not_by_rows(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that repeats the same pairs again and again: what is held does not grow with it."""
    monkeypatch.setattr(tally, "HELD_ROWS", 1000)
    monkeypatch.setattr("smec_core.clicks.log.BATCH_ROWS", 500)
    held = []
    add = tally.Tally.add

    def watched(self: tally.Tally, *arguments: Any) -> None:
        add(self, *arguments)
        held.append(len(self._added) + self._held_rows)

    monkeypatch.setattr(tally.Tally, "add", watched)
    rows = 50_000
    columns = {"query_id": [f"q{row % 10}" for row in range(rows)], "doc_id": [f"d{row % 7}" for row in range(rows)]}
    judged_in(write_log(tmp_path / "log.parquet", columns), data, **PLAIN)
    assert len(held) == rows // 500
    assert max(held) < 70 + 1000 + 500


def test_test_is_the_future(tmp_path: Path, data: Path) -> None:
    stamps = [f"2026-01-{day:02}T00:00:00Z" for day in (1, 2, 3, 4)]
    columns = {"query_id": ["q1", "q2", "q1", "q3"], "doc_id": ["d1", "d2", "d1", "d3"], "timestamp": stamps}
    log = write_log(tmp_path / "log.csv", columns)
    want = {"train": {"q1 d1": 1, "q2 d2": 1}, "test": {"q1 d1": 1, "q3 d3": 1}}
    for when in ("2026-01-03", "2026-01-03T00:00:00Z", "2026-01-03T02:00:00+02:00", "2026-01-02T23:59:59"):
        assert judged_in(log, data, test_from=when) == want
    assert judged_in(log, data, test_share=0.5) == want
    cut = judged_in(log, data, test_share=0.25, dev_share=0.25)
    assert cut == {"train": {"q1 d1": 1, "q2 d2": 1}, "dev": {"q1 d1": 1}, "test": {"q3 d3": 1}}
    assert judged_in(log, data, test_from="2026-01-04", dev_share=0.3) == cut
    assert judged_in(log, data, test_share=0) == {"train": {"q1 d1": 2, "q2 d2": 1, "q3 d3": 1}}


def test_seen_and_recurring_queries_are_counted(tmp_path: Path, data: Path) -> None:
    """q1 asks for d1 again; q2 for another document that q1 had; q3 is known and asks for a new one; q4 is all new."""
    rows = [("q1", "d1", 1), ("q3", "d3", 1), ("q1", "d1", 2), ("q2", "d1", 2), ("q3", "d5", 2), ("q4", "d4", 2)]
    query, doc, day = zip(*rows, strict=True)
    columns = {"query_id": query, "doc_id": doc, "timestamp": [f"2026-01-0{one}" for one in day]}
    log = write_log(tmp_path / "log.parquet", columns)
    figures = figures_of(*found_in(log, data, test_from="2026-01-02"))
    test = figures["splits"]["test"]
    assert (test["queries"], test["seen"], test["unseen"], test["recurring"]) == (4, 2, 2, 1)


def test_without_times_whole_queries_are_split_by_a_seeded_hash(tmp_path: Path, data: Path) -> None:
    columns = {"query_id": [f"q{row % 30}" for row in range(90)], "doc_id": [f"d{row // 3}" for row in range(90)]}
    log = write_log(tmp_path / "log.parquet", columns)
    splits = [judged_in(log, data, test_share=0.3, seed=seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    for split in splits:
        queries = {name: {pair.split()[0] for pair in pairs} for name, pairs in split.items()}
        assert not queries["train"] & queries["test"]
        assert len(queries["train"] | queries["test"]) == 30
        assert 2 <= len(queries["test"]) <= 16


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({}, {"q1 d1": 3, "q1 d2": 1, "q2 d3": 1}),
        ({"min_clicks": 2}, {"q1 d1": 3}),
        ({"min_impressions": 3}, {"q1 d1": 3, "q2 d3": 1}),
        ({"min_share": 0.5}, {"q1 d1": 3, "q2 d3": 1}),
        ({"min_share": 1 / 3}, {"q1 d1": 3, "q1 d2": 1, "q2 d3": 1}),
    ],
)
def test_thresholds(tmp_path: Path, data: Path, rules: dict[str, Any], left: dict[str, float]) -> None:
    columns = {
        "query_id": ["q1", "q1", "q2", "q2", "q3"],
        "doc_id": ["d1", "d2", "d3", "d3", "d4"],
        "clicked": [1, 1, 1, 0, 0],
        "count": [3, 1, 1, 2, 9],
    }
    assert judged_in(write_log(tmp_path / "log.parquet", columns), data, **PLAIN, **rules) == {"train": left}


def test_clicks_further_down_count_more_and_are_clipped(tmp_path: Path, data: Path) -> None:
    columns = {"query_id": ["q1"] * 3, "doc_id": ["d1", "d2", "d3"], "rank": [1, 4, 100], "count": [3, 3, 3]}
    log = write_log(tmp_path / "log.parquet", columns)
    assert judged_in(log, data, test_share=0, eta=1) == {"train": {"q1 d1": 3, "q1 d2": 12, "q1 d3": 30}}
    assert judged_in(log, data, test_share=0, eta=0.5) == {"train": {"q1 d1": 3, "q1 d2": 6, "q1 d3": 30}}
    assert judged_in(log, data, test_share=0, eta=1, max_weight=2) == {"train": {"q1 d1": 3, "q1 d2": 6, "q1 d3": 6}}
    read, found = found_in(log, data, test_share=0)
    assert "give --set eta=1" in found.told
    assert judged_in(log, data, test_share=0) == {"train": {"q1 d1": 3, "q1 d2": 3, "q1 d3": 3}}
    assert read.clicks == 9


def test_a_document_that_is_shown_now_and_then_counts_as_if_it_were_always(tmp_path: Path, data: Path) -> None:
    """Both are clicked whenever they are looked at; d2 is shown in one of four searches, at rank 2."""
    columns = {
        "query_id": ["q1"] * 4,
        "doc_id": ["d1", "d3", "d2", "d4"],
        "rank": [1, 2, 2, 2],
        "clicked": [1, 0, 1, 0],
        "count": [8, 6, 1, 1],
    }
    log = write_log(tmp_path / "log.parquet", columns)
    rules: dict[str, Any] = {"test_share": 0, "eta": 1, "min_certainty": 0}
    assert judged_in(log, data, **rules, max_weight=100) == {"train": {"q1 d1": 8, "q1 d2": 16}}
    assert judged_in(log, data, **rules, max_weight=10) == {"train": {"q1 d1": 8, "q1 d2": 10}}


def test_mistakes_are_told_from_answers(tmp_path: Path, data: Path) -> None:
    """What thousands of searches say, clicked by mistake or not, and that no query loses its answer."""
    log = write_log(tmp_path / "log.parquet", model_log(20_000))
    _, found = found_in(log, data, test_share=0)
    assert found.rates is not None and found.propensities is not None
    assert found.rates.relevant == pytest.approx(0.7, rel=0.1)
    assert found.rates.other == pytest.approx(0.05, rel=0.1)
    np.testing.assert_allclose(found.propensities.p_K, 1 / np.arange(1, 11), rtol=0.15)
    assert judged_in(log, data, test_share=0)["train"].keys() == {f"q{row} d{row}" for row in range(30)}
    everything = judged_in(log, data, test_share=0, min_certainty=0)["train"]
    assert len(everything) > 500


def test_a_log_without_mistakes_loses_nothing(tmp_path: Path, data: Path) -> None:
    log = write_log(tmp_path / "log.parquet", model_log(1000, noise=0))
    kept, everything = (judged_in(log, data, test_share=0, min_certainty=least)["train"] for least in (0.5, 0))
    assert kept.keys() == everything.keys() == {f"q{row} d{row}" for row in range(30)}


def test_what_is_never_clicked_is_not_relevant_only_if_asked(tmp_path: Path, data: Path) -> None:
    log = write_log(tmp_path / "log.parquet", model_log(3000))
    assert min(judged_in(log, data, test_share=0)["train"].values()) > 0
    asked = judged_in(log, data, test_share=0, min_skips=15)["train"]
    zeros = {pair for pair, score in asked.items() if score == 0}
    assert zeros and not zeros & {f"q{row} d{row}" for row in range(30)}
    fewer = judged_in(log, data, test_share=0, min_skips=25)["train"]
    assert {pair for pair, score in fewer.items() if score == 0} < zeros


def test_unknown_ids_are_counted_and_refused_above_a_share(tmp_path: Path, data: Path) -> None:
    query = ["q1"] * 18 + ["gone", "q2"]
    doc = ["d1"] * 18 + ["d2", "lost"]
    log = write_log(tmp_path / "log.csv", {"query_id": query, "doc_id": doc})
    _, found = found_in(log, data, test_share=0)
    assert found.unknown == {"query_id": 1, "doc_id": 1}
    place = re.escape(f"{log}: row 18, column query_id: 'gone'")
    with pytest.raises(InputError, match=f"^{place}: 2 of the log's 20 rows name ids .* more than a share of 0.05"):
        found_in(log, data, test_share=0, max_unknown=0.05)


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"test_from": "2026-01-01"}, "test_from: needs the column timestamp"),
        ({"time_unit": "s"}, "time_unit: needs the column timestamp"),
        ({"min_impressions": 2}, "min_impressions: needs the column clicked"),
        ({"min_skips": 2}, "min_skips: needs the column clicked"),
        ({"eta": 1}, "eta: needs the column rank"),
        ({"max_weight": 5}, "max_weight: needs the column rank"),
        ({"min_certainty": 0.8}, "min_certainty: needs the column clicked"),
    ],
)
def test_a_rule_that_would_do_nothing_is_refused(tmp_path: Path, data: Path, rules: dict[str, Any], why: str) -> None:
    log = write_log(tmp_path / "log.parquet", {"query_id": ["q1"], "doc_id": ["d1"]})
    with pytest.raises(InputError, match=why):
        found_in(log, data, **rules)


def test_a_split_without_anything_is_refused(tmp_path: Path, data: Path) -> None:
    columns = {"query_id": ["q1", "q2"], "doc_id": ["d1", "d2"], "timestamp": ["2026-01-01", "2026-01-02"]}
    log = write_log(tmp_path / "log.csv", columns)
    span = "the log is from 2026-01-01T00:00:00 to 2026-01-02T00:00:00"
    for name, when in (("test", "2026-02-01"), ("train", "2025-12-01")):
        with pytest.raises(InputError, match=f"nothing is left for {name}, split by time, test from .*{span}"):
            found_in(log, data, test_from=when)
    with pytest.raises(InputError, match=r"test_from: \S+Z has a time zone, but the times of .* have none"):
        found_in(log, data, test_from="2026-01-02T00:00:00Z")


def test_a_log_without_a_click_is_refused(tmp_path: Path, data: Path) -> None:
    log = write_log(tmp_path / "log.parquet", {"query_id": ["q1"], "doc_id": ["d1"], "clicked": [0]})
    with pytest.raises(InputError, match="no click in the log; clicked is 0 everywhere"):
        found_in(log, data)
    log = write_log(tmp_path / "counts.parquet", {"query_id": ["q1"], "doc_id": ["d1"], "n": [0]})
    with pytest.raises(InputError, match="no click in the log; n is 0 everywhere"):
        found_in(log, data, {"count": "n"})
    both = {"query_id": ["q1", "q1"], "doc_id": ["d1", "d2"], "clicked": [1, 0], "count": [0, 5]}
    with pytest.raises(InputError, match="no click in the log; no row has clicked and count above 0"):
        found_in(write_log(tmp_path / "both.parquet", both), data)


def test_a_seed_is_refused_where_times_split(tmp_path: Path, data: Path) -> None:
    columns = {"query_id": ["q1", "q2"], "doc_id": ["d1", "d2"], "timestamp": ["2026-01-01", "2026-01-02"]}
    log = write_log(tmp_path / "log.csv", columns)
    with pytest.raises(InputError, match=r"seed: .*log.csv has the column timestamp .* leave seed out"):
        found_in(log, data, seed=3)


def test_columns_may_have_other_names_and_are_missed(tmp_path: Path, data: Path) -> None:
    columns = {"search": ["q1", "q1"], "sku": ["d1", "d1"], "n": [2, 3]}
    log = write_log(tmp_path / "log.parquet", columns)
    names = {"query_id": "search", "doc_id": "sku", "count": "n"}
    assert judged_in(log, data, names, test_share=0) == {"train": {"q1 d1": 5}}
    with pytest.raises(InputError, match=r"column position \(columns.rank\) is missing; it holds search, sku, n"):
        judged_in(log, data, {**names, "rank": "position"}, test_share=0)
    with pytest.raises(InputError, match=r"column query_id is missing; .*--set columns.query_id=NAME"):
        judged_in(log, data, test_share=0)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ({"count": "clicks", "clicked": "clicks"}, "columns.count and columns.clicked: both name the column clicks"),
        ({"rank": "count"}, "columns.count and columns.rank: both name the column count"),
        ({"doc_id": "query_id"}, "columns.query_id and columns.doc_id: both name the column query_id"),
    ],
)
def test_a_column_for_two_things_is_refused(tmp_path: Path, data: Path, names: dict[str, str], why: str) -> None:
    log = write_log(tmp_path / "log.csv", {"query_id": ["q1"], "doc_id": ["d1"], "count": [1], "clicks": [1]})
    with pytest.raises(InputError, match=why):
        judged_in(log, data, names)
    # those of the dataset are of other files
    assert judged_in(log, data, {"id": "id", "embedding": "embedding"}, test_share=0) == {"train": {"q1 d1": 1}}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"a.parquet": 1, "b.csv": 1}, "leave files of one kind there"),
        ({"a.parquet": 1, "b.tsv": 1}, "b.tsv: would not be read; files of a log end in one of .parquet, .csv, .jsonl"),
        ({"sub/a.parquet": 1}, "a.parquet: lies in a subfolder"),
        ({"_a.parquet": 1}, "no file of a log there"),
        ({"a.parquet": 1, "b.parquet": 2}, "a.parquet: column count is missing, but .*b.parquet has it"),
    ],
)
def test_files_that_are_no_log_are_refused_by_name(tmp_path: Path, data: Path, files: dict[str, int], why: str) -> None:
    for name, kind in files.items():
        columns: dict[str, list[Any]] = {"query_id": ["q1"], "doc_id": ["d1"]}
        path = tmp_path / "log" / name
        write_log(
            path.with_suffix(".csv") if path.suffix == ".tsv" else path, columns | ({"count": [1]} if kind > 1 else {})
        )
        if path.suffix == ".tsv":
            path.with_suffix(".csv").rename(path)
    with pytest.raises(InputError, match=why):
        found_in(tmp_path / "log", data)


@pytest.mark.parametrize("name", ["b.json", "b.txt", "b.avsc", "b", "sub/b.json"])
def test_no_file_beside_a_log_is_skipped_silently(tmp_path: Path, data: Path, name: str) -> None:
    """Spark names lines of JSON .json; notes and hidden names may lie there."""
    folder = tmp_path / "log"
    write_log(folder / "a.csv", {"query_id": ["q1"], "doc_id": ["d1"]})
    for note in ("README.txt", "notes.md", "_SUCCESS", ".a.csv.crc"):
        (folder / note).write_text("")
    assert judged_in(folder, data, test_share=0) == {"train": {"q1 d1": 1}}
    write_log(folder / name, {"query_id": ["q1"], "doc_id": ["d1"]})
    why = "lies in a subfolder" if "/" in name else "would not be read; files of a log end in one of .parquet"
    with pytest.raises(InputError, match=f"log/{name}: {why}"):
        judged_in(folder, data, test_share=0)


def test_a_deeper_rank_after_training_is_weighed_too(tmp_path: Path, data: Path) -> None:
    """What is estimated is of train, whose ranks may be fewer."""
    log = model_log(3000)
    rank = np.array(log["rank"])
    early = np.arange(len(rank)) < len(rank) // 2
    log["timestamp"] = np.where(early, "2026-01-01", "2026-02-01").tolist()
    log["rank"] = np.where(early, rank, rank + 4).tolist()
    judged = judged_in(write_log(tmp_path / "log.parquet", log), data, test_from="2026-02-01", min_certainty=0)
    assert judged["train"] and judged["test"]


def test_what_lies_beyond_the_last_rank_does_not_count_as_more_searches() -> None:
    ranks = np.minimum(np.arange(1, 151), MOST_RANK)
    rank, shown = np.unique(ranks, return_counts=True)
    query = np.zeros(len(rank), np.int64)
    asked = _asked(query, rank, 10 * shown)
    assert set(asked.tolist()) == {10}


def test_a_column_of_nearly_the_name_is_refused(tmp_path: Path, data: Path) -> None:
    log = write_log(tmp_path / "log.csv", {"query_id": ["q1"], "doc_id": ["d1"], "Clicked": ["0"]})
    with pytest.raises(InputError, match="column Clicked would be passed over; rename it to clicked, say --set"):
        judged_in(log, data)


def test_rules_that_need_propensities_are_refused_without(tmp_path: Path, data: Path) -> None:
    order = {"query_id": ["q1"] * 40, "doc_id": ["d1"] * 40, "rank": [1] * 40, "clicked": [1, 0] * 20}
    log = write_log(tmp_path / "log.parquet", order)
    with pytest.raises(InputError, match="min_skips: needs to know how likely each rank is looked at"):
        judged_in(log, data, test_share=0, min_skips=5)


def test_a_small_share_of_relevant_pairs_stays_one() -> None:
    clicks, looks = np.zeros(400_000), np.ones(400_000)
    clicks[0], looks[0] = 70, 100
    clicks[1:4000] = 1
    rates = fit_rates(clicks, looks)
    assert rates is None or 0 < rates.share < 1
