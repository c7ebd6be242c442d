"""What a training learns from: judged rows and a sample, out of one scan of the data, in Ray's object store.

Shapes: K rows that are kept, D dims.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipelines.console import say, warn
from pipelines.data.scan import is_small, scan
from pipelines.runtime.cluster import connect
from pipelines.runtime.settings import ClusterSettings
from smec_core.config import SAMPLE_ROWS, SET_BY_DATA, TrainConfig
from smec_core.data.dataset import MIN_TRAIN_QUERIES, Dataset, hash_share
from smec_core.data.fingerprint import hash_ids
from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.scan import Keep, Scanned
from smec_core.data.vectors import tensor_over
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.errors import InputError
from smec_core.training.context import TrainingData
from smec_core.training.schedule import TrainingShape
from smec_core.training.trainer import settings_used

MOST_SAMPLED = 1_000_000
"""Documents that a training draws from by default."""
COPIES = 2.5
"""Copies of the rows that are held at once: as they are, the first stage's block of them, half of it for the next."""
MOST_OF_STORE = 0.9
"""Of the object store that vectors may fill."""

Labels = tuple[Judgements | None, Judgements | None]


@dataclass
class _Facts:
    """What is known of data without their vectors.

    Attributes:
        dim: D.
        drawn: how many documents the sample has.
        labels: judgements to learn from and to choose by, by places among the rows that are kept.
        is_whole: whether all documents are kept.
    """

    dim: int
    drawn: int
    labels: Labels
    is_whole: bool

    def used(self, config: TrainConfig, is_warm: bool = False) -> dict[str, Any]:
        """What the settings come to whose default depends on the data."""
        shape = TrainingShape.of(self.dim, self.drawn, *self.labels, config)
        found = settings_used(shape.without_dev() if is_warm else shape, config)
        return {name: getattr(found, name) for name in SET_BY_DATA} | {SAMPLE_ROWS: self.drawn}


@dataclass
class ScannedData(_Facts):
    """What one scan leaves of a dataset.

    Attributes:
        docs: documents.
        queries: queries.
        learnt: the labels by rows of the tables.
        seconds: that it took.
    """

    docs: Scanned
    queries: Scanned
    learnt: Labels
    seconds: float

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a result beside settings and data: memory_budget may leave out some of the data."""
        if self.is_whole:
            return {}
        return {"sample": [self.drawn, *(0 if judged is None else len(judged) for judged in self.labels)]}

    def store(self, config: TrainConfig) -> "Source":
        """Puts the rows where all nodes find them; Ray must be connected."""
        moment = None if self.is_whole else ray.put(self.docs.moment_DD)
        docs, queries = ray.put(self.docs.x_KD), ray.put(self.queries.x_KD)
        # this process needs no copy of its own
        self.docs, self.queries = (
            replace(table, x_KD=ray.get(ref)) for table, ref in ((self.docs, docs), (self.queries, queries))
        )
        blocks = (COPIES - 1) * (self.docs.x_KD.nbytes + self.queries.x_KD.nbytes)
        copies = 4 * self.dim * config.copied_docs(self.drawn)
        refs = (docs, queries, moment)
        return Source(self.dim, self.drawn, self.labels, self.is_whole, refs, int(blocks + copies))


@dataclass
class Source(_Facts):
    """What a training learns from.

    Attributes:
        refs: unit vectors of documents and of queries, and where the documents are not all, the second moment of all.
        block_bytes: what a training holds beside the vectors, on each node: blocks of its stages, and copies.
    """

    refs: tuple[ray.ObjectRef, ray.ObjectRef, ray.ObjectRef | None]
    block_bytes: int

    def fetch(self, node: Node) -> TrainingData:
        """Takes the rows from the object store: a node's processes share one copy."""
        docs, queries, moment = (None if ref is None else tensor_over(ray.get(ref)) for ref in self.refs)
        assert docs is not None and queries is not None
        rows = ResidentRows(docs, node, self.drawn), ResidentRows(queries, node)
        return TrainingData(*rows, *self.labels, node, moment)

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
    started = time.perf_counter()
    (doc_ids, query_ids), rows = dataset.ids, dataset.corpus.rows
    most = rows if cluster is None else _most_docs(dataset, config, cluster.memory_budget)
    labels = dataset.training_split(config)
    if most < rows:
        labels = _within(dataset, labels, most // 4)
    judged = _distinct(one.doc_row_J for one in labels if one is not None)
    sample = rows if cluster is None else config.sample_rows or min(MOST_SAMPLED, most - len(judged) * (most < rows))
    if min(sample + len(judged), rows) > most:
        raise InputError(
            f"sample_rows: {sample:,} documents, and {len(judged):,} judged ones, are more than the {most:,} that "
            "memory_budget has room for; set one lower, or the other higher"
        )
    keep = Keep(rows, sample, _hashes(doc_ids, judged))
    keep_queries = Keep(dataset.queries.rows, dataset.queries.rows)
    if cluster is not None and not is_small(dataset.queries):
        asked = _distinct(one.query_row_Q for one in labels if one is not None)
        keep_queries = Keep(dataset.queries.rows, 0, _hashes(query_ids, asked))
    cpus = 1 if cluster is None else cluster.worker_range[1] * (cluster.cpus_per_worker or 1)
    if not (is_small(dataset.corpus) and is_small(dataset.queries)):
        connect(cpus)
        kept = min(rows, sample + len(judged)) + min(keep_queries.rows, keep_queries.sample + len(keep_queries.hashes))
        _check_store(4 * kept * dataset.dim)
    docs = scan(dataset.corpus, keep, _order(dataset.corpus, doc_ids, keep), cpus, storage)
    queries = scan(dataset.queries, keep_queries, _order(dataset.queries, query_ids, keep_queries), cpus, storage)
    dataset.take_checks([docs.check, queries.check])
    dataset.check_unchanged()
    places = labels
    if not (keep.is_whole and keep_queries.is_whole):
        of_queries, of_docs = _rows_of(queries, keep_queries, query_ids), _rows_of(docs, keep, doc_ids)
        # an epoch goes by their order, which is that of the table whether all are kept or not
        order_K = np.argsort(of_queries)
        if not keep_queries.is_whole:
            of_queries = of_queries[order_K]
            queries = replace(queries, id_K=queries.id_K.take(pa.array(order_K)), x_KD=queries.x_KD[order_K])
        train, dev = (None if one is None else one.renumbered(of_queries, of_docs) for one in labels)
        places = train, dev
    seconds = time.perf_counter() - started
    told = f"{rows:,} documents and {dataset.queries.rows:,} queries read in {seconds:.1f} s"
    if not keep.is_whole:
        told += f"; of the documents {docs.drawn:,} are the sample, and {len(docs.id_K) - docs.drawn:,} more are judged"
    say(told)
    return ScannedData(dataset.dim, docs.drawn, places, keep.is_whole, docs, queries, labels, seconds)


def _distinct(rows: Any) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows]))


