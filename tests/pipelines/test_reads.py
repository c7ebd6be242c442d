"""How often the vectors of a corpus are read, in all processes together."""

from pathlib import Path

import pytest

from pipelines.compress import job as compress
from pipelines.compress.settings import CompressSettings
from pipelines.data import check
from pipelines.data.settings import CheckSettings
from pipelines.train import job as train
from pipelines.train.settings import TrainSettings
from smec_core.data import scan
from smec_core.yaml_file import dump, read_mapping
from tests.builders import write_dataset
from tests.counted import Counter
from tests.pipelines.retrain.series import Series

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

# ids are read once more, footers often, and some rows of two files by Ray Data, to plan by
REST = 0.5


@pytest.mark.parametrize("small_bytes", [scan.SMALL_BYTES, pytest.param(0, marks=pytest.mark.slow)])
def test_a_corpus_is_scanned_once_searched_once_and_compressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    monkeypatch.setattr(scan, "SMALL_BYTES", small_bytes)
    counter = Counter(monkeypatch, tmp_path)
    data, model = write_dataset(tmp_path / "data", docs=16_000, dim=256, files=8), str(tmp_path / "model")
    uri = f"counted://{data}"

    check.run(CheckSettings(data=uri))
    assert 1 < counter.passes(data / "corpus") < 1 + REST

    counter.reset()
    settings = {"epochs": 1, "batch_size": 32, "negatives": 16, "dims": "8,4"}
    train.run(TrainSettings.model_validate({"data": uri, "out": model, **settings}))
    assert 2 < counter.passes(data / "corpus") < 2 + REST

    counter.reset()
    compress.run(CompressSettings(model=model, input=f"{uri}/corpus", output=str(tmp_path / "out"), dim=(8,)))
    assert 1 < counter.passes(data / "corpus") < 1 + REST


def test_a_cycle_that_releases_reads_the_corpus_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch, tmp_path)
    series = Series(tmp_path, docs=8000, dim=256)
    series.config.write_text(dump(read_mapping(series.config) | {"data": f"counted://{series.data}"}))
    series.configure("train", epochs=2)
    series.configure("gate", max_below=1, max_loss=1, max_drop=1)
    corpus = series.data / "corpus"
    series.judge(0.6)
    assert series.retrain()["outcome"] == "promoted"
    assert 3 < counter.passes(corpus) < 3 + REST

    counter.reset()
    assert series.retrain()["outcome"] == "nothing new"
    assert counter.passes(corpus) == 0

    # with a champion to compare with
    series.judge(1)
    assert series.retrain()["outcome"] == "promoted"
    assert 3 < counter.passes(corpus) < 3 + REST
