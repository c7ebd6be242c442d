"""Trains methods with several seeds, as many at once as the cluster has room for, and scores each on judged queries.

Shapes: S seeds, Q queries.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import ray
import torch
from pyarrow.fs import LocalFileSystem

from pipelines.console import Pace, say, telling, warn
from pipelines.data.source import Source
from pipelines.runtime.cluster import unwrap
from pipelines.storage.files import write_record
from smec_core.config import TrainConfig
from smec_core.data.judgements import Judgements
from smec_core.data.records import read_record
from smec_core.distributed.resident import Node
from smec_core.errors import DamagedError
from smec_core.evaluation.significance import query_interval
from smec_core.research.peers.peer import Peer, score
from smec_core.training.schedule import prefix_dims

MAIN_MEASURE = "ndcg@10"
Key = TypeVar("Key")


@dataclass(frozen=True)
class Scored:
    """One training.

    Attributes:
        values: by measure and dim, the value (Q) of each query.
        seconds: that the training took.
        parameters: numbers that it learnt.
        steps: that it took.
    """

    values: dict[str, dict[int, np.ndarray]]
    seconds: float
    parameters: int
    steps: int

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {
            measure: {str(dim): value_Q.tolist() for dim, value_Q in by_dim.items()}
            for measure, by_dim in self.values.items()
        }
        return asdict(replace(self, values={})) | {"values": values}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads it back."""
        values = {
            measure: {int(dim): np.array(value_Q) for dim, value_Q in by_dim.items()}
            for measure, by_dim in content["values"].items()
        }
        return cls(**{**content, "values": values})

    def of(self, keep_Q: np.ndarray) -> Self:
        """The same over some of the queries."""
        values = {
            measure: {dim: value_Q[keep_Q] for dim, value_Q in by_dim.items()}
            for measure, by_dim in self.values.items()
        }
        return replace(self, values=values)

    def mean(self, dim: int, measure: str = MAIN_MEASURE) -> float:
        """Mean over the queries at a dim."""
        return float(self.values[measure][dim].mean())


class Kept:
    """Results of finished trainings in a folder, a file each, so that none is run twice."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Opens the folder.

        Args:
            folder: where the files are.
            identity: what the results depend on beside what is trained, settings and seed.
        """
        self._folder, self._identity = folder, dict(identity)
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, trained: str, config: TrainConfig) -> Path:
        """The file of one training; `trained` says whole what `name` stands for."""
        whole = self._identity | {"trained": trained, "config": config.model_dump(mode="json")}
        key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]
        return self._folder / f"{name.replace(' ', '-')}-seed{config.seed}-{key}.json"

    def read(self, path: Path) -> Any:
        """What was kept; None where nothing was, or where it is not as it was written."""
        try:
            content = read_record(LocalFileSystem(), str(path))
        except DamagedError as error:
            warn(f"{error.path}: {error.problem}; that training is run again")
            return None
        # results of earlier versions have no such key
        return None if content is None else content.get("result")

    def write(self, path: Path, result: Any) -> None:
        """Keeps a result."""
        write_record(LocalFileSystem(), str(path), {"result": result})


def train_and_score(
    source: Source,
    methods: Mapping[str, Peer],
    config: TrainConfig,
    seeds: Sequence[int],
    judgements: Judgements,
    resources: Mapping[str, float],
    kept: Kept | None = None,
) -> dict[str, list[Scored]]:
    """Trains every method with every seed, and scores it on judgements.

    Args:
        source: what to learn from.
        methods: the methods, by name.
        config: what they share; the seed is replaced.
        seeds: the seeds.
        judgements: what to score on.
        resources: what a training takes, by Tune's names; each runs in one process.
        kept: trainings that are finished already; new ones are added.

    Raises:
        SmecError: a training failed.
    """
    # judgements are by rows of the tables
    assert source.is_whole
    cpus, gpus, memory = (resources.get(name, 0) for name in ("cpu", "gpu", "memory"))
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, memory=memory)(_train_and_score)
    device = "cuda" if gpus else "cpu"
    found: dict[tuple[str, int], Scored] = {}
    paths: dict[tuple[str, int], Path] = {}
    seeded = {seed: config.model_copy(update={"seed": seed}) for seed in seeds}
    if kept is not None:
        for name, seed in product(methods, seeds):
            paths[name, seed] = kept.path(name, repr(methods[name]), seeded[seed])
            if (content := kept.read(paths[name, seed])) is not None:
                found[name, seed] = Scored.from_json(content)
    waiting = {
        task.remote(source, methods[name], seeded[seed], judgements, int(cpus), device): (name, seed)
        for seed, name in product(seeds, methods)
        if (name, seed) not in found
    }
    if found:
        say(f"{len(found)} of {len(found) + len(waiting)} trainings are finished already")
    pace = Pace()
    for (name, seed), scored in as_finished(waiting):
        found[name, seed] = scored
        if kept is not None:
            kept.write(paths[name, seed], scored.as_json())
        figures = " ".join(f"{scored.mean(dim):.4f}" for dim in sorted(scored.values[MAIN_MEASURE], reverse=True))
        say(f"{name}, seed {seed}: nDCG@10 {figures}, {scored.seconds:.0f} s; {pace.done(len(waiting))}")
    return {name: [found[name, seed] for seed in seeds] for name in methods}


def as_finished(waiting: dict[ray.ObjectRef, Key]) -> Iterator[tuple[Key, Any]]:
    """Results of tasks as they come, each taken out of `waiting`; what is left, whatever ends it, is cancelled.

    Raises:
        SmecError: a task failed.
    """
    try:
        while waiting:
            with telling(f"trainings under way, {len(waiting)} to go"):
                (ref,), _ = ray.wait(list(waiting), num_returns=1)
            key = waiting.pop(ref)
            yield key, ray.get(ref)
    except ray.exceptions.RayError as error:
        raise unwrap(error) from error
    finally:
        for ref in waiting:
            # what ended it is what is to be told
            with suppress(Exception):
                ray.cancel(ref, force=True)


def gains(found: Sequence[Scored], base: Sequence[Scored], dim: int, measure: str = MAIN_MEASURE) -> np.ndarray:
    """Gain (Q) of each query over `base`, mean over the seeds."""
    found_SQ, base_SQ = (np.stack([one.values[measure][dim] for one in some]) for some in (found, base))
    gain_Q: np.ndarray = (found_SQ - base_SQ).mean(0)
    return gain_Q


def gain_interval(gain_Q: np.ndarray) -> dict[str, Any]:
    """The mean `gain`, and its 95 % `interval` over the queries."""
    gain, half = float(gain_Q.mean()), query_interval(gain_Q)
    return {"gain": gain, "interval": [gain - half, gain + half]}


def _train_and_score(
    source: Source, peer: Peer, config: TrainConfig, judgements: Judgements, threads: int, device: str
) -> Scored:
    torch.set_num_threads(threads)
    data = source.fetch(Node(device=torch.device(device)))
    started = time.perf_counter()
    fitted = peer.fit(data, config)
    seconds = time.perf_counter() - started
    dims = prefix_dims(data.docs.dim, config.dims)
    return Scored(score(fitted.encode, data, dims, judgements), round(seconds, 3), fitted.parameters, fitted.steps)
