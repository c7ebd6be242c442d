"""Judgements out of the full vectors themselves, where nobody has judged any train query.

What a search by all dims finds for a query, fewer dims are to find, too: the nearest documents of each query that is in
no split become its relevant ones, the nearest with the highest grade. A training learns from them, and chooses by
them, as it does with judgements; its stages are rotations, so that the cosines of all dims, its teacher, stay.

Shapes: Q queries, k neighbours, K rows that are kept.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset, hash_share
from smec_core.data.fingerprint import hash_ids, keys_of
from smec_core.data.folds import Labels, held_out_as_dev
from smec_core.data.judgements import Judgements
from smec_core.data.scan import Scanned
from smec_core.data.uri import public_uri
from smec_core.data.vectors import aligned
from smec_core.distributed.resident import BLOCK_ROWS
from smec_core.errors import InputError
from smec_core.evaluation.metrics import PrefixSearch
from smec_core.training.schedule import TrainingShape

FULL_VECTORS = "full vectors"
"""In records: who has taught where there are no judgements."""
NEIGHBOURS = 3
LEAST_DOCS = 3
LEAST_QUERIES = 100
"""Fewer teach less than the neighbours of documents do."""
MOST_QUERIES = 10_000
MOST_DOCS = 100_000
"""More of either would take minutes to search, and teach little more."""


def is_self_taught(dataset: Dataset, config: TrainConfig) -> bool:
    """Whether a training on a dataset learns from what the full vectors find."""
    has_judgements = "train" in dataset.splits
    return not has_judgements and config.unsupervised != "cosines" and dataset.unjudged_queries >= LEAST_QUERIES


def shape_unread(dataset: Dataset, config: TrainConfig) -> TrainingShape:
    """What decides the plan, but for the lengths of epochs, before the vectors are read.

    Raises:
        InputError: too few documents, or judgements, to train on.
    """
    if dataset.corpus.rows < LEAST_DOCS:
        raise InputError(
            f"{public_uri(dataset.uri)}: the corpus has {dataset.corpus.rows} document(s); a training needs at least "
            f"{LEAST_DOCS}"
        )
    taught = is_self_taught(dataset, config)
    return TrainingShape(dataset.dim, taught or dataset.train_judgements() is not None, is_self_taught=taught)


def self_taught(docs: Scanned, queries: Scanned, is_free_K: np.ndarray, config: TrainConfig) -> Labels:
    """Judgements to learn from and to choose by, by places among the rows that are kept.

    Args:
        docs: documents; the first of the sample are searched.
        queries: queries.
        is_free_K: which of the queries nobody has judged. Of many, those with the lowest hashes are taken.
        config: settings of the method.
    """
    row_Q = np.flatnonzero(is_free_K)
    # in the order by which a scan samples
    key_Q = keys_of(hash_ids(queries.id_K))[row_Q]
    row_Q = np.sort(row_Q[np.argsort(key_Q, kind="stable")[:MOST_QUERIES]])
    share_Q = np.array([hash_share(name) for name in queries.id_K.take(pa.array(row_Q)).to_pylist()])
    own_row_K = None
    if config.exclude_self:
        own_row_K = pc.fill_null(pc.index_in(queries.id_K, value_set=docs.id_K), -1).to_numpy().astype(np.int64)
    found_Qk = _found(docs, queries, row_Q, own_row_K)
    is_found_Qk = found_Qk >= 0
    grade_k = np.arange(NEIGHBOURS, 0, -1, dtype=np.float32)
    judged = Judgements.from_pairs(
        np.broadcast_to(row_Q[:, None], found_Qk.shape)[is_found_Qk],
        found_Qk[is_found_Qk],
        np.broadcast_to(grade_k, found_Qk.shape)[is_found_Qk],
        own_row_K,
    )
    return held_out_as_dev(judged, share_Q, config) if config.guard else (judged, None)


def _found(docs: Scanned, queries: Scanned, row_Q: np.ndarray, own_row_K: np.ndarray | None) -> np.ndarray:
    """The nearest documents (Q, k) of the named queries, -1 where there are fewer."""
    before = torch.get_num_threads()
    # the last bits of a product depend on it, and with them which of two equally near documents comes first
    torch.set_num_threads(1)
    try:
        own_row_Q = None if own_row_K is None else torch.from_numpy(own_row_K[row_Q])
        dim = queries.x_KD.shape[1]
        search = PrefixSearch(aligned(queries.x_KD[row_Q]), [dim], NEIGHBOURS, own_row_Q)
        for row_N in torch.arange(min(docs.drawn or len(docs.x_KD), MOST_DOCS)).split(BLOCK_ROWS):
            search.add(row_N, aligned(docs.x_KD[row_N[0] : row_N[-1] + 1]))
        return search.results()[dim].numpy()
    finally:
        torch.set_num_threads(before)
