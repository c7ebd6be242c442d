"""Datasets on disk: what is read, how dev is split off, and every refusal with its place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import embedding_column, write_embeddings
from smec_core.errors import InputError

DIM, DOCS, QUERIES = 4, 30, 24
Pairs = list[tuple[str, str, int]]


def vectors(rows: int, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)


def write_qrels(folder: Path, split: str, pairs: Pairs, names: tuple[str, str] = ("query_id", "doc_id")) -> None:
    (folder / "qrels").mkdir(exist_ok=True)
    query, doc, score = zip(*pairs, strict=True) if pairs else ((), (), ())
    columns = {
        names[0]: pa.array(query, pa.string()),
        names[1]: pa.array(doc, pa.string()),
        "score": pa.array(score, pa.int64()),
    }
    pq.write_table(pa.table(columns), folder / "qrels" / f"{split}.parquet")


def train_pairs(queries: int = QUERIES) -> Pairs:
    return [(f"q{number}", f"d{number}", 1) for number in range(queries)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small dataset: the corpus in two files, one relevant document a query, train and test judgements."""
    root = tmp_path / "data"
    (root / "corpus").mkdir(parents=True)
    ids = [f"d{row}" for row in range(DOCS)]
    write_embeddings(str(root / "corpus" / "0.parquet"), ids[:20], vectors(20))
    write_embeddings(str(root / "corpus" / "1.parquet"), ids[20:], vectors(10))
    write_embeddings(str(root / "queries.parquet"), [f"q{row}" for row in range(QUERIES)], vectors(QUERIES))
    write_qrels(root, "train", train_pairs())
    write_qrels(root, "test", [("q3", "d25", 2), ("q3", "d4", 0), ("q1", "d1", 1)])
    return root


def test_judgements_name_rows_of_the_tables(folder: Path) -> None:
    dataset = Dataset.open(str(folder))
    assert (dataset.dim, dataset.corpus.rows, dataset.queries.rows) == (DIM, DOCS, QUERIES)
    assert set(dataset.splits) == {"train", "test"}
    test = dataset.splits["test"]
    assert test.query_row_Q.tolist() == [1, 3]
    assert (test.doc_row_J.tolist(), test.score_J.tolist()) == ([1, 4, 25], [1, 0, 2])


@pytest.mark.parametrize("manifest", ["_manifest.json", "manifest.json"])
def test_a_dataset_that_is_still_being_written_is_refused(folder: Path, manifest: str) -> None:
    plan = folder.with_name("data.partial") / "plan.json"
    plan.parent.mkdir()
    plan.write_text("{}")
    with pytest.raises(InputError, match="data: is not finished; run `smec ingest` again"):
        Dataset.open(str(folder))
    (folder / manifest).write_text("{}")
    assert Dataset.open(str(folder)).corpus.rows == DOCS


def test_column_names_of_beir_are_read(folder: Path) -> None:
    before = Dataset.open(str(folder)).splits["train"]
    write_qrels(folder, "train", train_pairs(), names=("query-id", "corpus-id"))
    after = Dataset.open(str(folder)).splits["train"]
    np.testing.assert_array_equal(after.query_row_Q, before.query_row_Q)
    np.testing.assert_array_equal(after.doc_row_J, before.doc_row_J)


def test_a_dataset_without_judgements_opens(folder: Path) -> None:
    shutil.rmtree(folder / "qrels")
    dataset = Dataset.open(f"{folder}/")
    assert dataset.splits == {}
    assert dataset.training_split(TrainConfig(dims=(2,))) == (None, None)


def test_summary_counts_what_there_is(folder: Path) -> None:
    write_qrels(folder, "train", [*train_pairs(), ("q0", "gone", 1), ("q0", "d5", 0), ("q0", "d5", -1)])
    dataset = Dataset.open(str(folder))
    summary = dataset.summary()
    assert summary["corpus"] == {"rows": DOCS, "files": 2}
    assert summary["queries"] == {"rows": QUERIES, "files": 1}
    assert summary["splits"]["train"] == {
        "queries": QUERIES,
        "judgements": QUERIES + 1,
        "relevant": QUERIES,
        "unknown": 1,
        "repeated": 1,
        "scores": {"tail": 1.0, "values": {"0": 1, "1": QUERIES}},
    }
    assert summary["fingerprint"] == dataset.fingerprint


# refusals


def drop_column(path: Path, name: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([name]), path)


def retype_column(path: Path, name: str, values: pa.Array) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), path)


def write_empty(*paths: Path) -> None:
    for path in paths:
        write_embeddings(str(path), [], vectors(0))


def with_empty(prefix: str, rows: int, bad: int) -> pa.Array:
    return pa.array(["" if row == bad else f"{prefix}{row}" for row in range(rows)])


