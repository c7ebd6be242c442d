"""What a training step sees: a function of (seed, pass, stage, epoch, step), the same on every rank.

Shapes: B queries, N documents, P positive pairs, J judgements of the step's queries.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from smec_core.config import TrainConfig
from smec_core.data.grades import loss_grades
from smec_core.data.judgements import Judgements
from smec_core.evaluation.dev_set import held_out_docs


def steps_per_epoch(items: int, batch_size: int) -> int:
    """Steps that see every item once."""
    return math.ceil(items / batch_size)


class Batch(NamedTuple):
    """One global step.

    Attributes:
        query_row_B: rows of the queries.
        doc_row_N: rows of the documents, none twice.
        pair_query_P: place in `query_row_B` of each positive pair.
        pair_doc_P: place in `doc_row_N` of each positive pair.
        weight_PN: grade of the pair's document less the grade of document n for that query, at least 0; see
            `loss_grades`.
    """

    query_row_B: np.ndarray
    doc_row_N: np.ndarray
    pair_query_P: np.ndarray
    pair_doc_P: np.ndarray
    weight_PN: np.ndarray


class LabelledSampler:
    """Every judged query once an epoch, with some of its judged documents and documents from the sample."""

    def __init__(self, judgements: Judgements, drawn: int, config: TrainConfig) -> None:
        self.judgements = judgements
        self.grade_J = loss_grades(judgements)
        self.drawn = drawn
        self.config = config
        self.epoch_steps = steps_per_epoch(len(judgements), config.batch_size)

    def epoch(self, key: tuple[int, ...]) -> Iterator[Batch]:
        """The steps of one epoch; `key` holds the seed and names pass, stage and epoch."""
        order_Q = np.random.default_rng(key).permutation(len(self.judgements))
        for step in range(self.epoch_steps):
            query_B = order_Q[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            yield self._batch(query_B, np.random.default_rng((*key, step)))

    def _batch(self, query_B: np.ndarray, rng: np.random.Generator) -> Batch:
        judged = self.judgements
        begin_B, end_B = judged.offset_Q1[query_B], judged.offset_Q1[query_B + 1]
        owner_J = np.repeat(np.arange(len(query_B)), end_B - begin_B)
        within_J = np.arange(len(owner_J)) - np.repeat(np.cumsum(end_B - begin_B) - (end_B - begin_B), end_B - begin_B)
        judgement_J = begin_B[owner_J] + within_J
        doc_row_J, grade_J = judged.doc_row_J[judgement_J], self.grade_J[judgement_J]

        lot_J = rng.random(len(owner_J))
        positive = _first_of_each(owner_J, lot_J, grade_J > 0, self.config.positives)
        hard = _first_of_each(owner_J, lot_J, grade_J <= 0, self.config.hard_negatives)
        random_docs = rng.integers(0, self.drawn, self.config.negatives)
        doc_row_N = np.unique(np.concatenate([doc_row_J[positive], doc_row_J[hard], random_docs]))

        place_J = np.searchsorted(doc_row_N, doc_row_J).clip(max=len(doc_row_N) - 1)
        present_J = doc_row_N[place_J] == doc_row_J
        # judgements of the step's queries on all documents of the step, whichever query brought them in
        grade_BN = np.zeros((len(query_B), len(doc_row_N)), np.float32)
        grade_BN[owner_J[present_J], place_J[present_J]] = np.maximum(grade_J[present_J], 0)
        pair_query_P, pair_doc_P = owner_J[positive], place_J[positive]
        weight_PN = np.maximum(grade_J[positive][:, None] - grade_BN[pair_query_P], 0)
        own_B = judged.own_doc_row_Q
        if own_B is not None:
            weight_PN[doc_row_N[None, :] == own_B[query_B][pair_query_P][:, None]] = 0
        return Batch(judged.query_row_Q[query_B], doc_row_N, pair_query_P, pair_doc_P, weight_PN)


class UnlabelledSampler:
    """Every document of the sample but the held-out ones once an epoch, as anchors of the unsupervised loss."""

    def __init__(self, doc_row: np.ndarray, config: TrainConfig) -> None:
        self.doc_row = doc_row
        self.batch_size = config.batch_size + config.negatives
        self.epoch_steps = steps_per_epoch(len(doc_row), self.batch_size)

    def epoch(self, key: tuple[int, ...]) -> Iterator[Batch]:
        """The steps of one epoch; `key` holds the seed and names pass, stage and epoch."""
        order = self.doc_row[np.random.default_rng(key).permutation(len(self.doc_row))]
        none, no_weight = np.empty(0, np.int64), np.empty((0, 0), np.float32)
        for step in range(self.epoch_steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield Batch(none, np.sort(rows), none, none, no_weight)


def make_sampler(
    config: TrainConfig, drawn: int, train: Judgements | None, dev: Judgements | None, with_dev: bool
) -> tuple[LabelledSampler | UnlabelledSampler, np.ndarray]:
    """What a pass learns from, and the rows of documents that it holds out.

    Args:
        config: settings of the method.
        drawn: documents of the sample, see `Rows`.
        train: judgements to learn from; None to learn without judgements.
        dev: judgements to choose by.
        with_dev: whether dev is held out; otherwise the pass learns from it, too.
    """
    nothing = np.empty(0, np.int64)
    if train is not None:
        labels = train if with_dev or dev is None else train.merge(dev)
        return LabelledSampler(labels.with_positives(), drawn, config), nothing
    held_out = nothing
    if with_dev:
        rng = np.random.default_rng((config.seed, 2))
        held_out = np.sort(rng.choice(drawn, held_out_docs(drawn, config), replace=False))
    return UnlabelledSampler(np.setdiff1d(np.arange(drawn), held_out), config), held_out


def _first_of_each(owner_J: np.ndarray, lot_J: np.ndarray, eligible_J: np.ndarray, count: int) -> np.ndarray:
    """Places of up to `count` eligible items of each owner, those with the lowest lots."""
    place = np.flatnonzero(eligible_J)
    place = place[np.lexsort((lot_J[place], owner_J[place]))]
    owner = owner_J[place]
    start = np.searchsorted(owner, owner, side="left")
    return place[np.arange(len(place)) - start < count]
