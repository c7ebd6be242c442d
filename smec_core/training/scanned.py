"""What a training learns from: judged rows and a sample, out of one scan of the data.

Shapes: K rows that are kept, D dims.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch

from smec_core.config import SAMPLE_ROWS, SET_BY_DATA, TrainConfig
from smec_core.data.dataset import MIN_TRAIN_QUERIES, Dataset, hash_share
from smec_core.data.fingerprint import hash_ids
from smec_core.data.folds import Labels
from smec_core.data.ids import TableIds
from smec_core.data.parquet import EmbeddingTable, unit_rows
from smec_core.data.scan import Keep, Scanned
from smec_core.data.vectors import aligned
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.errors import InputError
from smec_core.training.context import TrainingData
from smec_core.training.schedule import TrainingShape
from smec_core.training.self_taught import FULL_VECTORS, MOST_QUERIES, is_self_taught, self_taught
from smec_core.training.trainer import settings_used

MOST_SAMPLED = 1_000_000
"""Documents that a training draws from by default."""
COPIES = 2.5
"""Copies of the rows that are held at once: as they are, the first stage's block of them, half of it for the next."""

Scan = Callable[[EmbeddingTable, Keep, np.ndarray | None], Scanned]
"""Reads a table once: what of it to keep, and where all rows are kept the hashes of all ids in their order."""
Say = Callable[[str], None]


@dataclass
class Facts:
    """What is known of data without their vectors.

    Attributes:
        dim: D.
        drawn: how many documents the sample has.
        labels: judgements to learn from and to choose by, by places among the rows that are kept.
        is_whole: whether all documents are kept.
        is_self_taught: whether these judgements are what the full vectors find, see `self_taught`.
    """

    dim: int
    drawn: int
    labels: Labels
    is_whole: bool
    is_self_taught: bool

    def shape(self, config: TrainConfig) -> TrainingShape:
        """The facts that decide the plan."""
        return TrainingShape.of(self.dim, self.drawn, *self.labels, config, self.is_self_taught)

    def used(self, config: TrainConfig, is_warm: bool = False) -> dict[str, Any]:
        """What the settings come to whose default depends on the data."""
        shape = self.shape(config)
        found = settings_used(shape.without_dev() if is_warm else shape, config)
        return {name: getattr(found, name) for name in SET_BY_DATA} | {SAMPLE_ROWS: self.drawn}

    def training_data(
        self, docs: torch.Tensor, queries: torch.Tensor, moment: torch.Tensor | None, node: Node
    ) -> TrainingData:
        """The rows as a training takes them.

        Args:
            docs: unit vectors of documents.
            queries: those of queries.
            moment: mean of x x^T over all documents; None where `docs` are all.
            node: this rank's machine and device.
        """
        rows = ResidentRows(docs, node, self.drawn), ResidentRows(queries, node)
        return TrainingData(*rows, *self.labels, node, moment, self.is_self_taught)


@dataclass
class ScannedData(Facts):
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
        taught = {"taught_by": FULL_VECTORS} if self.is_self_taught else {}
        if self.is_whole:
            return taught
        return taught | {"sample": [self.drawn, *(0 if judged is None else len(judged) for judged in self.labels)]}

    def has_all_rows(self, dataset: Dataset) -> bool:
        """Whether all rows of the tables are kept, as it takes to score models on them."""
        return all(
            len(one.x_KD) == table.rows for one, table in zip((self.docs, self.queries), dataset.tables, strict=True)
        )

    def load(self, node: Node) -> TrainingData:
        """The rows for a training in this process."""
        moment = None if self.is_whole else aligned(self.docs.moment_DD)
        return self.training_data(aligned(self.docs.x_KD), aligned(self.queries.x_KD), moment, node)


