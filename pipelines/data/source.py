"""What a training learns from: judged rows and a sample, out of one scan of the data, in Ray's object store.

Shapes: K rows that are kept, D dims.
"""

import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from pipelines.console import say, warn
from pipelines.data.scan import SMALL_BYTES, scan
from pipelines.runtime.cluster import connect
from smec_core.config import SAMPLE_ROWS, SET_BY_DATA, TrainConfig
from smec_core.data.dataset import Dataset, hash_share
from smec_core.data.fingerprint import hash_ids
from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.scan import Keep, Scanned
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.errors import InputError
from smec_core.training.context import TrainingData
from smec_core.training.schedule import TrainingShape
from smec_core.training.trainer import settings_used

MOST_SAMPLED = 1_000_000
"""Documents that a training draws from by default."""
BUDGET_SHARE = 0.4
"""Of the memory that Ray leaves to tasks and actors on a node."""
BLOCKS = 2.5
"""Times that rows are held at once: as they are, as the first stage keeps them, and half of it for the next."""
MOST_OF_STORE = 0.9
"""Of the object store that vectors may fill."""
LEAST_DOCS = 1000

Labels = tuple[Judgements | None, Judgements | None]


@dataclass
class _Facts:
    """What is known of data without their vectors.

    Attributes:
        dim: D.
        drawn: how many documents the sample has.
        labels: judgements to learn from and to choose by, by places among the rows that are kept.
    """

    dim: int
    drawn: int
    labels: Labels

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
        is_whole: whether all documents are kept.
        seconds: that it took.
    """

    docs: Scanned
    queries: Scanned
    is_whole: bool
    seconds: float

    def store(self, config: TrainConfig) -> "Source":
        """Puts the rows where all nodes find them.

        Raises:
            InputError: there is no room for them, or no node can train.
        """
        need, room = self.docs.x_KD.nbytes + self.queries.x_KD.nbytes, _least("object_store_memory")
        if need > MOST_OF_STORE * room:
            raise InputError(
                f"data: its vectors take {need / 2**30:.1f} GiB, and the trainings of a node share them in Ray's "
                f"object store, which has {room / 2**30:.1f} GiB; start Ray with more (--object-store-memory), or set "
                "sample_rows lower"
            )
        moment = None if self.is_whole else ray.put(self.docs.moment_DD)
        docs, queries = ray.put(self.docs.x_KD), ray.put(self.queries.x_KD)
        # this process needs no copy of its own
        self.docs, self.queries = (
            replace(table, x_KD=ray.get(ref)) for table, ref in ((self.docs, docs), (self.queries, queries))
        )
        copies = 4 * self.dim * config.copied_docs(self.drawn)
        return Source(self.dim, self.drawn, self.labels, (docs, queries, moment), int((BLOCKS - 1) * need + copies))


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
        docs, queries, moment = (None if ref is None else _tensor(ray.get(ref)) for ref in self.refs)
        assert docs is not None and queries is not None
        rows = ResidentRows(docs, node, self.drawn), ResidentRows(queries, node)
        return TrainingData(*rows, *self.labels, node, moment)


def _tensor(x_ND: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # the object store's memory is read-only, and so are these
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(x_ND)


def scan_data(
    dataset: Dataset, config: TrainConfig, memory_budget: float | None = None, whole: bool = False
) -> ScannedData:
    """Reads a dataset once, for trainings; it then has its fingerprint.

    Args:
        dataset: what to learn from.
        config: settings of the method.
        memory_budget: GiB of each node's memory for rows; None for a share of it.
        whole: keep every row, since models are scored on these, too.

    Raises:
        InputError: a row is bad, or there is too little memory.
        SmecError: the data were changed since they were opened, or cannot be read.
    """
    started = time.perf_counter()
    doc_ids, query_ids = dataset.ids
    rows, labels = dataset.corpus.rows, dataset.training_split(config)
    most = None if whole else _most_docs(dataset, config, memory_budget)
    if most is not None:
        labels = _within(dataset, labels, most)
    judged = np.unique(np.concatenate([np.empty(0, np.int64), *(one.doc_row_J for one in labels if one is not None)]))
    sample = rows if whole else config.sample_rows or min(MOST_SAMPLED, rows if most is None else most - len(judged))
    if most is not None and min(sample + len(judged), rows) > most:
        raise InputError(
            f"sample_rows: {sample:,} documents, and {len(judged):,} judged ones, are more than the {most:,} that "
            "memory_budget has room for; set one lower, or the other higher"
        )
    keep = Keep(rows, sample, _hashes(doc_ids, judged), config.seed)
    keep_queries = _judged_queries(dataset, labels, whole)
    docs = scan(dataset.corpus, keep, _all_hashes(dataset.corpus, doc_ids) if keep.is_whole else None)
    queries_hashes = _all_hashes(dataset.queries, query_ids) if keep_queries.is_whole else None
    queries = scan(dataset.queries, keep_queries, queries_hashes)
    dataset.check_unchanged()
    dataset.__dict__["fingerprint"] = dataset.fingerprint_of([docs.check, queries.check])
    if not (keep.is_whole and keep_queries.is_whole):
        rows_of = _rows_of(queries, keep_queries, query_ids), _rows_of(docs, keep, doc_ids)
        train, dev = (None if one is None else one.renumbered(*rows_of) for one in labels)
        labels = train, dev
    seconds = time.perf_counter() - started
    found = ScannedData(dataset.dim, docs.drawn, labels, docs, queries, keep.is_whole, seconds)
    told = f"{rows:,} documents and {dataset.queries.rows:,} queries read in {found.seconds:.1f} s"
    if not keep.is_whole:
        told += f"; of the documents {docs.drawn:,} are the sample, and {len(docs.id_K) - docs.drawn:,} more are judged"
    say(told)
    return found


def _hashes(ids: TableIds, rows: np.ndarray) -> np.ndarray:
    """Hashes of the ids of judged rows, ascending."""
    return np.unique(hash_ids(pa.array(ids.ids_of(rows), pa.string())))


def _all_hashes(table: EmbeddingTable, ids: TableIds) -> np.ndarray:
    """Hashes of all ids of a table."""
    if ids.hash_M is not None:
        return ids.hash_M
    return np.concatenate([hash_ids(some) for _, some in table.id_chunks()])


def _rows_of(scanned: Scanned, keep: Keep, ids: TableIds) -> np.ndarray:
    """Rows in the table of those that are kept (K); of a sample, only those of rows that judgements name, else -1."""
    if keep.is_whole:
        return np.arange(keep.rows)
    return ids.rows_of(scanned.id_K)


def _judged_queries(dataset: Dataset, labels: Labels, whole: bool) -> Keep:
    """All queries, or where they are many those of the labels."""
    table = dataset.queries
    if whole or 4 * table.rows * table.dim <= SMALL_BYTES:
        return Keep(table.rows, table.rows)
    rows = [one.query_row_Q for one in labels if one is not None]
    return Keep(table.rows, 0, _hashes(dataset.ids[1], np.unique(np.concatenate([np.empty(0, np.int64), *rows]))))


def _most_docs(dataset: Dataset, config: TrainConfig, memory_budget: float | None) -> int | None:
    """How many documents a node has room for; None: all, for a small corpus."""
    rows, row_bytes = dataset.corpus.rows, 4 * dataset.dim
    drawn = min(rows, config.sample_rows or MOST_SAMPLED)
    # as they are, in the blocks of stages, and in copies
    times = BLOCKS + config.copied_docs(drawn) / drawn
    if memory_budget is not None:
        most = int(memory_budget * 2**30 / (times * row_bytes))
    elif rows * row_bytes <= SMALL_BYTES:
        return None
    else:
        connect(1)
        budget, store = BUDGET_SHARE * _least("memory"), MOST_OF_STORE * _least("object_store_memory")
        most = int(min(budget / times, store) / row_bytes)
    if most < min(rows, LEAST_DOCS):
        raise InputError(
            f"memory_budget: there is room for {most:,} documents of {dataset.dim} dims, too few to learn from (at "
            f"least {LEAST_DOCS:,}); give more"
        )
    return most


def _within(dataset: Dataset, labels: Labels, most: int) -> Labels:
    """The labels, or those of the queries with the lowest hashes, so that their documents take half of the room."""
    found = []
    for judged in labels:
        if judged is not None and len(judged.doc_row_J) > most // 4 and len(np.unique(judged.doc_row_J)) > most // 4:
            order_Q = np.argsort([hash_share(name) for name in dataset.ids[1].ids_of(judged.query_row_Q)])
            fits_Q = np.cumsum(np.diff(judged.offset_Q1)[order_Q]) <= most // 4
            keep_Q = np.zeros(len(judged), bool)
            keep_Q[order_Q[fits_Q]] = True
            warn(
                f"memory_budget: there is room for the documents of {keep_Q.sum():,} of {len(judged):,} judged "
                "queries, those whose ids have the lowest hashes; give more to learn from all"
            )
            judged = judged.select(keep_Q)
        found.append(judged)
    return found[0], found[1]


def _least(resource: str) -> float:
    """What the node has of a resource that has the least, of those that can train."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = [some.get(resource, 0.0) for some in resources if some.get("CPU")]
    if not found:
        raise InputError("no node of the cluster has CPUs for trainings; start one first")
    return min(found)
