"""`smec_core.fit`: settings, what it leaves alone, and models that it builds on."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smec_core
from smec_core.data.forms import judged_splits
from smec_core.errors import InputError
from smec_core.model.card import model_card
from smec_core.training.plan import plan_training
from smec_core.training.schedule import TrainingShape
from smec_core.training.tracker import StepBar
from tests.smec_core.given import given

HAS = given()
DATA = (HAS.corpus, HAS.queries, {"train": HAS.qrels, "test": HAS.test})


def fitted(*data: Any, **changes: Any) -> smec_core.Model:
    return smec_core.fit(*(data or DATA), **{"dims": [16, 8], "epochs": 2, "progress": False, **changes})


@pytest.fixture(scope="module")
def model() -> smec_core.Model:
    return fitted()


def test_a_model_is_whole_and_says_how_it_was_made(model: smec_core.Model, tmp_path: Path) -> None:
    assert model.dims == (32, 16, 8)
    assert model.config["train"]["epochs"] == 2 and model.config["used"]["sample_rows"] == 300
    assert model.config["data"]["uri"] == "memory://data"
    model.save(tmp_path)
    back = smec_core.load(tmp_path)
    assert back.fingerprint == model.fingerprint
    assert back.evaluation is not None and back.evaluation.split == "test"
    assert "| 8 |" in (tmp_path / "README.md").read_text()


def test_it_is_found_again_what_it_has_seen(model: smec_core.Model) -> None:
    assert model.seen is not None
    assert model.seen.has([str(doc) for _, doc in HAS.qrels]).all()


def test_the_callers_torch_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_num_threads(), torch.get_rng_state(), np.random.rand(3)
    np.random.seed(3)
    with torch.inference_mode():
        first = fitted().fingerprint
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1]) and np.array_equal(np.random.rand(3), before[2])
    assert fitted().fingerprint == first


def test_data_are_left_as_they_were() -> None:
    corpus, queries = HAS.corpus.copy(), HAS.queries.copy()
    fitted(corpus, queries, HAS.qrels)
    assert np.array_equal(corpus, HAS.corpus) and np.array_equal(queries, HAS.queries)


def test_without_judgements_the_papers_loss_takes_no_queries() -> None:
    alone, beside = (fitted(*data, unsupervised="cosines") for data in ((HAS.corpus,), (HAS.corpus, HAS.queries)))
    assert alone.fingerprint == beside.fingerprint
    assert alone.evaluation is not None and alone.evaluation.split is None
    assert alone.config["data"]["queries"] == 0


def test_presets_and_models_to_build_on(model: smec_core.Model, tmp_path: Path) -> None:
    fast = fitted(preset="fast", epochs=0)
    assert fast.config["train"]["schedule"] == "parallel"
    model.save(tmp_path)
    extended, from_folder = (fitted(dims=[4], base=base) for base in (model, tmp_path))
    assert extended.fingerprint == from_folder.fingerprint and extended.dims == (32, 16, 8, 4)
    z_N8, before_N8 = (one.encode(HAS.corpus, 8) for one in (extended, model))
    assert np.allclose(z_N8 @ z_N8.T, before_N8 @ before_N8.T, atol=1e-5)
    warm = fitted(warm_start=model)
    assert warm.config["warm_start"]["fingerprint"] == model.fingerprint


def test_queries_that_are_documents_do_not_find_themselves() -> None:
    near = [(row, (row + 1) % 300) for row in range(300)]
    found = fitted(HAS.corpus, HAS.corpus, {"train": near[:200], "test": near[200:]}, exclude_self=True)
    assert found.evaluation is not None and found.evaluation.to_pandas().loc[32, "ndcg@10"] < 1
    again = found.evaluate(HAS.corpus, HAS.corpus, near[200:])
    assert again.to_dict()["ndcg@10"] == found.evaluation.to_dict()["ndcg@10"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epohcs": 3}, r"fit: unknown key 'epohcs'; did you mean 'epochs'\?"),
        ({"epochs": -1}, r"epochs: Input should be greater than or equal to 0 \(given -1 by fit\)"),
        ({"queue_size": 5, "top_k": 10}, r"queue_size \(5\) must be at least top_k \(10\)"),
        ({"dims": [64]}, "dims: 64 is more than the 32 dims of the data"),
        ({"dims": []}, "dims: Tuple should have at least 1 item"),
        ({"dims": 8.5}, "dims: Input should be a valid tuple"),
        ({"preset": "slow"}, "preset: slow is unknown; known: paper, fast"),
        ({"threads": 0}, "threads: is 0; give a number of at least 1"),
        ({"device": "nothing"}, r"device: nothing cannot be used \(.*; give cpu or cuda"),
        ({"memory_budget": 0}, "memory_budget: is 0; give GiB above 0"),
        ({"memory_budget": "8"}, "memory_budget: is '8'; give GiB above 0, as a number"),
        ({"memory_budget": None}, "memory_budget: is None; give GiB above 0, as a number"),
        ({"columns": "id"}, "columns: is 'id'; say what each is called, as {'id': 'sku'}"),
        ({"columns": ["id"]}, r"columns: is \['id'\]; say what each is called"),
        ({"columns": {1: "id"}}, "columns: is {1: 'id'}; say what each is called"),
        ({"memory_budget": 1e-9}, "memory_budget: 1e-09 GiB have room for 0 documents"),
        ({"columns": {"idd": "sku"}}, r"columns: unknown key 'idd'; did you mean 'id'\?"),
        ({"base": "nowhere"}, r"nowhere: not a model folder"),
        ({"compatible": 1}, "compatible: needs a model to be compatible with"),
    ],
)
def test_bad_settings_are_refused_as_the_command_line_does(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        fitted(**settings)


@pytest.mark.parametrize(
    ("qrels", "told"),
    [
        ({"trian": HAS.qrels}, "qrels: 'trian' is no split; did you mean 'train'?"),
        ({"train": HAS.qrels, "tests": HAS.test}, "qrels: 'tests' is no split; did you mean 'test'?"),
        ({"train": HAS.qrels, "extra": HAS.test}, r"qrels: 'extra' is no split; give train, dev \(or validation\) and"),
        (
            {"Train": {"0": {"0"}}, "Test": {"0": {"1": 1}}},
            "qrels: '(Train|Test)' is no split; did you mean '(train|test)'",
        ),
        ({"trian": {"0": {"0": 1}}}, "qrels: 'trian' is no split; did you mean 'train'?"),
    ],
)
def test_a_split_of_another_name_is_told(qrels: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        smec_core.fit(HAS.corpus, HAS.queries, qrels, dims=8)


@pytest.mark.parametrize(
    "given", [{"tests": {"0": 1}}, {"tests": {"0"}}, {"query_id": ["tests"], "doc_id": ["0"], "score": [1]}]
)
def test_a_query_may_be_called_nearly_as_a_split(given: Any) -> None:
    assert judged_splits(given, "train")["train"].to_pylist() == [{"query_id": "tests", "doc_id": "0", "score": 1}]


def test_memory_without_a_limit_is_enough() -> None:
    assert fitted(memory_budget=float("inf")).fingerprint == fitted().fingerprint


@pytest.mark.parametrize("dims", [8, np.int64(8), "8", (8,), np.array([8]), range(8, 9)])
def test_dims_are_given_as_one_likes(dims: Any) -> None:
    assert fitted(dims=dims, epochs=0).dims == (32, 8)


def test_progress_goes_to_the_logger_and_no_bar_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="smec_core"):
        fitted(progress=True)
    assert any("first pass, stage 1 of" in line for line in caplog.messages)
    assert capfd.readouterr() == ("", "")


def test_a_bar_goes_from_nothing_to_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    config = smec_core.TrainConfig(dims=(16, 8), epochs=3)
    plan = plan_training(TrainingShape(32, True, 5, 6), config)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    places, step = [], 0
    with StepBar([(stage.pass_name, stage.dim, stage.rhythm.most_steps) for stage in plan]) as bar:
        for stage in plan:
            # each ends early
            for _ in range(stage.rhythm.epoch_steps):
                step += 1
                bar.log({"pass": stage.pass_name, "stage": stage.dim, "step": step, "loss": 0.5})
                places.append(bar._bar.n)
    assert places == sorted(places) and places[0] >= 1
    assert bar._bar.n == bar._bar.total == sum(stage.rhythm.most_steps for stage in plan)


def test_an_evaluation_prints_as_a_table_and_is_a_frame(model: smec_core.Model) -> None:
    found = model.evaluate(HAS.corpus, HAS.queries, HAS.test)
    report, frame = found.to_dict(), found.to_pandas()
    assert json.loads(json.dumps(report)) == report
    assert (found.split, found.queries, found.dims) == ("test", len(HAS.test), (32, 16, 8))
    assert frame.index.tolist() == [32, 16, 8]
    assert {"ndcg@10", "recall@100", "low", "high", "truncation", "pca", "full"} <= {*frame.columns}
    assert frame.loc[8, "pca"] == report["baselines"]["pca"]["8"]
    assert f"ndcg@10 on test, {len(HAS.test)} queries" in str(found)
    assert f"{frame.loc[8, 'ndcg@10']:.4f}" in str(found) and f"{frame.loc[8, 'ndcg@10']:.4f}" in repr(found)
    assert "<table" in found._repr_html_()
    # that of the training, whose baselines are of the same moments
    assert model.evaluation is not None
    assert report["ndcg@10"] == model.evaluation.to_dict()["ndcg@10"]


def test_figures_on_judgements_that_were_learnt_from_are_told_as_such() -> None:
    half = len(HAS.qrels) // 2
    splits = {"train": HAS.qrels[:half], "dev": HAS.qrels[half:]}
    model = smec_core.fit(HAS.corpus, HAS.queries, splits, dims=[8], epochs=1, progress=False)
    evaluation = model.metrics["evaluation"]
    assert (evaluation["split"], evaluation["learnt"]) == ("dev", True)
    assert "the model has learnt from these judgements, so new queries do worse" in " ".join(
        str(model.evaluation).split()
    )
    assert "## Quality on dev, which it has learnt from" in model_card(model.config, model.metrics)
    apart = smec_core.fit(HAS.corpus, HAS.queries, splits, dims=[8], epochs=1, refit=False, progress=False)
    assert "learnt" not in apart.metrics["evaluation"]
    assert "learnt" in apart.evaluate(HAS.corpus, HAS.queries, splits, split="train").to_dict()
    assert "learnt" not in model.evaluate(HAS.corpus, HAS.queries, HAS.test).to_dict()


def test_queries_that_equal_their_documents_are_learnt_from() -> None:
    pairs = [(row, row) for row in range(100)]
    for preset in (None, "fast"):
        model = smec_core.fit(HAS.corpus, HAS.corpus[:100], pairs, dims=[8], epochs=1, preset=preset, progress=False)
        assert np.isfinite(model.encode(HAS.corpus)).all()


def test_two_documents_are_too_few() -> None:
    with pytest.raises(InputError, match=r"the corpus has 2 document\(s\); a training needs at least 3"):
        smec_core.fit(HAS.corpus[:2], dims=[8], progress=False)
    assert smec_core.fit(HAS.corpus[:3], dims=[8], progress=False).dims == (32, 8)


def test_an_evaluation_takes_splits_and_no_judgements(model: smec_core.Model) -> None:
    splits = {"train": HAS.qrels, "test": HAS.test}
    assert model.evaluate(HAS.corpus, HAS.queries, splits, split="train", baselines=False).queries == len(HAS.qrels)
    alone = model.evaluate(HAS.corpus, baselines=False)
    assert alone.split is None and alone.measures == ("neighbour_recall@10",)
    with pytest.raises(InputError, match="there is no qrels/dev; splits present: train, test"):
        model.evaluate(HAS.corpus, HAS.queries, splits, split="dev")
    with pytest.raises(InputError, match="8 dims, but the model takes 32"):
        model.evaluate(HAS.corpus[:, :8])
    with pytest.raises(InputError, match="split: the training of this model has held out no queries"):
        model.evaluate(HAS.corpus, HAS.queries, HAS.test, split="held_out")


def test_the_callers_default_of_new_tensors_changes_nothing() -> None:
    x_ND = np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32)
    judged = (x_ND, x_ND[:30], [(row, row) for row in range(30)])
    fitted = smec_core.fit(*judged, dims=[4], epochs=1, progress=False)
    expected = fitted.evaluate(*judged).to_dict()
    torch.set_default_dtype(torch.float64)
    try:
        assert smec_core.fit(*judged, dims=[4], epochs=1, progress=False).fingerprint == fitted.fingerprint
        assert fitted.evaluate(*judged, by=None).to_dict() == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
