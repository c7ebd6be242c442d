"""The stage of all dims is trained from the better of two starts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.generated import write_dense
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.distributed.group import Group
from smec_core.model.adapter import fold
from smec_core.training import second_start
from smec_core.training.checkpoint import Checkpoint
from smec_core.training.context import TrainingData
from smec_core.training.scanned import load_training_data
from smec_core.training.trained import Trained
from smec_core.training.trainer import Hooks, train
from tests.smec_core.generated import Records
from tests.smec_core.interrupted import Folders

DIM = 128
CONFIG = TrainConfig(dims=(24,), epochs=100, batch_size=64, seed=1)


pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("dense") / "data"
    write_dense(folder, rows=1000, queries=400, tested=10, dim=DIM, relevant=10)
    return load_training_data(Dataset.open(str(folder)), CONFIG)


def trained(data: TrainingData, **hooks: Any) -> tuple[Trained, list[str]]:
    lines: list[str] = []
    return train(data, CONFIG, Records(), Hooks(say=lines.append, **hooks)), lines


def reached(found: Trained) -> float:
    return sum(found.metrics["dev"]["ndcg@10"].values())


def test_where_the_closed_form_is_left_far_behind_the_vectors_as_they_are_may_be_better(
    dense: TrainingData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = Folders(tmp_path, 25, Group(), Records(), 0, interrupt=False)
    found, lines = trained(dense, checkpoints=folders)
    assert found.metrics["start"]["start"] == "identity"
    assert any("the second is kept" in line for line in lines)
    # from any checkpoint, of either training of the stage and of the second pass, the same model
    for number in range(0, len(folders.records_before), 16):
        again, _ = trained(dense, resumed=Checkpoint.read(tmp_path / str(number)))
        torch.testing.assert_close(fold(again.stages, DIM), fold(found.stages, DIM), rtol=0, atol=0)
    monkeypatch.setattr(second_start, "MUCH_GAIN", 1.0)
    closed, lines = trained(dense)
    assert "start" not in closed.metrics["start"] and not any("as well" in line for line in lines)
    assert reached(found) > reached(closed) + 0.01