def _hashes(ids: TableIds, rows: np.ndarray) -> np.ndarray:
    """Hashes of the ids of judged rows, ascending."""
    return np.unique(hash_ids(pa.array(ids.ids_of(rows), pa.string())))


def _order(table: EmbeddingTable, ids: TableIds, keep: Keep) -> np.ndarray | None:
    """Hashes of all ids in the order of the table, where all rows are kept."""
    if not keep.is_whole or ids.hash_M is not None:
        return ids.hash_M
    return np.concatenate([hash_ids(some) for _, some in table.id_chunks()])


def _rows_of(scanned: Scanned, keep: Keep, ids: TableIds) -> np.ndarray:
    """Rows in the table of those that are kept (K); of a sample, only those of rows that judgements name, else -1."""
    return np.arange(keep.rows) if keep.is_whole else ids.rows_of(scanned.id_K)


def _most_docs(dataset: Dataset, config: TrainConfig, memory_budget: float) -> int:
    """How many documents a node has room for."""
    rows, row_bytes = dataset.corpus.rows, 4 * dataset.dim
    queries = COPIES * min(dataset.queries.rows, sum(map(len, dataset.splits.values()))) * row_bytes
    drawn = min(rows, config.sample_rows or MOST_SAMPLED)
    has_teacher = config.copied_docs(drawn) > config.dev_docs(drawn)
    dev = config.dev_docs(drawn) * row_bytes
    most = int((memory_budget * 2**30 - queries - dev) / ((COPIES + has_teacher) * row_bytes))
    if most < min(rows, config.dev_docs(drawn), 1000):
        raise InputError(
            f"memory_budget: {memory_budget:g} GiB have room for {max(most, 0):,} documents of {dataset.dim} dims "
            f"beside {config.dev_docs(drawn):,} for dev (dev_corpus), too few to learn from; give more"
        )
    return most


def _within(dataset: Dataset, labels: Labels, most: int) -> Labels:
    """The labels, or of train and of dev those of the queries with the lowest hashes that name so many documents."""
    found = []
    for judged in labels:
        if judged is not None and len(np.unique(judged.doc_row_J)) > most:
            order_Q = np.argsort([hash_share(name) for name in dataset.ids[1].ids_of(judged.query_row_Q)])
            fits_Q = np.cumsum(np.diff(judged.offset_Q1)[order_Q]) <= most
            keep_Q = np.zeros(len(judged), bool)
            keep_Q[order_Q[fits_Q]] = True
            told = f"memory_budget has room for the documents of {keep_Q.sum():,} of {len(judged):,} judged queries"
            if keep_Q.sum() < MIN_TRAIN_QUERIES:
                raise InputError(f"{told}, too few to learn from; give more")
            warn(f"{told}, those whose ids have the lowest hashes; give more to learn from all")
            judged = judged.select(keep_Q)
        found.append(judged)
    return found[0], found[1]


def _check_store(need: int) -> None:
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
            f"{min(rooms) / 2**30:.1f} GiB; set sample_rows lower, or start Ray with more (--object-store-memory)"
        )