def with_null(rows: int, bad: int, kind: pa.DataType) -> pa.Array:
    values = list(range(rows)) if pa.types.is_integer(kind) else [f"q{row}" for row in range(rows)]
    return pa.array([None if row == bad else value for row, value in enumerate(values)], kind)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (
        shutil.rmtree,
        r"data: there is no such folder; give the folder that holds corpus, queries and qrels",
    ),
    "no queries": (
        lambda f: (f / "queries.parquet").unlink(),
        r"data/queries: there is no such file or folder; expected .*data/queries\.parquet or",
    ),
    "empty corpus": (
        lambda f: write_empty(f / "corpus" / "0.parquet", f / "corpus" / "1.parquet"),
        r"data/corpus: holds no rows",
    ),
    "other dims of queries": (
        lambda f: write_embeddings(str(f / "queries.parquet"), ["q0"], vectors(1, DIM + 1)),
        r"queries have 5 dims, the corpus has 4",
    ),
    "id twice in the corpus": (
        lambda f: write_embeddings(str(f / "corpus" / "1.parquet"), ["d20", "d7"], vectors(2)),
        r"corpus/1\.parquet: row 1, column id: 'd7' was seen before in .*corpus/0\.parquet: row 7",
    ),
    "id twice in the queries": (
        lambda f: write_embeddings(str(f / "queries.parquet"), ["q0", "q1", "q0"], vectors(3)),
        r"queries\.parquet: row 2, column id: 'q0' was seen before in .*queries\.parquet: row 0",
    ),
    "no column query_id": (
        lambda f: drop_column(f / "qrels" / "train.parquet", "query_id"),
        r"train\.parquet: column query_id or query-id is missing; it holds doc_id, score",
    ),
    "no column doc_id": (
        lambda f: drop_column(f / "qrels" / "train.parquet", "doc_id"),
        r"train\.parquet: column doc_id or corpus-id is missing",
    ),
    "no column score": (
        lambda f: drop_column(f / "qrels" / "test.parquet", "score"),
        r"test\.parquet: column score is missing",
    ),
    "ids as fractions": (
        lambda f: retype_column(f / "qrels" / "train.parquet", "doc_id", pa.array([0.5] * QUERIES)),
        r"train\.parquet: column doc_id is double; it must be a string or a whole number",
    ),
    "scores as text": (
        lambda f: retype_column(f / "qrels" / "test.parquet", "score", pa.array(["1", "0", "2"])),
        r"test\.parquet: column score is string; it must be a number",
    ),
    "a score that is no number": (
        lambda f: retype_column(f / "qrels" / "test.parquet", "score", pa.array([1.0, float("nan"), 2.0])),
        r"test\.parquet: row 1, column score: nan is no score",
    ),
    "a null query": (
        lambda f: retype_column(f / "qrels" / "train.parquet", "query_id", with_null(QUERIES, 5, pa.string())),
        r"train\.parquet: row 5, column query_id: is null",
    ),
    "an empty id": (
        lambda f: retype_column(f / "queries.parquet", "id", with_empty("q", QUERIES, 7)),
        r"queries\.parquet: row 7, column id: is empty; every row needs an id",
    ),
    "an empty document": (
        lambda f: retype_column(f / "qrels" / "train.parquet", "doc_id", with_empty("d", QUERIES, 5)),
        r"train\.parquet: row 5, column doc_id: is empty; every row needs an id",
    ),
    "a null score": (
        lambda f: retype_column(f / "qrels" / "train.parquet", "score", with_null(QUERIES, 6, pa.int64())),
        r"train\.parquet: row 6, column score: is null",
    ),
    "few train queries": (
        lambda f: write_qrels(f, "train", train_pairs(19)),
        r"train\.parquet: 19 queries with a relevant document; training needs at least 20",
    ),
    "few train queries with a relevant document": (
        lambda f: write_qrels(f, "train", [*train_pairs(19), ("q19", "d0", 0), ("q20", "d0", -1)]),
        r"train\.parquet: 19 queries with a relevant document",
    ),
    "an empty split": (lambda f: write_qrels(f, "test", []), r"test\.parquet: the split is empty"),
    "a split without relevant documents": (
        lambda f: write_qrels(f, "test", [("q0", "d0", 0)]),
        r"test\.parquet: no judgement has a score above 0; the split is empty",
    ),
    "qrels that are no Parquet": (
        lambda f: (f / "qrels" / "test.parquet").write_text("query-id\tcorpus-id\tscore\n"),
        r"test\.parquet: not a readable Parquet file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_the_contract_is_refused(folder: Path, case: str) -> None:
    spoil, message = REFUSED[case]
    spoil(folder)
    with pytest.raises(InputError, match=message):
        Dataset.open(str(folder)).train_judgements()


@pytest.mark.parametrize(
    ("unknown", "place"),
    [(("nobody", "d0", 1), "row 24, column query_id: 'nobody'"), (("q0", "gone", 1), "row 24, column doc_id: 'gone'")],
)
def test_judgements_of_unknown_ids_are_counted_up_to_a_share(
    folder: Path, unknown: tuple[str, str, int], place: str
) -> None:
    write_qrels(folder, "train", [*train_pairs(), unknown])
    dataset = Dataset.open(str(folder), max_unknown=0.1)
    assert dataset.unknown_judgements == {"train": 1, "test": 0}
    assert len(dataset.splits["train"].doc_row_J) == QUERIES
    with pytest.raises(InputError) as refused:
        Dataset.open(str(folder), max_unknown=0.01)
    assert (
        "train.parquet: 1 of 25 judgements name ids that the data does not hold, more than a share of 0.01, first "
        in str(refused.value)
    )
    assert place in str(refused.value)
    path = folder / "qrels/train.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["query-id", "corpus-id", "score"]), path)
    with pytest.raises(InputError) as refused:
        Dataset.open(str(folder), max_unknown=0.01)
    assert place.replace("query_id", "query-id").replace("doc_id", "corpus-id") in str(refused.value)


# dev split and fingerprint


def dev_queries(folder: Path, dev_fraction: float = 0.2) -> tuple[set[str], set[str]]:
    """Ids of the train and of the dev queries."""
    dataset = Dataset.open(str(folder))
    train, dev = dataset.training_split(TrainConfig(dims=(2,), dev_fraction=dev_fraction))
    assert train is not None
    assert dev is not None
    ids = dataset.queries.ids()
    return {ids[int(row)].as_py() for row in train.query_row_Q}, {ids[int(row)].as_py() for row in dev.query_row_Q}


def test_a_query_stays_in_dev_when_others_are_added(folder: Path) -> None:
    train, dev = dev_queries(folder)
    assert dev
    assert train | dev == {f"q{number}" for number in range(QUERIES)}
    assert not train & dev
    # new queries in front: all row numbers change
    ids = [f"new{number}" for number in range(200)] + [f"q{number}" for number in range(QUERIES)]
    write_embeddings(str(folder / "queries.parquet"), ids, vectors(len(ids)))
    write_qrels(folder, "train", [(name, "d0", 1) for name in ids])
    more_train, more_dev = dev_queries(folder)
    assert dev <= more_dev
    assert train <= more_train
    assert len(more_dev) / len(ids) == pytest.approx(0.2, abs=0.08)


@pytest.mark.parametrize("dev_fraction", [0.0001, 0.9999])
def test_train_and_dev_both_hold_a_query_at_least(folder: Path, dev_fraction: float) -> None:
    train, dev = dev_queries(folder, dev_fraction)
    assert train
    assert dev
    assert not train & dev


def test_given_dev_judgements_are_used_as_they_are(folder: Path) -> None:
    write_qrels(folder, "dev", [("q2", "d9", 1), ("q5", "d9", 0)])
    train, dev = dev_queries(folder)
    assert dev == {"q2"}
    assert len(train) == QUERIES


def test_without_the_guard_no_query_is_held_out(folder: Path) -> None:
    train, dev = Dataset.open(str(folder)).training_split(TrainConfig(dims=(2,), guard=False, projection="linear"))
    assert train is not None
    assert len(train) == QUERIES
    assert dev is None


def split_ids(folder: Path, dev_queries: int) -> tuple[set[str], set[str]]:
    dataset = Dataset.open(str(folder))
    ids = dataset.queries.ids().to_pylist()
    train, dev = dataset.training_split(TrainConfig(dims=(2,), dev_fraction=0.5, dev_queries=dev_queries))
    assert train is not None and dev is not None
    return {ids[row] for row in train.query_row_Q}, {ids[row] for row in dev.query_row_Q}


@pytest.mark.parametrize("given", [False, True], ids=["dev of the train queries", "dev of its own"])
def test_of_many_dev_queries_the_same_few_are_dev(given: bool, folder: Path) -> None:
    everything = {f"q{number}" for number in range(QUERIES)}
    if given:
        write_qrels(folder, "train", train_pairs()[:20])
        write_qrels(folder, "dev", train_pairs()[20:])
    all_dev = split_ids(folder, QUERIES)[1]
    before: set[str] = set()
    for most in (2, 3):
        train, dev = split_ids(folder, most)
        assert len(dev) == most
        assert before < dev < all_dev
        # what the dataset itself has put aside is not learnt from
        assert train == everything - (all_dev if given else dev)
        before = dev


def test_what_the_data_hold_is_the_fingerprint_and_not_how_they_are_stored(folder: Path, tmp_path: Path) -> None:
    before = Dataset.open(str(folder)).fingerprint
    assert len(before) == 16
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    for path in copied.glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=7, compression="zstd")
    assert Dataset.open(str(copied)).fingerprint == before
    seen, vectors_of = {before}, [*folder.glob("*.parquet"), *folder.glob("corpus/*.parquet")]
    for path in vectors_of:
        table = pq.read_table(path)
        turned = table.take(pa.array(range(len(table)))[::-1])
        x_ND = np.stack(table["embedding"].to_numpy())
        x_ND[3, 1] = np.nextafter(x_ND[3, 1], np.float32(9))
        changed = table.set_column(table.column_names.index("embedding"), "embedding", embedding_column(x_ND))
        for other in (turned, changed):
            pq.write_table(other, path)
            seen.add(Dataset.open(str(folder)).fingerprint)
    for path in sorted((folder / "qrels").glob("*.parquet")):
        table = pq.read_table(path)
        pq.write_table(table.slice(1), path)
        seen.add(Dataset.open(str(folder)).fingerprint)
    assert len(seen) == 1 + 2 * len(vectors_of) + len(list((folder / "qrels").glob("*.parquet")))


