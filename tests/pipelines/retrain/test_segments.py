"""A gate that is held by segments of the queries, on a real Ray cluster and a real MLflow store."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from pipelines.retrain import status
from pipelines.retrain.settings import StatusSettings
from smec_core.data.dataset import HELD_OUT, Dataset
from smec_core.errors import GateError, InputError
from smec_core.evaluation.corpus_search import Sides, query_scores
from smec_core.model.files import load
from tests.pipelines.retrain.series import Series
from tests.pipelines.retrain.test_cycles import begun

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

BY = ("gate.by=language", "gate.min_queries=8", "gate.max_loss=0.02")


def speak(series: Series, others: set[str]) -> None:
    """Says that all queries are German but some, of which nothing is said."""
    table = pq.read_table(series.data / "queries.parquet").select(["id", "embedding"])
    language = [None if name in others else "de\x1b[2J" for name in table["id"].to_pylist()]
    column = pa.array(language, pa.string())
    pq.write_table(table.append_column("language", column), series.data / "queries.parquet")


def losers(series: Series, champion: str, challenger: str) -> set[str]:
    """The gate queries that lose most by another model."""
    dataset = Dataset.open(str(series.data)).holding_out(0.2)
    models = {run: load(series.storage / run / "model") for run in (champion, challenger)}
    judged = dataset.splits[HELD_OUT]
    found = query_scores(dataset, {run: Sides.same(model.encode) for run, model in models.items()}, [8], judged)
    loss_Q = found[champion][8] - found[challenger][8]
    worst = np.argsort(-loss_Q)[:8]
    assert loss_Q[worst].mean() > 0.02 and loss_Q.mean() < 0
    return set(dataset.ids[1].ids_of(judged.query_row_Q[np.sort(worst)]))


@pytest.mark.slow
def test_a_segment_refuses_a_challenger_that_gains_in_the_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = begun(tmp_path)
    first = json.loads((series.storage / series.name / "cycles" / "0001.json").read_text())
    assert first["segments"] is None and "segments" not in first["gate"]
    with pytest.raises(InputError, match=r"queries\.parquet: column language is missing; it holds id, embedding"):
        series.retrain(*BY)
    series.judge(1)
    # a gain that no challenger has: what is trained is that which the segments then look at
    with pytest.raises(GateError) as refused:
        series.retrain("gate.min_gain=1")
    speak(series, losers(series, first["run"], str(refused.value.figures["run"])))

    with pytest.raises(GateError, match=r"on the 8 queries of language \(null\).*by language: 1 of 2 segments lose m"):
        series.retrain(*BY)
    places = {"name": series.name, "data": str(series.data), "storage": series.stored}
    publish, train = {"output": series.published, "dim": 16}, {"dims": [16, 8]}
    told = status.run(StatusSettings.model_validate({**places, "publish": publish, "train": train}))
    assert [cycle["refused_by"] for cycle in told["cycles"]] == [None, None, [{"value": None, "queries": 8}]]
    assert "queries of language (null)" in capsys.readouterr().err
    version = MlflowClient().get_model_version_by_alias(series.name, "challenger")
    metrics = MlflowClient().get_run(str(version.run_id)).data.metrics
    [(_, loss)] = [found for found in metrics.items() if found[0].startswith("gate/loss/language _null_")]
    assert loss > 0.02
    assert "language (null)" in MlflowClient().get_run(str(version.run_id)).data.tags["smec.gate"]

    # data and settings are the same but for that column
    speak(series, set())
    record = series.retrain(*BY)
    assert record["outcome"] == "promoted"
    assert [one["value"] for one in record["gate"]["segments"]["held"]] == ["de\x1b[2J"]
    assert series.retrain(*BY)["outcome"] == "nothing new"


def test_segments_that_are_too_small_are_said_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = begun(tmp_path)
    speak(series, set())
    table = pq.read_table(series.data / "queries.parquet")
    pq.write_table(table.append_column("each", table["id"]), series.data / "queries.parquet")
    assert series.retrain("gate.by=each", "gate.max_below=1", "gate.max_loss=1")["outcome"] == "unchanged"
    assert (
        "gate.by: no value of each has gate.min_queries, 20, gate queries (the most are 1)" in capsys.readouterr().err
    )
