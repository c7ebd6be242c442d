"""The page about trainings without judgements, from data to files."""

from pathlib import Path

import pandas as pd

from benchmarks import unjudged
from tests.builders import write_dataset


def test_the_page_has_every_system_at_every_dim(tmp_path: Path) -> None:
    data, out = write_dataset(tmp_path / "data", docs=200, dim=16), tmp_path / "out"
    changes = ("--set", "epochs=2", "--set", "top_k=5")
    unjudged.main(["--data", str(data), "--dims", "8,4", "--seeds", "0,1", "--out", str(out), *changes])
    scores = pd.read_csv(out / "scores.csv")
    # what is trained has two seeds
    rows = {"smec train": 6, "the paper's loss": 6, "PCA": 3, "truncation": 3}
    assert scores.groupby("system").size().to_dict() == rows
    page = (out / "README.md").read_text()
    for system, of_system in scores.groupby("system"):
        by_dim = of_system.groupby("dim")["ndcg@10"].mean()
        assert f"| {system} | {by_dim[16]:.4f} | {by_dim[8]:.4f} | {by_dim[4]:.4f} |" in page
    means = scores[scores["dim"] == 16].groupby("system")["ndcg@10"].mean()
    assert abs(means["smec train"] - means["truncation"]) < 1e-3
    assert "python -m benchmarks.unjudged --data data --dims 8,4 --seeds 0,1 --out OUT --set epochs=2" in page
