"""What a training learns from, in Ray's object store, where all nodes find it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray

from pipelines.console import say, warn
from pipelines.data.scan import scan
from pipelines.runtime.cluster import connect
from pipelines.runtime.settings import ClusterSettings
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.scan import Keep, Scanned, is_small
from smec_core.data.vectors import tensor_over
from smec_core.distributed.resident import Node
from smec_core.errors import InputError
from smec_core.training.context import TrainingData
from smec_core.training.scanned import COPIES, Facts, ScannedData, WantedRows

MOST_OF_STORE = 0.9
"""Of the object store that vectors may fill."""


@dataclass
class Source(Facts):
    """What a training learns from.

    Attributes:
        refs: unit vectors of documents and of queries, and where the documents are not all, the second moment of all.
        block_bytes: what a training holds beside the vectors, on each node: blocks of its stages, and copies.
    """

    refs: tuple[ray.ObjectRef, ray.ObjectRef, ray.ObjectRef | None]
    block_bytes: int

    @classmethod
    def of(cls, scanned: ScannedData, config: TrainConfig) -> "Source":
        """Puts the rows where all nodes find them; Ray must be connected."""
        moment = None if scanned.is_whole else ray.put(scanned.docs.moment_DD)
        docs, queries = ray.put(scanned.docs.x_KD), ray.put(scanned.queries.x_KD)
        # this process needs no copy of its own
        scanned.docs, scanned.queries = (
            replace(table, x_KD=ray.get(ref)) for table, ref in ((scanned.docs, docs), (scanned.queries, queries))
        )
        blocks = (COPIES - 1) * (scanned.docs.x_KD.nbytes + scanned.queries.x_KD.nbytes)
        copies = 4 * scanned.dim * config.copied_docs(scanned.drawn)
        refs = (docs, queries, moment)
        facts = (scanned.dim, scanned.drawn, scanned.labels, scanned.is_whole, scanned.is_self_taught)
        return cls(*facts, refs, int(blocks + copies))

    def fetch(self, node: Node) -> TrainingData:
        """Takes the rows from the object store: a node's processes share one copy."""
        docs, queries, moment = (None if ref is None else tensor_over(ray.get(ref)) for ref in self.refs)
        assert docs is not None and queries is not None
        return self.training_data(docs, queries, moment, node)

    def pull(self) -> Sequence[np.ndarray]:
        """Has the rows brought to this node; they stay as long as the result is held."""
        found: list[np.ndarray] = ray.get(list(self.refs[:2]))
        return found


def scan_data(
    dataset: Dataset, config: TrainConfig, cluster: ClusterSettings | None = None, storage: str | None = None
) -> ScannedData:
    """Reads a dataset once, for trainings; it then has its fingerprint.

    Args:
        dataset: what to learn from.
        config: settings of the method.
        cluster: how much of a node's memory rows may take, and the CPUs that the trainings need at once; None keeps
            every row, since models are scored on these, too.
        storage: folder or URI where a large scan's finished pieces wait, should this process be killed.

    Raises:
        InputError: a row is bad, or there is too little memory.
        SmecError: the data were changed since they were opened, or cannot be read.
    """
    if cluster is None:
        cpus, wanted, cure = 1, WantedRows.every(dataset, config), ""
    else:
        cure = "set sample_rows lower, or "
        cpus = cluster.worker_range[1] * (cluster.cpus_per_worker or 1)
        wanted = WantedRows.of(dataset, config, cluster.memory_budget, is_small(dataset.queries), warn)
    if not (is_small(dataset.corpus) and is_small(dataset.queries)):
        connect(cpus)
        _check_store(4 * wanted.kept * dataset.dim, cure)

    def read(table: EmbeddingTable, keep: Keep, hash_M: np.ndarray | None) -> Scanned:
        return scan(table, keep, hash_M, cpus, storage)

    return wanted.read(read, say)


def check_room(datasets: Iterable[Dataset], cpus: int) -> None:
    """Refuses datasets all of whose vectors, together, the object stores have no room for.

    Raises:
        InputError: they have not.
    """
    connect(cpus)
    _check_store(4 * sum(table.rows * one.dim for one in datasets for table in one.tables), "")


def _check_store(need: int, cure: str) -> None:
    """Refuses vectors that the object stores have no room for: this node's, and those of nodes that train."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    rooms = [
        node["Resources"].get("object_store_memory", 0.0)
        for node in nodes
        if node["NodeID"] == here or node["Resources"].get("CPU")
    ]
    if need > MOST_OF_STORE * min(rooms):
        raise InputError(
            f"data: the vectors to learn from take {need / 2**30:.1f} GiB, and a node's object store of Ray has "
            f"{min(rooms) / 2**30:.1f} GiB; {cure}start Ray with more (--object-store-memory)"
        )