def test_turned_round_documents_search_queries(folder: Path) -> None:
    dataset = Dataset.open(str(folder))
    turned = dataset.reversed()
    assert (turned.corpus.rows, turned.queries.rows) == (dataset.queries.rows, dataset.corpus.rows)
    train, test = turned.splits["train"], turned.splits["test"]
    assert train.query_row_Q.tolist() == train.doc_row_J.tolist() == list(range(QUERIES))
    # d1 is a query of train already, and so is d4
    assert [test.query_row_Q.tolist(), test.doc_row_J.tolist(), test.score_J.tolist()] == [[25], [3], [2]]
    assert turned.fingerprint != dataset.fingerprint
    write_qrels(folder, "test", [("q3", "d3", 1)])
    with pytest.raises(InputError, match=r"qrels/test.parquet: in the other direction no query is left"):
        Dataset.open(str(folder)).reversed()


def test_queries_that_are_documents_are_known_by_their_id(folder: Path) -> None:
    write_embeddings(str(folder / "queries.parquet"), [f"d{row}" for row in range(QUERIES)], vectors(QUERIES))
    write_qrels(folder, "train", [(f"d{row}", f"d{row + 1}", 1) for row in range(QUERIES)])
    write_qrels(folder, "test", [("d3", "d25", 1), ("d3", "d3", 1)])
    dataset = Dataset.open(str(folder), exclude_self=True)
    test = dataset.splits["test"]
    assert test.own_doc_row_Q is not None
    assert (test.own_doc_row_Q.tolist(), test.doc_row_J.tolist()) == ([3], [25])
    with pytest.raises(InputError, match="open it with exclude_self=False, which"):
        dataset.training_split(TrainConfig(dims=(4,)))
    turned = dataset.reversed().splits["train"]
    assert turned.own_doc_row_Q is not None
    assert turned.own_doc_row_Q.tolist() == [row if row < QUERIES else -1 for row in turned.query_row_Q]


