"""Dev scores of a nested vector, and the guard that keeps the best state of a stage.

Shapes: Q dev queries, L dev documents of this rank, D input dims.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.group import Group
from smec_core.judgements import Judgements
from smec_core.metrics import PrefixSearch, gains_of, ndcg, recall
from smec_core.resident import ResidentRows

NEIGHBOURS = 10
HELD_OUT_DOCS = 1000

Scores = dict[int, float]
QueryScores = dict[int, Tensor]


class DevSet:
    """Queries and documents that training never learns from, as the nested vectors of the chain so far.

    With judgements a prefix is scored by nDCG@10; without, by the share of each held-out document's ten nearest
    documents (by the frozen embeddings) that are also its ten nearest at the prefix.

    Attributes:
        measure: name of the score, `ndcg@10` or `neighbour_recall@10`.
    """

    def __init__(
        self,
        q_QD: Tensor,
        d_LD: Tensor,
        row_L: Tensor,
        judgements: Judgements | None,
        own_row_Q: Tensor | None,
        group: Group,
    ) -> None:
        self.q_QD = q_QD
        self.d_LD = d_LD
        self._row_L = row_L
        self._own_row_Q = own_row_Q
        self._group = group
        self.measure = "ndcg@10" if judgements is not None else f"neighbour_recall@{NEIGHBOURS}"
        self._judgements = self._full_neighbours() if judgements is None else judgements

    def _full_neighbours(self) -> Judgements:
        dim = self.q_QD.shape[1]
        rows = self._search(self.q_QD, self.d_LD, [dim])[dim].cpu().numpy()
        query = np.repeat(np.arange(len(rows)), rows.shape[1])
        found = rows.reshape(-1) >= 0
        doc = rows.reshape(-1)[found]
        return Judgements.from_pairs(query[found], doc, np.ones(len(doc), np.float32))

    def _search(self, q_QD: Tensor, d_LD: Tensor, dims: Sequence[int]) -> dict[int, Tensor]:
        search = PrefixSearch(q_QD, dims, NEIGHBOURS, self._own_row_Q)
        search.add(self._row_L, d_LD)
        return search.results(self._group)

    def to(self, device: torch.device) -> "DevSet":
        """Moves the vectors to where they are scored."""
        self.q_QD, self.d_LD, self._row_L = self.q_QD.to(device), self.d_LD.to(device), self._row_L.to(device)
        self._own_row_Q = None if self._own_row_Q is None else self._own_row_Q.to(device)
        return self

    @torch.no_grad()
    def score(self, apply: Callable[[Tensor], Tensor], d_in: int, dims: Sequence[int]) -> QueryScores:
        """Scores (Q) of prefixes with a stage put on top of the first `d_in` dims. Collective.

        Args:
            apply: the stage; takes and gives (N, d_in).
            d_in: dims of the kept block.
            dims: prefixes to score.
        """
        q_QD, d_LD = (torch.cat([apply(z[:, :d_in]), z[:, d_in:]], dim=1) for z in (self.q_QD, self.d_LD))
        values = {}
        for dim, row_Qk in self._search(q_QD, d_LD, dims).items():
            gain_Qk = gains_of(row_Qk, self._judgements)
            is_ranked = self.measure == "ndcg@10"
            values[dim] = (
                ndcg(gain_Qk, self._judgements) if is_ranked else recall(gain_Qk, self._judgements, NEIGHBOURS)
            )
        return values

    @torch.no_grad()
    def advance(self, apply: Callable[[Tensor], Tensor], d_in: int) -> None:
        """Puts a trained stage on top for good."""
        self.q_QD = torch.cat([apply(self.q_QD[:, :d_in]), self.q_QD[:, d_in:]], dim=1)
        self.d_LD = torch.cat([apply(self.d_LD[:, :d_in]), self.d_LD[:, d_in:]], dim=1)


def dev_rows(judgements: Judgements | None, held_out: np.ndarray, corpus_rows: int, config: TrainConfig) -> np.ndarray:
    """Global rows of the documents that dev is scored against, ascending: at most config.dev_corpus and all judged."""
    if corpus_rows <= config.dev_corpus:
        return np.arange(corpus_rows)
    needed = held_out if judgements is None else np.unique(judgements.doc_row_J)
    sample = np.random.default_rng((config.seed, 1)).choice(corpus_rows, config.dev_corpus, replace=False)
    others = sample[~np.isin(sample, needed)][: max(config.dev_corpus - len(needed), 0)]
    return np.sort(np.concatenate([needed, others]))


def make_dev_set(
    queries: ResidentRows,
    docs: ResidentRows,
    judgements: Judgements | None,
    held_out: np.ndarray,
    config: TrainConfig,
    group: Group,
) -> DevSet:
    """Gathers the dev queries, and this rank's share of the dev documents. Collective.

    Args:
        queries: frozen query vectors.
        docs: frozen document vectors.
        judgements: those of the dev queries; None to score by neighbours of held-out documents.
        held_out: rows of the held-out documents where there are no judgements.
        config: sizes and seed.
        group: the ranks that share the documents.
    """
    rows = torch.from_numpy(dev_rows(judgements, held_out, docs.rows, config))
    mine = rows[(rows >= docs.start) & (rows < docs.start + len(docs.local_LD))].to(docs.local_LD.device)
    d_LD = docs.local_LD.index_select(0, mine - docs.start)
    if judgements is None:
        own = torch.from_numpy(held_out).to(d_LD.device)
        return DevSet(docs.take(own), d_LD, mine, None, own, group)
    query_row_Q = torch.from_numpy(judgements.query_row_Q).to(d_LD.device)
    return DevSet(queries.take(query_row_Q), d_LD, mine, judgements, None, group)


def is_real(gain_Q: Tensor) -> bool:
    """Whether a mean gain over dev queries is more than its standard error: the best of many states gains by luck."""
    return len(gain_Q) > 1 and bool(gain_Q.mean() > gain_Q.std() / math.sqrt(len(gain_Q)))


class Guard:
    """Convergence of one candidate of a stage: what state was best on dev, and whether to go on.

    A state counts by the sum of its scores at the new prefix and the previous one. The state before the first step
    always counts. A later one counts only where its gain over that state is real (see `is_real`) and no earlier
    configured prefix falls below its floor.

    Attributes:
        best_score: sum of the two mean scores of the best state.
        best_epoch: epochs after which it was reached.
        best_scores: its mean score at every scored prefix.
        best_Q: sum of the two scores of each dev query.
    """

    def __init__(self, new: int, previous: int, floors: Scores, patience: int) -> None:
        """Prepares the guard of a stage.

        Args:
            new: the prefix in training.
            previous: the prefix that the stage takes.
            floors: the least score allowed at each earlier configured prefix.
            patience: epochs without gain after which to stop.
        """
        self._new, self._previous, self._floors, self._patience = new, previous, floors, patience
        self.best_score = -math.inf
        self.best_epoch = 0
        self.best_scores: Scores = {}
        self.best_Q = self._start_Q = torch.empty(0)
        self._epoch = 0

    def update(self, epoch: int, values: QueryScores) -> tuple[bool, float]:
        """Takes the scores after `epoch` epochs; gives whether this is the best state so far, and what it counts by."""
        self._epoch = epoch
        scores = {dim: value_Q.mean().item() for dim, value_Q in values.items()}
        total_Q = values[self._new] + values[self._previous]
        if epoch == 0:
            self._start_Q = total_Q
        is_harmless = all(scores[dim] >= floor for dim, floor in self._floors.items())
        total = scores[self._new] + scores[self._previous]
        better = total > self.best_score and (epoch == 0 or (is_real(total_Q - self._start_Q) and is_harmless))
        if better:
            self.best_score, self.best_epoch, self.best_scores, self.best_Q = total, epoch, scores, total_Q
        return better, total

    @property
    def stopped(self) -> bool:
        """Whether the last `patience` epochs brought no gain."""
        return self._epoch - self.best_epoch >= self._patience
