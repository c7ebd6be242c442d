"""Evaluation of a model on a dataset on disk, beside its baselines."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smec_core.data.dataset import Dataset
from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import write_embeddings
from smec_core.data.seen import SeenDocuments
from smec_core.distributed.group import Group, rows_of_rank
from smec_core.errors import InputError
from smec_core.evaluation.corpus_search import Sides, Work, in_one_part, query_scores, read_rows, result_of
from smec_core.evaluation.evaluate import corpus_baselines, default_split, evaluate
from smec_core.evaluation.metrics import PrefixSearch, gains_of, ndcg
from smec_core.evaluation.report import Evaluation
from smec_core.evaluation.significance import query_interval
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from smec_core.model.pca import principal_rotation
from tests.smec_core.data.test_dataset import write_qrels
from tests.smec_core.generated import Generated, generate, ndcg_of, resident

DIM, DOCS, QUERIES = 12, 150, 120


def in_three_parts(work: Work, rows: int) -> list[Any]:
    return [result_of(work(*rows_of_rank(rows, part, 3))) for part in range(3)]


def identity(dims: list[int]) -> Model:
    return Model([], dims[0], {"dims": dims}, {})


@pytest.fixture(scope="module")
def data() -> Generated:
    return generate(torch.arange(4), DIM, DOCS, QUERIES, noise_scale=1.0, mixed=True)


@pytest.fixture(scope="module")
def stored(data: Generated, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The generated data on disk, unnormalised, the corpus in two files; the queries have ids of documents."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "corpus").mkdir()
    docs_ND = data.docs_ND.numpy() * np.linspace(0.5, 5, DOCS, dtype=np.float32)[:, None]
    ids = [f"d{row}" for row in range(DOCS)]
    write_embeddings(str(folder / "corpus" / "0.parquet"), ids[:100], docs_ND[:100])
    write_embeddings(str(folder / "corpus" / "1.parquet"), ids[100:], docs_ND[100:])
    write_embeddings(str(folder / "queries.parquet"), ids[:QUERIES], data.queries_QD.numpy())
    for name, judged in (("train", data.train), ("test", data.test)):
        rows = zip(judged.query_row_Q, judged.doc_row_J, strict=True)
        write_qrels(folder, name, [(f"d{query}", f"d{doc}", 1) for query, doc in rows])
    dataset = Dataset.open(str(folder))
    # some tests make judgements of rows that no file names
    docs, queries = (TableIds.read(table, table.ids().combine_chunks()) for table in dataset.tables)
    return replace(dataset, ids=(docs, queries))


def test_every_prefix_and_baseline_is_scored(data: Generated, stored: Dataset) -> None:
    # a model that keeps the last dims first
    flip = torch.eye(DIM).flip(0)
    stage = FrozenStage(DIM, "linear", {"weight": flip, "logits": torch.zeros(DIM)})
    report = evaluate(
        stored, Model([stage], DIM, {"dims": [DIM, 6, 3]}, {}), "test", baselines=corpus_baselines(stored)
    )

    assert (report["split"], report["queries"]) == ("test", len(data.test))
    rotation_DD = principal_rotation(resident(data.docs_ND), Group())
    for found, matrix_DD in (
        (report["ndcg@10"], flip),
        (report["baselines"]["truncation"], torch.eye(DIM)),
        (report["baselines"]["pca"], rotation_DD),
    ):
        expected = ndcg_of(data.docs_ND @ matrix_DD.T, data.queries_QD @ matrix_DD.T, data.test, [DIM, 6, 3])
        assert {int(dim): value for dim, value in found.items()} == pytest.approx(expected, abs=1e-6)
    assert report["baselines"]["full"] == report["baselines"]["truncation"][str(DIM)]
    assert {"recall@10", "recall@100", "mrr@10"} <= set(report)


def test_scores_come_with_their_intervals_over_the_queries(stored: Dataset) -> None:
    report = evaluate(stored, identity([DIM, 4]), "test", baselines=corpus_baselines(stored))
    sides = {name: Sides.same(lambda x_ND: x_ND) for name in ("model",)}
    value_Q = query_scores(stored, sides, [DIM, 4], stored.splits["test"])["model"]
    found = report["intervals"]
    assert set(found) == {"ndcg@10", "kept", "truncation", "pca"}
    half = query_interval(value_Q[4])
    mean = report["ndcg@10"]["4"]
    assert found["ndcg@10"]["4"] == pytest.approx([mean - half, mean + half])
    low, high = found["kept"]["4"]
    assert (low + high) / 2 == pytest.approx(mean / report["baselines"]["full"])
    # this model is truncation
    assert found["truncation"] == {str(DIM): [0, 0], "4": [0, 0]}
    assert found["kept"][str(DIM)] == [1, 1]
    assert sum(found["pca"]["4"]) / 2 == pytest.approx(mean - report["baselines"]["pca"]["4"])
    assert set(evaluate(stored, identity([DIM, 4]), "test")["intervals"]) == {"ndcg@10"}


def test_the_query_itself_can_be_left_out_of_the_results(data: Generated, tmp_path: Path) -> None:
    # every query is a document, and the nearest other one is relevant to it
    ids, docs_ND = [f"d{row}" for row in range(DOCS)], data.docs_ND
    sim_NN = (docs_ND @ docs_ND.T).fill_diagonal_(-1)
    write_embeddings(str(tmp_path / "corpus.parquet"), ids, docs_ND.numpy())
    write_embeddings(str(tmp_path / "queries.parquet"), ids, docs_ND.numpy())
    write_qrels(tmp_path, "test", [(f"d{row}", f"d{near}", 1) for row, near in enumerate(sim_NN.argmax(1).tolist())])
    model = identity([DIM, 4])
    # it comes second, after the query itself
    found = evaluate(Dataset.open(str(tmp_path)), model, "test")["ndcg@10"][str(DIM)]
    assert found == pytest.approx(1 / np.log2(3))
    assert evaluate(Dataset.open(str(tmp_path), exclude_self=True), model, "test")["ndcg@10"][str(DIM)] == 1


def test_without_judgements_kept_neighbours_are_scored(stored: Dataset) -> None:
    report = evaluate(stored, identity([DIM, 4]), None, baselines=corpus_baselines(stored))
    kept = report["neighbour_recall@10"]
    assert kept[str(DIM)] == 1
    assert 0.05 < kept["4"] < 1
    assert report["baselines"]["truncation"]["4"] == kept["4"]
    assert report["baselines"]["pca"]["4"] > kept["4"] - 0.1
    assert "ndcg@10" not in report


def test_where_there_are_no_judgements_the_tables_say_what_is_scored_instead(stored: Dataset) -> None:
    # PCA keeps more neighbours than these 4 of all dims, of which nothing follows for queries
    told = Evaluation(evaluate(stored, identity([DIM, 4]), None, corpus_baselines(stored)))
    assert told.advice is None
    text = " ".join(str(told).split())
    assert "no qrels/test: this instead is the share of a document's ten nearest documents that stay so" in text
    assert "PCA" not in text
    assert "no qrels" not in str(Evaluation(evaluate(stored, identity([DIM, 4]), "test", corpus_baselines(stored))))


@pytest.mark.parametrize("split", ["test", None])
def test_parts_of_the_corpus_are_merged_exactly(stored: Dataset, split: str | None) -> None:
    model = identity([DIM, 4])
    whole = evaluate(stored, model, split)
    assert evaluate(stored, model, split, parts=in_three_parts) == whole
    reports = [
        evaluate(stored, model, split, corpus_baselines(stored, parts), parts)
        for parts in (in_one_part, in_three_parts)
    ]
    pca = [report["baselines"]["pca"] for report in reports]
    assert pca[0] == pytest.approx(pca[1], abs=1e-6)


def test_what_does_not_fit_is_refused(stored: Dataset) -> None:
    with pytest.raises(InputError, match=r"12 dims, but the model takes 5"):
        evaluate(stored, identity([5, 2]), "test")
    with pytest.raises(InputError, match=r"there is no qrels/dev; splits present: train, test"):
        evaluate(stored, identity([DIM]), "dev")
    assert default_split(stored) == "test"


def test_rows_are_read_in_the_order_asked_for(data: Generated, stored: Dataset) -> None:
    rows = np.array([149, 0, 100, 99, 7])
    torch.testing.assert_close(read_rows(stored.corpus, rows), data.docs_ND[torch.from_numpy(rows)])


def test_pca_of_scifact_scores_as_measured(data_dir: Callable[[str], Path]) -> None:
    dataset = Dataset.open(str(data_dir("scifact")))
    report = evaluate(dataset, identity([768, 96]), "test", baselines=corpus_baselines(dataset))
    assert report["baselines"]["pca"]["96"] == pytest.approx(0.5825, abs=0.0005)


def test_queries_of_one_model_search_the_documents_of_another(data: Generated, stored: Dataset) -> None:
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1)))[0]
    judged = stored.splits["test"]
    sides = {
        "plain": Sides.same(lambda x_ND: x_ND),
        "turned": Sides.same(lambda x_ND: x_ND @ turn.T),
        "mixed": Sides(lambda x_ND: x_ND @ turn.T, lambda x_ND: x_ND),
    }
    found = query_scores(stored, sides, [DIM, 4], judged)

    assert all(value_Q.shape == (len(judged),) for by_dim in found.values() for value_Q in by_dim.values())
    np.testing.assert_allclose(found["turned"][DIM], found["plain"][DIM])
    assert found["mixed"][DIM].mean() < found["plain"][DIM].mean() - 0.2
    means = evaluate(stored, identity([DIM, 4]), "test")["ndcg@10"]
    assert means == pytest.approx({str(dim): value_Q.mean() for dim, value_Q in found["plain"].items()})


def test_seen_and_unseen_queries_are_told_apart(stored: Dataset) -> None:
    test = stored.splits["test"].with_positives()
    # every other test query searches for a document that was learnt from
    learnt = test.select(np.arange(len(test)) % 2 == 0)
    model = identity([DIM, 4])
    assert not {"seen", "unseen"} & evaluate(stored, model, "test").keys()
    model.seen = SeenDocuments.of(learnt, *stored.ids)
    report = evaluate(stored, model, "test", baselines=corpus_baselines(stored))
    seen_Q = model.seen.seen_queries(test, stored.ids[0])
    value_Q = query_scores(stored, {"model": Sides.same(model.encode)}, [DIM, 4], test)["model"][4]
    for name, keep_Q in (("seen", seen_Q), ("unseen", ~seen_Q)):
        part = report[name]
        assert part["queries"] == keep_Q.sum() > 0
        assert part["ndcg@10"]["4"] == pytest.approx(value_Q[keep_Q].mean())
        low, high = part["intervals"]["ndcg@10"]["4"]
        assert (high - low) / 2 == pytest.approx(query_interval(value_Q[keep_Q]))
        assert set(part["baselines"]) == {"truncation", "pca", "full"}
        assert set(part["intervals"]) == {"ndcg@10", "kept", "truncation", "pca"}


def test_where_nearly_all_queries_are_seen_unseen_documents_are_searched_alone(stored: Dataset) -> None:
    test = stored.splits["test"].with_positives()
    # each test query gets two relevant documents, the second of which is in no training
    rows, others = test.query_row_Q, (test.doc_row_J + 1) % DOCS
    both = Judgements.from_pairs(
        np.concatenate([rows, rows]), np.concatenate([test.doc_row_J, others]), np.ones(2 * len(rows), np.float32)
    )
    dense = replace(stored, splits={**stored.splits, "test": both})
    model = identity([DIM, 4])
    model.seen = SeenDocuments.of(test, *stored.ids)
    report = evaluate(dense, model, "test")
    assert report["unseen"] == {"queries": 0}
    is_new = ~model.seen.has(stored.corpus.ids().to_pylist())
    left = [(query, doc) for query, doc in zip(rows, others, strict=True) if is_new[doc]]
    assert report["unseen_documents"]["queries"] == len(left) > 0
    # a search in which the seen documents are not there at all
    x_ND = torch.from_numpy(np.concatenate([block.vectors_ND for block in stored.corpus.blocks()]))[is_new]
    place = np.cumsum(is_new) - 1
    query_L, doc_L = np.array(left).T
    judged = Judgements.from_pairs(query_L, place[doc_L], np.ones(len(left), np.float32))
    search = PrefixSearch(read_rows(stored.queries, judged.query_row_Q)[:, :4], [4], 10)
    search.add(torch.arange(len(x_ND)), x_ND[:, :4])
    expected = ndcg(gains_of(search.results()[4], judged), judged).mean()
    assert report["unseen_documents"]["ndcg@10"]["4"] == pytest.approx(float(expected))
    assert evaluate(dense, model, "test", parts=in_three_parts) == report