def held_out_ids(folder: Path) -> set[str]:
    dataset = Dataset.open(str(folder)).holding_out(0.3)
    ids = dataset.queries.ids().to_pylist()
    found = {name: {ids[row] for row in judged.query_row_Q} for name, judged in dataset.splits.items()}
    assert not found["held_out"] & (found["train"] | found.get("dev", set()))
    return found["held_out"]


def test_held_out_queries_are_the_same_whatever_else_there_is(folder: Path) -> None:
    write_qrels(folder, "test", [("q3", "d3", 1), ("q4", "d4", 1)])
    before = held_out_ids(folder)
    (folder / "qrels" / "test.parquet").unlink()
    write_qrels(folder, "train", train_pairs(QUERIES)[:-5])
    after = held_out_ids(folder)

    assert 0.1 * QUERIES < len(before) < 0.5 * QUERIES
    assert after <= before
    assert after >= before - {query for query, _, _ in train_pairs(QUERIES)[-5:]} - {"q3", "q4"}


def test_too_much_held_out_is_said_to_be(folder: Path) -> None:
    with pytest.raises(InputError, match=r"\d queries with a relevant document are left, as \d+ are held out.*share"):
        Dataset.open(str(folder)).holding_out(0.99).train_judgements()


def test_of_no_judgements_none_are_held_out(folder: Path) -> None:
    shutil.rmtree(folder / "qrels")
    with pytest.raises(InputError, match="there are no judgements, of which queries could be held out"):
        Dataset.open(str(folder)).holding_out(0.2)


def test_a_fingerprint_does_not_depend_on_what_is_held_out(folder: Path) -> None:
    dataset = Dataset.open(str(folder))
    assert dataset.holding_out(0.3).fingerprint == dataset.fingerprint


def test_a_share_that_holds_out_no_query_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="none of the judged queries is held out by a share of 1e-09"):
        Dataset.open(str(folder)).holding_out(1e-9)
