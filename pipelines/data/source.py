"""What a training learns from, and how several trainings share it."""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from pipelines.console import say
from pipelines.runtime.cluster import unwrap
from smec_core.config import SET_BY_DATA, TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.errors import InputError
from smec_core.training.context import TrainingData
from smec_core.training.local import read_resident
from smec_core.training.schedule import TrainingShape
from smec_core.training.trainer import settings_used

# of the object store that vectors may fill
MOST_OF_STORE = 0.9


@dataclass(frozen=True)
class Source:
    """What a training learns from.

    Attributes:
        corpus: documents.
        queries: queries.
        labels: judgements to learn from and to choose by.
        vectors: unit vectors of corpus and queries in Ray's object store, where they are read already.
    """

    corpus: EmbeddingTable
    queries: EmbeddingTable
    labels: tuple[Judgements | None, Judgements | None]
    vectors: tuple[ray.ObjectRef, ray.ObjectRef] | None = None

    def used(self, config: TrainConfig, is_warm: bool = False) -> dict[str, Any]:
        """What the settings come to whose default depends on the data."""
        shape = TrainingShape.of(self.corpus.dim, self.corpus.rows, *self.labels, config)
        found = settings_used(shape.without_dev() if is_warm else shape, config)
        return {name: getattr(found, name) for name in SET_BY_DATA}

    def fetch(self, node: Node) -> TrainingData:
        """Takes the vectors from the object store: a node's processes share one copy."""
        assert self.vectors is not None
        docs, queries = (ResidentRows(_unit_tensor(x_ND), node) for x_ND in ray.get(list(self.vectors)))
        return TrainingData(docs, queries, *self.labels, node)


def _unit_tensor(x_ND: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # the object store's memory is read-only, and resident rows are only read
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(x_ND)


def read_once(dataset: Dataset, config: TrainConfig) -> Source:
    """Reads a dataset into the object store, for any number of trainings.

    Raises:
        InputError: the object store has no room for it, no node can train, or a row is bad.
        SmecError: the data were changed since they were opened.
    """
    rows, started = dataset.corpus.rows + dataset.queries.rows, time.perf_counter()
    need, room = 4 * rows * dataset.dim, _least_room()
    if need > MOST_OF_STORE * room:
        raise InputError(
            f"data: its vectors take {need / 2**30:.1f} GiB, and the trainings of a node share them in Ray's object "
            f"store, which has {room / 2**30:.1f} GiB; start Ray with more (--object-store-memory), or take a part of "
            "the corpus"
        )
    labels = dataset.training_split(config)
    docs, queries = (_read_vectors.remote(table) for table in (dataset.corpus, dataset.queries))
    try:
        ray.get([_done.remote(docs), _done.remote(queries)])
    except ray.exceptions.RayError as error:
        raise unwrap(error) from error
    dataset.check_unchanged()
    say(
        f"{dataset.corpus.rows} documents and {dataset.queries.rows} queries read once for all trainings, "
        f"{need / 2**20:,.0f} MiB, in {time.perf_counter() - started:.1f} s"
    )
    return Source(dataset.corpus, dataset.queries, labels, (docs, queries))


def _least_room() -> float:
    """Bytes of object store of the node that has the least, of those that can train."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [found.get("object_store_memory", 0.0) for found in resources if found.get("CPU")]
    if not rooms:
        raise InputError("no node of the cluster has CPUs for trainings; start one first")
    return min(rooms)


@ray.remote(num_cpus=0)
def _read_vectors(table: EmbeddingTable) -> np.ndarray:
    return read_resident(table, Node()).matrix_ND.numpy()


@ray.remote(num_cpus=0)
def _done(x_ND: np.ndarray) -> None:
    """Waits where the vectors are: the driver may be on a small machine."""
