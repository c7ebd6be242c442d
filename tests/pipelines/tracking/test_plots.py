"""Pictures of quality, read back from the figure."""

import numpy as np
from matplotlib.container import ErrorbarContainer

from pipelines.tracking.plots import quality_picture


def test_the_quality_picture_shows_the_model_against_its_baselines() -> None:
    baselines = {"truncation": {"8": 0.6, "4": 0.3}, "pca": {"8": 0.6, "4": 0.5}, "full": 0.6}
    (axes,) = quality_picture({"split": "test", "ndcg@10": {"8": 0.71, "4": 0.62}, "baselines": baselines}).axes
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert lines["model"] == [0.62, 0.71]  # from few dims to many
    assert lines["PCA"] == [0.5, 0.6]
    assert lines["truncation"] == [0.3, 0.6]
    assert set(lines["full embeddings"]) == {0.6}
    assert axes.get_ylabel() == "nDCG@10"


def test_the_quality_picture_shows_the_intervals_over_the_queries() -> None:
    intervals = {"ndcg@10": {"8": [0.66, 0.76], "4": [0.57, 0.67]}, "kept": {"8": [0.9, 1.1], "4": [0.8, 1.0]}}
    evaluation = {"split": "test", "ndcg@10": {"8": 0.71, "4": 0.62}, "intervals": intervals}
    (axes,) = quality_picture(evaluation).axes
    [bars] = axes.containers
    assert isinstance(bars, ErrorbarContainer)
    assert bars.get_label() == "95 % over the queries"
    ends = {tuple(np.round(segment[:, 1], 3)) for segment in bars.lines[2][0].get_segments()}
    assert ends == {(0.66, 0.76), (0.57, 0.67)}
