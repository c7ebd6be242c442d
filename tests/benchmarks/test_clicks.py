"""The generator of click logs, and what `smec judge` finds out about the users that it makes up."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import clicks
from smec_core.clicks.judge import table_of
from smec_core.data.dataset import Dataset
from tests.builders import write_dataset
from tests.smec_core.clicks.logs import found_in


def test_the_same_seed_gives_the_same_log(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", docs=60, queries=60, dim=8, files=1)
    logs = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / f"log{number}"
        # the corpus of the tests is a folder, which is linked as one
        clicks.main([str(data), str(folder), "--sessions", "200", "--seed", str(seed)])
        logs.append(pq.read_table(folder / "clicks"))
    assert logs[0].equals(logs[1]) and not logs[0].equals(logs[2])
    assert len(logs[0]) == 200 * 20
    assert sorted(set(logs[0]["rank"].to_pylist())) == list(range(1, 21))
    truth = Dataset.open(str(tmp_path / "log0/truth"))
    assert set(logs[0]["query_id"].to_pylist()) <= set(truth.ids[1].ids_of(truth.splits["train"].query_row_Q))
    assert Dataset.open(str(tmp_path / "log0/data")).splits == {}


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_what_made_a_log_is_recovered_from_it(tmp_path: Path, eta: float) -> None:
    data = write_dataset(tmp_path / "data", docs=100, queries=60, dim=8, files=1)
    options = ["--sessions", "100000", "--jitter", "0.3", "--eta", str(eta), "--popularity", "0.5"]
    clicks.main([str(data), str(tmp_path / "log"), *options])
    _, found = found_in(tmp_path / "log/clicks", tmp_path / "log/data", test_share=0)
    assert found.propensities is not None and found.rates is not None
    np.testing.assert_allclose(found.propensities.p_K, np.arange(1, 21) ** -eta, rtol=0.15)
    assert found.rates.other == pytest.approx(0.05, rel=0.1)
    truth = Dataset.open(str(tmp_path / "log/truth"))
    train = truth.splits["train"]
    names = zip(
        truth.ids[1].ids_of(train.query_row_Q[train.query_J]), truth.ids[0].ids_of(train.doc_row_J), strict=True
    )
    true = {pair for pair, score in zip(names, train.score_J, strict=True) if score > 0}
    table = table_of(found.parts["train"], found.ids).to_pylist()
    judged = [(row["query_id"], row["doc_id"]) in true for row in table]
    assert np.mean(judged) > 0.9
