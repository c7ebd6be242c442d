"""Whether what a study found holds where nothing was chosen: trained again with several seeds, compared on test.

Shapes: Q queries, S seeds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from pipelines.cluster import unwrap
from pipelines.console import say
from pipelines.source import Source
from smec_core.config import TrainConfig
from smec_core.convergence import make_dev_set
from smec_core.dataset import Dataset
from smec_core.judgements import Judgements
from smec_core.resident import Node
from smec_core.schedule import prefix_dims
from smec_core.tracker import NullTracker
from smec_core.train import train


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
    labelled = source.labels[0] is not None
    sides = {"best": config.resolved(labelled).model_copy(update=dict(best)), "defaults": config}
    say(f"training the best settings and the defaults with {seeds} seeds each, to compare them on test")
    found = train_and_score(source, sides, range(config.seed, config.seed + seeds), judgements, resources)
    dims = prefix_dims(dataset.dim, config.dims)
    return {
        "queries": len(judgements),
        "seeds": seeds,
        "dims": {str(dim): compare(found["best"], found["defaults"], dim) for dim in dims},
    }


def train_and_score(
    source: Source,
    configs: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    judgements: Judgements,
    resources: Mapping[str, float],
) -> dict[str, list["Scored"]]:
    """Trains every config with every seed, as many at once as there is room for, and scores them on judgements.

    Raises:
        SmecError: a training failed.
    """
    cpus, gpus, memory = (resources.get(name, 0) for name in ("cpu", "gpu", "memory"))
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, memory=memory)(_train_and_score)
    device = "cuda" if gpus else "cpu"
    refs = {
        name: [
            task.remote(source, config.model_copy(update={"seed": seed}), judgements, int(cpus), device)
            for seed in seeds
        ]
        for name, config in configs.items()
    }
    try:
        return {name: ray.get(some) for name, some in refs.items()}
    except ray.exceptions.RayError as error:
        raise unwrap(error) from error


class Scored(NamedTuple):
    """One training: nDCG@10 (Q) of every prefix, and what it took."""

    value_Q: dict[int, np.ndarray]
    seconds: float


def compare(found: Sequence[Scored], base: Sequence[Scored], dim: int) -> dict[str, Any]:
    """Figures of each seed, the mean gain over `base`, and its 95 % interval over the queries."""
    found_SQ, base_SQ = (np.stack([one.value_Q[dim] for one in some]) for some in (found, base))
    gain_Q = (found_SQ - base_SQ).mean(0)
    half = 1.96 * float(gain_Q.std(ddof=1)) / math.sqrt(len(gain_Q)) if len(gain_Q) > 1 else math.nan
    gain = float(gain_Q.mean())
    return {
        "best": found_SQ.mean(1).tolist(),
        "defaults": base_SQ.mean(1).tolist(),
        "gain": gain,
        "interval": [gain - half, gain + half],
    }


def _train_and_score(source: Source, config: TrainConfig, judgements: Judgements, threads: int, device: str) -> Scored:
    torch.set_num_threads(threads)
    data = source.fetch(Node(device=torch.device(device)))
    trained = train(data, config, NullTracker())
    every_document = config.model_copy(update={"dev_corpus": max(data.docs.rows, 100)})
    scored = make_dev_set(data.queries, data.docs, judgements, np.empty(0, np.int64), every_document, data.node)
    for stage in trained.stages:
        scored.advance(stage.apply, stage.d_in)
    dims = prefix_dims(data.docs.dim, config.dims)
    values = scored.score(lambda z_ND: z_ND, data.docs.dim, dims)
    return Scored(
        {dim: value_Q.cpu().numpy() for dim, value_Q in values.items()}, trained.metrics["training"]["seconds"]
    )
