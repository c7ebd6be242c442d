"""A model of two stages, and one that extends it."""

from pathlib import Path

import pytest
import torch

import smec_core
from smec_core.data.parquet import EmbeddingTable
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from smec_core.model.quantize import learn_int8_scales
from tests.builders import all_vectors
from tests.pipelines.compress.corpora import DIM, write_corpus


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of two random stages, 16 to 8 to 4 dims."""
    generator = torch.Generator().manual_seed(0)
    stages = [
        FrozenStage(dim, "linear", {"weight": torch.randn(d_in, d_in, generator=generator), "logits": torch.ones(d_in)})
        for d_in, dim in ((16, 8), (8, 4))
    ]
    folder = tmp_path_factory.mktemp("model")
    corpus = EmbeddingTable.open(str(write_corpus(folder / "calibration", [2000])))
    made = Model(stages, DIM, {"dims": [16, 8, 4]}, {})
    made.config["int8_scales"] = learn_int8_scales(made, all_vectors(corpus))
    made.save(folder / "model")
    return folder / "model"


def random_rotation(dim: int, seed: int) -> torch.Tensor:
    matrix = torch.eye(dim) + 0.4 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)) / dim**0.5
    return torch.linalg.qr(matrix)[0]


@pytest.fixture(scope="session")
def extended(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The model, extended from 4 to 3 dims."""
    rotation = FrozenStage(3, "rotation", {"weight": random_rotation(4, 0), "logits": torch.zeros(4)})
    folder = tmp_path_factory.mktemp("extended")
    smec_core.load(model).extended([rotation], {"dims": [16, 3]}, {}).save(folder)
    return folder
