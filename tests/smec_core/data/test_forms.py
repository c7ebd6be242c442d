"""What Python may give for a dataset, and that what is refused is refused by name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from smec_core.data.columns import ColumnNames
from smec_core.data.dataset import Dataset
from smec_core.data.forms import dataset_of, judged_splits
from smec_core.data.parquet import write_embeddings
from smec_core.errors import InputError
from smec_core.training.fit import fit
from tests.builders import all_vectors
from tests.smec_core.given import columns, given

HAS = given()
PAIRS = {"query_id": [row[0] for row in HAS.qrels], "doc_id": [row[1] for row in HAS.qrels]}
TABLE = {**PAIRS, "score": [1] * len(HAS.qrels)}
TEXT = {name: [str(value) for value in values] if name != "score" else values for name, values in TABLE.items()}
BEIR = {"query-id": TABLE["query_id"], "corpus-id": TABLE["doc_id"], "score": TABLE["score"]}
NESTED = {str(query): {str(doc): 1} for query, doc in HAS.qrels}
Form = tuple[Callable[[np.ndarray], Any], Any]

FORMS: dict[str, Form] = {
    "numpy": (lambda x: x, HAS.qrels),
    "numpy of float64": (lambda x: x.astype(np.float64), np.array(HAS.qrels)),
    "rows that are not contiguous": (lambda x: np.asfortranarray(x), [(*pair, 1.0) for pair in HAS.qrels]),
    "torch": (torch.from_numpy, torch.tensor(HAS.qrels)),
    "torch with a gradient": (lambda x: torch.tensor(x, requires_grad=True), {"train": iter(HAS.qrels)}),
    "lists": (lambda x: x.tolist(), NESTED),
    "sets": (lambda x: list(x), {"train": {query: {doc} for query, doc in HAS.qrels}}),
    "lists of documents": (lambda x: list(x), {query: [doc] for query, doc in HAS.qrels}),
    "tuples of documents": (lambda x: list(x), {"train": {str(query): (str(doc),) for query, doc in HAS.qrels}}),
    "ids and an array": (lambda x: {"id": np.arange(len(x)), "embedding": x, "title": ["t"] * len(x)}, TABLE),
    "pandas": (lambda x: pd.DataFrame(columns(x)), pd.DataFrame(TABLE, index=np.arange(len(HAS.qrels))[::-1])),
    "polars": (lambda x: pl.DataFrame({"id": np.arange(len(x)), "embedding": x}), {"train": pl.DataFrame(BEIR)}),
    "arrow": (lambda x: pa.table(columns(x)), {"train": pa.table(BEIR)}),
    "arrow in chunks": (
        lambda x: pa.concat_tables([pa.table(columns(x)).slice(start, 70) for start in range(0, len(x), 70)]),
        pa.table(TABLE).to_batches()[0],
    ),
    "a reader": (lambda x: pa.table(columns(x)).to_reader(max_chunksize=7), pa.table(TABLE)),
    "datasets": (
        lambda x: datasets.Dataset.from_dict(columns(x)),
        datasets.DatasetDict({"train": datasets.Dataset.from_dict(TEXT)}),
    ),
    "datasets, shuffled and back": (
        lambda x: datasets.Dataset.from_dict(columns(x[::-1]) | {"id": columns(x)["id"][::-1]}).select(
            range(len(x) - 1, -1, -1)
        ),
        datasets.Dataset.from_dict(TEXT),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "data"
    (folder / "qrels").mkdir(parents=True)
    for name, x_ND in (("corpus", HAS.corpus), ("queries", HAS.queries)):
        write_embeddings(str(folder / f"{name}.parquet"), columns(x_ND)["id"], x_ND)
    pq.write_table(pa.table(TEXT), folder / "qrels/train.parquet")
    return folder


def trained(*form: Any) -> str:
    return fit(*form, dims=[8], epochs=1, progress=False).fingerprint


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    return trained(folder)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_model(form: str, expected: str) -> None:
    vectors, qrels = FORMS[form]
    assert trained(vectors(HAS.corpus), vectors(HAS.queries), qrels) == expected


def test_a_dataset_gives_it_as_an_open_one_and_as_its_path(folder: Path, expected: str) -> None:
    assert trained(Dataset.open(str(folder))) == trained(str(folder)) == expected


def test_forms_have_one_fingerprint_and_others_another() -> None:
    def fingerprint(form: str, change: float = 0.0) -> str:
        vectors, qrels = FORMS[form]
        corpus = HAS.corpus.copy()
        corpus[17, 3] += change
        return dataset_of(vectors(corpus), vectors(HAS.queries), qrels).fingerprint

    repeatable = [name for name in FORMS if name != "torch with a gradient"]
    assert len({fingerprint(form) for form in repeatable}) == 1
    assert fingerprint("numpy", 1e-3) != fingerprint("numpy")
    other = dataset_of(HAS.corpus, HAS.queries, [*HAS.qrels[:-1], (*HAS.qrels[-1], 2)])
    assert other.fingerprint != fingerprint("numpy")


def test_an_array_is_not_copied() -> None:
    corpus = HAS.corpus.copy()
    dataset = dataset_of(corpus, HAS.queries, HAS.qrels)
    corpus[5] = 7
    assert (all_vectors(dataset.corpus)[5] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_numbers_of_other_types_are_taken(dtype: torch.dtype) -> None:
    corpus = (torch.from_numpy(HAS.corpus) * 100).to(dtype)
    assert np.array_equal(all_vectors(dataset_of(corpus).corpus), corpus.float().numpy())


def test_rows_are_read_in_any_cut() -> None:
    table = dataset_of(FORMS["arrow in chunks"][0](HAS.corpus)).corpus
    for start, stop, batch_rows in ((0, 300, 300), (69, 71, 1), (140, 300, 64), (300, 300, 8)):
        rows = [block.row for block in table.blocks(start, stop, batch_rows) for _ in range(len(block.ids))]
        found = [block.vectors_ND for block in table.blocks(start, stop, batch_rows)]
        assert len(rows) == stop - start
        assert not found or np.array_equal(np.concatenate(found), HAS.corpus[start:stop])


def test_splits_are_taken_by_name() -> None:
    splits = judged_splits({"test": HAS.test, "validation": HAS.qrels[:20], "train": NESTED}, "train")
    assert list(splits) == ["train", "dev", "test"]
    assert [table.num_rows for table in splits.values()] == [len(HAS.qrels), 20, len(HAS.test)]
    # queries that happen to be called as splits are
    assert list(judged_splits({"train": {"d1": 1}, "test": {"d2": 0.5}}, "dev")) == ["dev"]


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(columns(HAS.corpus)["id"])])
def test_categories_of_polars_are_ids_and_labels(kind: Any) -> None:
    ids = pl.Series(columns(HAS.corpus)["id"], dtype=pl.String)
    frame = pl.DataFrame({"id": ids.cast(kind), "embedding": HAS.corpus, "language": ids.cast(kind)})
    for given_frame in (frame, frame.to_arrow()):
        dataset = dataset_of(given_frame, given_frame, [(ids[3], ids[5])])
        assert dataset.splits["train"].doc_row_J.tolist() == [5]
        [(_, labels)] = dataset.queries.labels("language")
        assert labels.to_pylist() == ids.to_list()


def test_what_exclude_self_leaves_out_is_told() -> None:
    pairs = [(row, row) for row in range(60)]
    with pytest.raises(
        InputError, match="no judgement has a score above 0 but the 60 of queries and their own document, which exclu"
    ):
        dataset_of(HAS.corpus, HAS.queries, pairs, exclude_self=True)


def test_lists_of_documents_are_told_from_columns() -> None:
    [table] = judged_splits({"q1": ["d1", "d2"], "q2": (), "q3": {"d3": 0.5}}, "train").values()
    assert table.to_pylist() == [
        {"query_id": "q1", "doc_id": "d1", "score": 1.0},
        {"query_id": "q1", "doc_id": "d2", "score": 1.0},
        {"query_id": "q3", "doc_id": "d3", "score": 0.5},
    ]
    columns_of = {"query": ["q1"], "doc_id": ["d1"], "score": [2]}
    [table] = judged_splits(columns_of, "train", ColumnNames(query_id="query")).values()
    assert table.column_names == ["query", "doc_id", "score"]
    [table] = judged_splits({"score": {"d1": 1}}, "train").values()
    assert table["query_id"].to_pylist() == ["score"]
    # a query that is called nearly as a split
    [table] = judged_splits({"training": ["d1"]}, "dev").values()
    assert table["query_id"].to_pylist() == ["training"]


def test_columns_of_other_names_are_found() -> None:
    renamed = {"sku": columns(HAS.corpus)["id"], "vector": HAS.corpus}
    asked = {"sku": columns(HAS.queries)["id"], "vector": HAS.queries}
    qrels = pa.table({"query": TABLE["query_id"], "doc_id": TABLE["doc_id"], "score": TABLE["score"]})
    named = dataset_of(renamed, asked, qrels, columns={"id": "sku", "embedding": "vector", "query_id": "query"})
    assert len(named.splits["train"]) == len(HAS.qrels)


@pytest.mark.parametrize("base", [2**63, 2**64, 10**30])
def test_ids_of_any_size_are_their_text(base: int) -> None:
    ids = [base + row if row else 7 for row in range(300)]
    for pairs in ([(0, 7), (1, base + 1)], [("0", "7"), ("1", str(base + 1))]):
        dataset = dataset_of({"id": ids, "embedding": HAS.corpus}, HAS.queries, pairs)
        assert dataset.splits["train"].doc_row_J.tolist() == [0, 1]
    hashed = {"id": np.array(ids[1:], np.uint64), "embedding": HAS.corpus[1:]} if base == 2**63 else None
    assert hashed is None or len(dataset_of(hashed, HAS.queries, [(1, base + 1)]).splits["train"]) == 1


def _tuples() -> Iterator[tuple[int, ...]]:
    yield 1, 2, 3, 4


BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "one vector": ((HAS.corpus[0],), r"corpus: has shape \(32,\); give \(N, D\) numbers"),
    "nothing": ((HAS.corpus[:0],), r"corpus: has shape \(0, 32\)"),
    "text": ((["a", "b"],), "corpus: embeddings are of type <U1; give numbers, or a table with columns id and"),
    "a number": ((7,), r"corpus: has shape \(\); give"),
    "ragged": (([[1.0, 2.0], [1.0]],), "corpus: embeddings: the rows are not all of one length"),
    "NaN": (
        (np.where(np.arange(300)[:, None] == 5, np.nan, HAS.corpus),),
        "corpus: row 5, column embedding: holds NaN",
    ),
    "masks": ((np.ma.masked_where(HAS.corpus == HAS.corpus[7, 2], HAS.corpus),), "corpus: row 7, .*: holds NaN"),
    "zeros": ((np.where(np.arange(300)[:, None] == 9, 0, HAS.corpus),), "corpus: row 9, .*: is a zero vector"),
    "features": ((pd.DataFrame(HAS.corpus),), r"corpus: is a table of numbers without ids; give its values"),
    "no id": (
        (pd.DataFrame({"key": ["a"], "embedding": [[1.0]]}),),
        r"corpus: column id is missing; it holds key, embedding \(another name: columns=\{'id': NAME\}\)",
    ),
    "ids": (({"id": [1, 2], "embedding": HAS.corpus},), "corpus: has 2 ids and 300 vectors"),
    "an id twice": (({"id": [1] * 300, "embedding": HAS.corpus},), r"'1' was seen before in corpus: row 0; remove one"),
    "ids of two types": (({"id": [1, "a"], "embedding": HAS.corpus[:2]},), "corpus: column id cannot be read"),
    "a stream": (
        (datasets.Dataset.from_dict(columns(HAS.corpus)).to_iterable_dataset(),),
        "corpus: is a IterableDataset, which is read once only",
    ),
    "splits": (
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns(HAS.corpus))}),),
        r"corpus: is a DatasetDict; give one of its splits, \['train'\]",
    ),
    "no embedding": (
        ({"id": [1, 2], "embeddings": HAS.corpus[:2]},),
        r"corpus: column embedding is missing; it holds id, embeddings \(another name: columns=\{'embedding': NAME\}\)",
    ),
    "a short column": (
        ({**columns(HAS.corpus), "title": ["t"]},),
        "corpus: column title has 1 values for 300 rows; give one for each row",
    ),
    "a column of two types": (
        ({**columns(HAS.corpus), "title": ["t", 1]},),
        "corpus: column title cannot be read",
    ),
    "a column without a name": (({**columns(HAS.corpus), 5: [1] * 300},), "corpus: column 5 has a name that is no str"),
    "complex numbers": (
        (torch.from_numpy(HAS.corpus).to(torch.complex64),),
        r"corpus: is of type torch\.complex64; give real numbers",
    ),
    "a sparse tensor": (
        (torch.from_numpy(HAS.corpus).to_sparse(),),
        r"corpus: is a sparse tensor; give it whole: to_dense\(\)",
    ),
    "dims": ((HAS.corpus, HAS.queries[:, :8]), "queries have 8 dims, the corpus has 32"),
    "no queries": ((HAS.corpus, None, HAS.qrels), "queries: are missing, and qrels name them"),
    "a path and more": (("data", HAS.queries), "corpus: is a whole dataset, with its own queries and qrels"),
    "no judgements": ((HAS.corpus, HAS.queries, []), "qrels/train: the split is empty"),
    "judgements as text": ((HAS.corpus, HAS.queries, "train.tsv"), "qrels/train: is a str; give a table"),
    "pairs of four": ((HAS.corpus, HAS.queries, _tuples()), r"qrels/train: row 0 is \(1, 2, 3, 4\); give a table"),
    "no score": (
        (HAS.corpus, HAS.queries, pd.DataFrame(PAIRS)),
        "qrels/train: column score is missing; it holds query_id, doc_id",
    ),
    "columns without a score": (
        (HAS.corpus, HAS.queries, PAIRS),
        "qrels/train: column score is missing; it holds query_id, doc_id",
    ),
    "a score of text": (
        (HAS.corpus, HAS.queries, [(1, 2, "x")]),
        "qrels/train: column score is string; it must be a num",
    ),
    "a score of NaN": (
        (HAS.corpus, HAS.queries, [(1, 2, np.nan)]),
        "qrels/train: row 0, column score: nan is no score",
    ),
    "a score beyond 64 bits": (
        (HAS.corpus, HAS.queries, [(1, 2, 10**25)]),
        "qrels/train: column score holds a whole number of more than 64 bits; give .* scores as floats",
    ),
    "a frame of ids beyond 64 bits": (
        (pd.DataFrame({"id": [10**25], "embedding": [[1.0]]}),),
        "corpus: cannot be read as a table; it holds a whole number of more than 64 bits; give ids as text",
    ),
    "unknown ids": ((HAS.corpus, HAS.queries, [(1, 2), (3, 999)]), r"row 1, column doc_id: '999'"),
    "a split twice": ((HAS.corpus, HAS.queries, {"dev": HAS.qrels, "validation": HAS.test}), "both dev and validation"),
    "too few": (
        (HAS.corpus, HAS.queries, HAS.qrels[:3]),
        "qrels/train.*: 3 queries with a relevant document; training .*, or leave qrels out to train without",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused_by_name(case: str) -> None:
    form, told = BAD[case]
    with pytest.raises(InputError, match=told):
        fit(*form, dims=[8], epochs=0, progress=False)
