"""The page about new queries on old documents, from trained models to its files."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from benchmarks import compatible
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.model.files import load
from tests.builders import write_dataset

SETTINGS = ["--dims", "8,4", "--seeds", "0", "--set", "epochs=2", "--set", "negatives=16"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    data = write_dataset(folder / "data", docs=200, queries=200, dim=16)
    compatible.main(["--data", str(data), "--models", str(folder / "models"), "--out", str(folder / "out"), *SETTINGS])
    return folder


def test_the_page_has_every_system_at_every_dim(made: Path) -> None:
    scores = pd.read_csv(made / "out" / "scores.csv")
    assert len(scores) == 9 * 3
    means = scores.groupby("system")["ndcg@10"].mean()
    page = (made / "out" / "README.md").read_text()
    for system, value in means.items():
        assert f"| {system} | {value:.4f} |" in page
    gain = means["compatible queries, old documents"] - means["old queries, old documents"]
    assert f"against old queries on them: {gain:+.4f};" in page
    assert "--data data --dims 8,4 --seeds 0 --models MODELS --out OUT --set epochs=2 --set negatives=16" in page


def test_models_that_are_there_are_not_trained_again(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (made / "out").iterdir()}
    data, models = str(made / "data"), str(made / "models")
    compatible.main(["--data", data, "--models", models, "--out", str(made / "out"), *SETTINGS])
    assert "training" not in capfd.readouterr().err
    assert {path: path.read_bytes() for path in (made / "out").iterdir()} == before


def test_models_of_other_settings_are_not_taken(made: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(str(made / "data"))
    dims = [
        compatible.train_model(dataset, TrainConfig(dims=(dim,), epochs=1), tmp_path / "one").dims for dim in (8, 4)
    ]
    assert dims == [(16, 8), (16, 4)]


def test_turning_brings_a_model_nearer_and_blocks_keep_its_own_cosines(made: Path) -> None:
    dataset = Dataset.open(str(made / "data"))
    assert 0 < len(compatible.half_of_train(dataset, 0).splits["train"]) < len(dataset.splits["train"])
    model, champion = (load(next((made / "models").glob(f"{name}-0-*"))) for name in ("fresh", "champion"))
    x_ND = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    z_ND, old_ND = model.encode(x_ND), champion.encode(x_ND)
    whole = compatible.turned(model, champion, x_ND, [0, 16])(x_ND)
    blocks = compatible.turned(model, champion, x_ND, [0, 4, 8, 16])(x_ND)
    away = [torch.linalg.norm(found_ND - old_ND).item() for found_ND in (whole, blocks, z_ND)]
    assert away == sorted(away)
    for dim in (4, 8, 16):
        one, other = F.normalize(blocks[:, :dim], dim=1), F.normalize(z_ND[:, :dim], dim=1)
        torch.testing.assert_close(one @ one.T, other @ other.T, atol=1e-5, rtol=0)
