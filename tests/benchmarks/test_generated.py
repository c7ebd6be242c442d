"""The generated dataset: sound, the same by seed, the same whatever the pieces, and with something to learn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import generated
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.evaluation.metrics import PrefixSearch, gains_of, ndcg
from smec_core.model.adapter import apply_chain
from smec_core.training.scanned import load_training_data
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train

ROWS, QUERIES, TESTED, DIM = 900, 300, 40, 32


def made(folder: Path, seed: int = 0) -> Path:
    generated.write_dataset(folder, ROWS, QUERIES, TESTED, DIM, files=3, rank=16, seed=seed)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_it_is_a_sound_dataset_and_the_same_by_seed(tmp_path: Path) -> None:
    dataset = Dataset.open(str(made(tmp_path / "one")))
    assert (dataset.corpus.rows, len(dataset.corpus.files), dataset.queries.rows, dataset.dim) == (
        ROWS,
        3,
        QUERIES,
        DIM,
    )
    assert {name: len(judged.with_positives()) for name, judged in dataset.splits.items()} == {
        "train": QUERIES - TESTED,
        "test": TESTED,
    }
    assert contents(made(tmp_path / "again")) == contents(tmp_path / "one")
    assert contents(made(tmp_path / "other", seed=1)) != contents(tmp_path / "one")


def test_each_query_is_about_its_document_also_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "PIECE_ROWS", 70)
    dataset = Dataset.open(str(made(tmp_path / "data")))
    config = TrainConfig(dims=(8,), epochs=8, negatives=64)
    data = load_training_data(dataset, config)

    def score(encode: Callable[[Tensor], Tensor]) -> float:
        judged = dataset.splits["test"]
        q_QD = data.queries.take(torch.from_numpy(judged.query_row_Q))
        search = PrefixSearch(encode(q_QD), [8], 10)
        search.add(torch.arange(ROWS), encode(data.docs.take(torch.arange(ROWS))))
        return ndcg(gains_of(search.results()[8], judged), judged).mean().item()

    stages = train(data, config, NullTracker()).stages
    assert score(lambda x: apply_chain(stages, x)) > 2 * score(lambda x: x) > 0