@dataclass(frozen=True)
class WantedRows:
    """Which rows of a dataset a scan keeps.

    Attributes:
        dataset: the dataset.
        labels: judgements to learn from and to choose by, by rows of the tables.
        docs: what is kept of the corpus.
        queries: what is kept of the queries.
        config: settings of the method.
    """

    dataset: Dataset
    labels: Labels
    docs: Keep
    queries: Keep
    config: TrainConfig

    @classmethod
    def of(cls, dataset: Dataset, config: TrainConfig, memory_budget: float, all_queries: bool, warn: Say) -> Self:
        """Those that a training learns from.

        Args:
            dataset: what to learn from.
            config: settings of the method.
            memory_budget: GiB of a node's memory that vectors may take.
            all_queries: whether queries that nobody has judged are kept, too.
            warn: told where judgements have no room.

        Raises:
            InputError: there is too little memory.
        """
        rows, most = dataset.corpus.rows, _most_docs(dataset, config, memory_budget)
        labels = dataset.training_split(config)
        if most < rows:
            labels = _within(dataset, labels, most // 4, warn)
        judged = _distinct(one.doc_row_J for one in labels if one is not None)
        sample = config.sample_rows or min(MOST_SAMPLED, most - len(judged) * (most < rows))
        if min(sample + len(judged), rows) > most:
            raise InputError(
                f"sample_rows: {sample:,} documents, and {len(judged):,} judged ones, are more than the {most:,} that "
                "memory_budget has room for; set one lower, or the other higher"
            )
        keep = Keep(rows, sample, _hashes(dataset.ids[0], judged))
        keep_queries = Keep(dataset.queries.rows, dataset.queries.rows)
        if not all_queries:
            asked, some = _distinct(one.query_row_Q for one in labels if one is not None), 0
            if is_self_taught(dataset, config):
                # in which there are enough, even if all that are judged have the lowest hashes
                some = MOST_QUERIES + dataset.queries.rows - dataset.unjudged_queries
            keep_queries = Keep(dataset.queries.rows, some, _hashes(dataset.ids[1], asked))
        return cls(dataset, labels, keep, keep_queries, config)

    @classmethod
    def every(cls, dataset: Dataset, config: TrainConfig) -> Self:
        """All: where models are scored on them, too."""
        docs, queries = (Keep(table.rows, table.rows) for table in dataset.tables)
        return cls(dataset, dataset.training_split(config), docs, queries, config)

    @property
    def kept(self) -> int:
        """How many rows are kept at most."""
        return sum(min(keep.rows, keep.sample + len(keep.hashes)) for keep in (self.docs, self.queries))

    def read(self, scan: Scan, say: Say) -> ScannedData:
        """Reads the dataset once; it then has its fingerprint.

        Args:
            scan: reads a table.
            say: told what has been read.

        Raises:
            InputError: a row is bad.
            SmecError: the data were changed since they were opened, or cannot be read.
        """
        started, dataset = time.perf_counter(), self.dataset
        doc_ids, query_ids = dataset.ids
        docs = scan(dataset.corpus, self.docs, _order(dataset.corpus, doc_ids, self.docs))
        queries = Scanned.nothing(dataset.dim)
        if dataset.queries.rows:
            queries = scan(dataset.queries, self.queries, _order(dataset.queries, query_ids, self.queries))
        dataset.take_checks([docs.check, queries.check])
        dataset.check_unchanged()
        places = self.labels
        if not (self.docs.is_whole and self.queries.is_whole):
            of_queries, of_docs = _rows_of(queries, self.queries, query_ids), _rows_of(docs, self.docs, doc_ids)
            # an epoch goes by their order, which is that of the table whether all are kept or not
            order_K = np.argsort(of_queries)
            if not self.queries.is_whole:
                of_queries = of_queries[order_K]
                queries = replace(queries, id_K=queries.id_K.take(pa.array(order_K)), x_KD=queries.x_KD[order_K])
            train, dev = (None if one is None else one.renumbered(of_queries, of_docs) for one in self.labels)
            places = train, dev
        seconds = time.perf_counter() - started
        told = f"{dataset.corpus.rows:,} documents and {dataset.queries.rows:,} queries read in {seconds:.1f} s"
        if not self.docs.is_whole:
            more = len(docs.id_K) - docs.drawn
            told += f"; of the documents {docs.drawn:,} are the sample, and {more:,} more are judged"
        say(told)
        taught = is_self_taught(dataset, self.config)
        if taught:
            is_free_K = self._is_free(queries)
            count = min(int(is_free_K.sum()), MOST_QUERIES)
            say(f"of {count:,} queries without judgements, fewer dims learn to find what all dims find")
            places = self_taught(docs, queries, is_free_K, self.config)
        facts = (dataset.dim, docs.drawn, places, self.docs.is_whole, taught)
        return ScannedData(*facts, docs, queries, self.labels, seconds)

    def _is_free(self, queries: Scanned) -> np.ndarray:
        """Which of the queries that are kept (K) no split names."""
        named = _distinct(judged.query_row_Q for judged in self.dataset.splits.values())
        if self.queries.is_whole:
            return ~np.isin(np.arange(self.queries.rows), named)
        return ~np.isin(self.dataset.ids[1].rows_of(queries.id_K), named)


def load_training_data(dataset: Dataset, config: TrainConfig, device: torch.device | str = "cpu") -> TrainingData:
    """Reads a dataset whole.

    Example:
        >>> data = load_training_data(Dataset.open("data/products"), config)
        >>> trained = train(data, config, NullTracker())
    """
    node = Node(device=torch.device(device))
    docs, queries = (read_resident(table, node) for table in (dataset.corpus, dataset.queries))
    return TrainingData(docs, queries, *dataset.training_split(config), node)


def read_resident(table: EmbeddingTable, node: Node) -> ResidentRows:
    """Reads a table's rows as unit vectors, and checks every one."""
    matrix_ND = torch.empty(table.rows, table.dim)
    for block in table.blocks():
        matrix_ND[block.row : block.row + len(block.ids)] = torch.from_numpy(unit_rows(block.vectors_ND))
    return ResidentRows(matrix_ND, node)


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
    asked = sum(map(len, dataset.splits.values())) + MOST_QUERIES * is_self_taught(dataset, config)
    queries = COPIES * min(dataset.queries.rows, asked) * row_bytes
    drawn = min(rows, config.sample_rows or MOST_SAMPLED)
    has_teacher = config.copied_docs(drawn) > config.dev_docs(drawn)
    dev = config.dev_docs(drawn) * row_bytes
    # without a limit it is infinity
    most = int(min((memory_budget * 2**30 - queries - dev) / ((COPIES + has_teacher) * row_bytes), sys.maxsize))
    if most < min(rows, config.dev_docs(drawn), 1000):
        raise InputError(
            f"memory_budget: {memory_budget:g} GiB have room for {max(most, 0):,} documents of {dataset.dim} dims "
            f"beside {config.dev_docs(drawn):,} for dev (dev_corpus), too few to learn from; give more"
        )
    return most


def _within(dataset: Dataset, labels: Labels, most: int, warn: Say) -> Labels:
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
