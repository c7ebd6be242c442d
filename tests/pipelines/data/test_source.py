"""What a training takes of data that it cannot hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.data.source import scan_data
from pipelines.runtime.settings import ClusterSettings
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements
from smec_core.errors import InputError
from smec_core.training.scanned import ScannedData
from tests.builders import write_dataset

GIB = 2.0**30
CONFIG = TrainConfig(dims=(4,), dev_corpus=100)
Pairs = set[tuple[str, str, float]]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset.open(str(write_dataset(tmp_path / "data", docs=3000)))


def budget(rows: float, dim: int = 32) -> ClusterSettings:
    """With room for so many documents, beside those of dev and the queries."""
    return ClusterSettings(memory_budget=4 * dim * (2.5 * rows + 100 + 2.5 * 200) / GIB)


def by_id(judged: Judgements | None, queries: list[str], docs: list[str]) -> Pairs:
    assert judged is not None
    rows = zip(judged.query_row_Q[judged.query_J], judged.doc_row_J, judged.score_J, strict=True)
    return {(queries[query], docs[doc], float(score)) for query, doc, score in rows}


def kept(found: ScannedData) -> list[Pairs]:
    return [by_id(judged, found.queries.id_K.to_pylist(), found.docs.id_K.to_pylist()) for judged in found.labels]


def everything(dataset: Dataset, config: TrainConfig = CONFIG) -> list[Pairs]:
    queries, docs = dataset.queries.ids().to_pylist(), dataset.corpus.ids().to_pylist()
    return [by_id(judged, queries, docs) for judged in dataset.training_split(config)]


@pytest.mark.parametrize("rows", [100, 2999, 3000, 10**6])
def test_judgements_go_by_the_rows_that_are_kept(dataset: Dataset, rows: int) -> None:
    config = CONFIG.model_copy(update={"sample_rows": rows})
    found = scan_data(dataset, config, ClusterSettings())
    assert (found.drawn, found.is_whole) == (min(rows, 3000), rows >= 3000)
    assert found.used(config)["sample_rows"] == found.drawn
    assert kept(found) == everything(dataset)
    assert bool(found.identity) != found.is_whole
    assert Dataset.open(dataset.uri).fingerprint == dataset.fingerprint


def test_queries_that_are_documents_keep_their_own(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", docs=400)
    (folder / "queries.parquet").unlink()
    (folder / "queries").symlink_to(folder / "corpus")
    for path in (folder / "qrels").glob("*.parquet"):
        table = pq.read_table(path)
        renamed = [f"d{(int(name[1:]) + 1) % 400}" for name in table["query_id"].to_pylist()]
        pq.write_table(table.set_column(0, "query_id", [renamed]), path)
    dataset = Dataset.open(str(folder), exclude_self=True)
    config = CONFIG.model_copy(update={"exclude_self": True, "sample_rows": 100})
    found = scan_data(dataset, config, ClusterSettings())
    assert kept(found) == everything(dataset, config)
    for judged in found.labels:
        assert judged is not None and judged.own_doc_row_Q is not None
        docs, queries = found.docs.id_K.to_pylist(), found.queries.id_K.to_pylist()
        for query, own in zip(judged.query_row_Q, judged.own_doc_row_Q, strict=True):
            assert own < 0 or docs[own] == queries[query]
            assert (own >= 0) == (queries[query] in docs)


def test_what_fits_is_taken_whole(dataset: Dataset) -> None:
    found = scan_data(dataset, CONFIG, budget(3000.5))
    assert found.is_whole and not found.identity
    assert kept(found) == everything(dataset)


def test_memory_decides_how_many_are_drawn(dataset: Dataset) -> None:
    found = scan_data(dataset, CONFIG, budget(2000.5))
    assert len(found.docs.id_K) <= 2000 and 1800 < found.drawn < 2000
    assert kept(found) == everything(dataset)
    with pytest.raises(InputError, match=r"memory_budget: .* have room for 10 documents .*; give more"):
        scan_data(dataset, CONFIG, budget(10.5))
    with pytest.raises(InputError, match=r"sample_rows: 2,500 documents, and .* set one lower, or the other higher"):
        scan_data(dataset, CONFIG.model_copy(update={"sample_rows": 2500}), budget(2000.5))


def test_of_too_many_judgements_those_of_some_queries_are_kept(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    train = dataset.splits["train"]
    # every train query has judged documents of its own
    docs = np.arange(12 * len(train))
    many = Judgements.from_pairs(train.query_row_Q.repeat(12), docs, np.ones(len(docs), np.float32))
    doc_ids, query_ids = (TableIds.read(table, table.ids().combine_chunks()) for table in dataset.tables)
    dense = replace(dataset, splits=dataset.splits | {"train": many}, ids=(doc_ids, query_ids))
    found = scan_data(dense, CONFIG, budget(2000.5))
    told = capsys.readouterr().err
    assert "memory_budget has room for the documents of " in told
    (train_pairs, _), (all_pairs, _) = kept(found), everything(dense)
    assert train_pairs < all_pairs
    assert {query for query, _, _ in train_pairs}.isdisjoint({query for query, _, _ in all_pairs - train_pairs})
    assert found.identity["sample"][1] < len(many)
    with pytest.raises(InputError, match=r"too few to learn from; give more"):
        scan_data(dense, CONFIG, budget(600.5))
