"""The transformer among those of scikit-learn."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.base import BaseEstimator, clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from smec_core.sklearn import SmecEmbedding
from smec_core.training.fit import fit
from tests.smec_core.given import columns, given

HAS = given()


def expected_failures(estimator: BaseEstimator) -> dict[str, str]:
    return {"check_estimators_dtypes": "its rows of small whole numbers hold one of zeros, which has no direction"}


@parametrize_with_checks(
    [SmecEmbedding(preset="fast"), SmecEmbedding(n_components=1, settings={"epochs": 1})],
    expected_failed_checks=expected_failures,
)
def test_it_is_an_estimator(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_other_types_without_zeros_are_taken(dtype: type) -> None:
    # what the check above is for, but for its row of zeros
    rows = np.random.default_rng(0).integers(1, 20, (30, 8))
    for x_ND in (rows.astype(dtype), rows, rows.tolist()):
        assert SmecEmbedding(preset="fast").fit(x_ND).transform(x_ND).shape == (30, 2)


def test_it_is_the_same_as_fit() -> None:
    estimator = SmecEmbedding(n_components=8, dims=(16,), settings={"epochs": 2}, random_state=3)
    estimator.fit(HAS.corpus, queries=HAS.queries, qrels=HAS.qrels)
    model = fit(HAS.corpus, HAS.queries, HAS.qrels, dims=[16, 8], epochs=2, seed=3, progress=False)
    assert estimator.model_.fingerprint == model.fingerprint
    assert np.array_equal(estimator.transform(HAS.queries), model.encode(HAS.queries, 8))
    assert estimator.model_.evaluation is None


def test_it_works_in_a_pipeline() -> None:
    labels = np.arange(300) % 3
    pipeline = make_pipeline(Normalizer(), SmecEmbedding(8, preset="fast"), KNeighborsClassifier())
    assert pipeline.fit(HAS.corpus, labels).predict(HAS.corpus).shape == (300,)
    copy = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(copy.predict(HAS.corpus), pipeline.predict(HAS.corpus))
    # classes are no judgements
    with_y = clone(pipeline[1]).fit(HAS.corpus, labels)
    assert with_y.model_.fingerprint == clone(pipeline[1]).fit(HAS.corpus).model_.fingerprint


def test_judgements_are_routed_and_queries_go_through_the_steps_before() -> None:
    step = SmecEmbedding(8, settings={"epochs": 1})
    scaled = StandardScaler().fit(HAS.corpus)
    alone = clone(step).fit(scaled.transform(HAS.corpus), queries=scaled.transform(HAS.queries), qrels=HAS.qrels)
    with sklearn.config_context(enable_metadata_routing=True):
        step.set_fit_request(queries=True, qrels=True)
        pipeline = Pipeline([("scale", StandardScaler()), ("smec", step)], transform_input=["queries"])
        pipeline.fit(HAS.corpus, queries=HAS.queries, qrels=HAS.qrels)
    assert pipeline["smec"].model_.fingerprint == alone.model_.fingerprint


def test_frames_keep_their_names() -> None:
    frame = pd.DataFrame(HAS.corpus, columns=[f"dim{number}" for number in range(32)])
    estimator = SmecEmbedding(4, preset="fast").set_output(transform="pandas").fit(frame)
    assert estimator.transform(frame).columns.tolist() == [f"smecembedding{number}" for number in range(4)]
    assert estimator.feature_names_in_[0] == "dim0"


def test_queries_may_be_a_frame_as_the_corpus() -> None:
    step = SmecEmbedding(8, settings={"epochs": 1})
    alone = clone(step).fit(HAS.corpus, queries=HAS.queries, qrels=HAS.qrels)
    corpus, queries = pd.DataFrame(HAS.corpus), pd.DataFrame(HAS.queries)
    for framed in (queries, pl.DataFrame(HAS.queries), pd.DataFrame(columns(HAS.queries))):
        found = clone(step).fit(corpus, queries=framed, qrels=HAS.qrels)
        assert found.model_.fingerprint == alone.model_.fingerprint
    queries.iloc[3, 4] = np.nan
    with pytest.raises(ValueError, match="Input queries contains NaN"):
        clone(step).fit(corpus, queries=queries, qrels=HAS.qrels)


def test_random_states_are_seeds() -> None:
    def seed_of(random_state: Any) -> int:
        return SmecEmbedding(preset="fast", random_state=random_state).fit(HAS.corpus).model_.config["train"]["seed"]

    assert seed_of(np.int64(5)) == 5
    assert seed_of(np.random.RandomState(1)) == seed_of(np.random.RandomState(1))
    assert seed_of(None) != seed_of(None)


def test_queries_without_judgements_teach_where_they_are_enough() -> None:
    queries = np.random.default_rng(0).standard_normal((150, 32))
    step = SmecEmbedding(8, settings={"epochs": 1})
    alone, few, many = (clone(step).fit(HAS.corpus, queries=rows) for rows in (None, queries[:99], queries))
    assert few.model_.fingerprint == alone.model_.fingerprint != many.model_.fingerprint
    assert "where 100 `queries` or more come without `qrels`" in str(SmecEmbedding.__doc__)


@pytest.mark.parametrize("n_components", [None, 8, np.int64(8)])
def test_the_dims_of_the_output_may_be_named_again(n_components: int | None) -> None:
    named = SmecEmbedding(n_components, dims=(8, 4), preset="fast").fit(HAS.corpus)
    assert named.model_.dims == (32, 8, 4)


@pytest.mark.parametrize(
    ("dims", "trained"),
    [("12", (32, 12, 8)), ("12,4", (32, 12, 8, 4)), (4, (32, 8, 4)), (np.array([4]), (32, 8, 4)), ([], (32, 8))],
)
def test_dims_are_taken_in_each_form_of_fit(dims: Any, trained: tuple[int, ...]) -> None:
    assert SmecEmbedding(8, dims=dims, preset="fast").fit(HAS.corpus).model_.dims == trained


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n_components": 64}, "dims: 64 is more than the 32 dims of the data"),
        ({"n_components": 0}, "dims: every dim must be at least 1"),
        ({"n_components": 8.0}, r"dims: n_components is 8\.0; it must be a whole number"),
        ({"preset": "slow"}, "preset: slow is unknown"),
        ({"dims": None}, "dims: "),
        ({"dims": "8,x"}, "dims: "),
        ({"dims": 1.5}, "dims: "),
        ({"settings": {"dims": [3]}}, "settings: dims are no setting here; give them as arguments"),
        ({"settings": {"epohcs": 1}}, r"unknown key 'epohcs'; did you mean 'epochs'\?"),
    ],
)
def test_bad_parameters_are_errors_of_values(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SmecEmbedding(**changes).fit(HAS.corpus)
