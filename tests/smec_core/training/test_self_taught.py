"""Trainings without judgements, which learn from what the full vectors find."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import smec_core
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset, hash_share
from smec_core.data.fingerprint import hash_ids, keys_of
from smec_core.data.scan import scan_table
from smec_core.training import scanned as scanned_module
from smec_core.training import self_taught as module
from smec_core.training.scanned import ScannedData, WantedRows
from smec_core.training.self_taught import NEIGHBOURS, is_self_taught, shape_unread
from tests.builders import all_vectors, write_dataset

CONFIG = TrainConfig(dims=(8, 4))


def unjudged(folder: Path, **sizes: Any) -> Path:
    """A dataset of which nobody has judged the train queries."""
    write_dataset(folder, **sizes)
    (folder / "qrels/train.parquet").unlink()
    return folder


def scan(data: Path, config: TrainConfig = CONFIG, all_queries: bool = True) -> ScannedData:
    dataset = Dataset.open(str(data), exclude_self=config.exclude_self)
    wanted = WantedRows.of(dataset, config, 8, all_queries, warn=print)
    return wanted.read(scan_table, print)


def found_by(data: Path) -> dict[str, list[str]]:
    """The nearest documents of each query by all dims, the nearest first."""
    dataset = Dataset.open(str(data))
    docs, queries = (all_vectors(table) for table in dataset.tables)
    docs, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (docs, queries))
    doc_ids, query_ids = (table.ids().to_pylist() for table in dataset.tables)
    nearest = np.argsort(-queries @ docs.T, axis=1, kind="stable")[:, :NEIGHBOURS]
    return {name: [doc_ids[row] for row in rows] for name, rows in zip(query_ids, nearest, strict=True)}


def learnt(found: ScannedData) -> dict[str, list[str]]:
    """The documents of each query that is learnt from or chosen by, the highest grade first."""
    train, dev = found.labels
    assert train is not None and dev is not None
    judged = train.merge(dev)
    pairs: dict[str, list[tuple[float, str]]] = {}
    for query, doc, score in zip(judged.query_row_Q[judged.query_J], judged.doc_row_J, judged.score_J, strict=True):
        pairs.setdefault(found.queries.id_K[query].as_py(), []).append((-score, found.docs.id_K[doc].as_py()))
    return {query: [doc for _, doc in sorted(docs)] for query, docs in pairs.items()}


@pytest.mark.parametrize("all_queries", [True, False], ids=["all are kept", "a sample is kept"])
def test_what_all_dims_find_takes_the_place_of_judgements(tmp_path: Path, all_queries: bool) -> None:
    data = unjudged(tmp_path / "data")
    found, truth = scan(data, all_queries=all_queries), found_by(data)
    tested = set(pq.read_table(data / "qrels/test.parquet")["query_id"].to_pylist())
    assert learnt(found) == {query: docs for query, docs in truth.items() if query not in tested}
    assert found.is_self_taught and found.identity["taught_by"] == "full vectors"
    dev = found.labels[1]
    assert dev is not None
    names = {found.queries.id_K[row].as_py() for row in dev.query_row_Q}
    assert names == {query for query in learnt(found) if hash_share(query) <= CONFIG.dev_fraction}


def test_of_many_queries_those_with_the_lowest_hashes_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (module, scanned_module):
        monkeypatch.setattr(place, "MOST_QUERIES", 20)
    data = unjudged(tmp_path / "data")
    tested = set(pq.read_table(data / "qrels/test.parquet")["query_id"].to_pylist())
    free = sorted(set(found_by(data)) - tested, key=lambda name: keys_of(hash_ids(pa.array([name])))[0])
    for all_queries in (True, False):
        assert set(learnt(scan(data, all_queries=all_queries))) == set(free[:20])


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path: Path) -> None:
    data = unjudged(tmp_path / "data")
    docs = pq.read_table(data / "corpus/part-0.parquet").slice(0, 120)
    pq.write_table(docs, data / "queries.parquet")
    (data / "qrels/test.parquet").unlink()
    assert all(docs[0] == query for query, docs in learnt(scan(data)).items())
    without = learnt(scan(data, CONFIG.model_copy(update={"exclude_self": True})))
    assert without and all(query not in docs and len(docs) >= NEIGHBOURS - 1 for query, docs in without.items())


def test_few_queries_or_the_papers_loss_teach_as_neighbours_do(tmp_path: Path) -> None:
    data = Dataset.open(str(unjudged(tmp_path / "data")))
    assert is_self_taught(data, CONFIG) and shape_unread(data, CONFIG).labelled
    assert not shape_unread(data, CONFIG).changes_cosines
    paper = CONFIG.model_copy(update={"unsupervised": "cosines"})
    assert not is_self_taught(data, paper) and not shape_unread(data, paper).labelled
    few = Dataset.open(str(unjudged(tmp_path / "few", queries=120)))
    assert few.unjudged_queries < 100 and not is_self_taught(few, CONFIG)
    assert not is_self_taught(Dataset.open(str(write_dataset(tmp_path / "judged"))), CONFIG)


def test_small_dims_find_more_of_it_than_those_of_pca() -> None:
    rng = np.random.default_rng(0)
    # queries differ in eight dims, documents more in the others
    docs = rng.standard_normal((600, 32)) * np.repeat([1.0, 2.0], [8, 24])
    queries = rng.standard_normal((400, 32)) * np.repeat([1.0, 0.1], [8, 24])
    data = [
        {"id": [f"{name}{row}" for row in range(len(x))], "embedding": x} for name, x in (("d", docs), ("q", queries))
    ]
    model = smec_core.fit(*data, dims=[8, 4], epochs=20, progress=False)
    plain = smec_core.fit(*data, dims=[8, 4], epochs=0, init="pca", progress=False)
    assert model.metrics["taught_by"] == "full vectors"
    assert all(stage["projection"] == "rotation" for stage in model.metrics["stages"])
    x_ND = F.normalize(torch.from_numpy(docs).float(), dim=1)
    z_ND = torch.from_numpy(model.encode(docs.astype(np.float32)))
    torch.testing.assert_close(z_ND @ z_ND.T, x_ND @ x_ND.T, atol=1e-5, rtol=0)
    learnt, start = (one.metrics["dev"]["agreement@10"] for one in (model, plain))
    assert learnt["32"] == pytest.approx(1, abs=1e-3)
    assert learnt["8"] > start["8"] + 0.2 and learnt["4"] > start["4"] + 0.05
