"""Whether what a study found holds where nothing was chosen: trained again with several seeds, compared on test."""

from collections.abc import Mapping
from typing import Any

from pipelines.console import say
from pipelines.data.source import Source
from pipelines.train import gain_interval, gains, train_and_score
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.research.peers.peer import Smec
from smec_core.training.schedule import prefix_dims


def confirm(
    dataset: Dataset,
    source: Source,
    config: TrainConfig,
    best: Mapping[str, Any],
    seeds: int,
    resources: Mapping[str, float],
) -> dict[str, Any]:
    """Trains the best settings and the defaults on train + dev with the same seeds, and scores both on test.

    Args:
        dataset: what `source` was read from; has test judgements.
        source: what to learn from.
        config: the defaults.
        best: what the best settings have different.
        seeds: how many.
        resources: what a training takes, by Tune's names; each runs in one process.

    Returns:
        By dim: nDCG@10 of each seed for `best` and `defaults`, the mean `gain`, and its 95 % `interval` over the test
        queries, each query's gain being the mean over the seeds.
    """
    judgements = dataset.splits["test"].with_positives()
    say(f"training the best settings and the defaults with {seeds} seeds each, to compare them on test")
    sides = {"best": Smec(best), "defaults": Smec({})}
    run = range(config.seed, config.seed + seeds)
    found = train_and_score(source, sides, config, run, judgements, resources)
    return {
        "queries": len(judgements),
        "seeds": seeds,
        "dims": {
            str(dim): {name: [one.mean(dim) for one in scored] for name, scored in found.items()}
            | gain_interval(gains(found["best"], found["defaults"], dim))
            for dim in prefix_dims(dataset.dim, config.dims)
        },
    }
