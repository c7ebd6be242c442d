"""Exact search at every prefix of a nested vector, and the retrieval measures of its result.

Shapes: Q queries, N documents of a block, D dims of the nested vector, k results.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from smec_core.data.judgements import Judgements
from smec_core.distributed.group import Group


class Matrices:
    """Two matrices to write over, the same memory for every block: new memory costs about as much as a product."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def take(self, rows: int, columns: int, like: Tensor) -> list[Tensor]:
        """Both (rows, columns), with whatever they hold, of the kind and on the device of a tensor."""
        size = rows * columns
        held = self._buffers[0] if self._buffers else like.new_empty(0)
        if len(held) < size or (held.device, held.dtype) != (like.device, like.dtype):
            self._buffers = [like.new_empty(size) for _ in range(2)]
        return [buffer[:size].view(rows, columns) for buffer in self._buffers]


class PrefixSearch:
    """Top-k documents of each query at several prefixes, over documents that come block by block.

    A longer prefix reuses the products of the shorter ones, so all prefixes cost one product at the longest.
    """

    def __init__(
        self,
        q_QD: Tensor,
        dims: Sequence[int],
        k: int,
        own_row_Q: Tensor | None = None,
        matrices: Matrices | None = None,
    ) -> None:
        """Prepares a search.

        Args:
            q_QD: nested query vectors, any scale.
            dims: the prefixes.
            k: results per query.
            own_row_Q: a global row never to return for each query (the query's own), -1 for none.
            matrices: memory to work in; its own by default.
        """
        self.q_QD = q_QD
        self.dims = sorted(dims)
        self.k = k
        self.own_row_Q = own_row_Q
        empty = (torch.full((len(q_QD), k), -torch.inf), torch.full((len(q_QD), k), -1, dtype=torch.int64))
        self.best = {dim: tuple(t.to(q_QD.device) for t in empty) for dim in self.dims}
        self._matrices = matrices or Matrices()

    @torch.no_grad()
    def add(self, row_N: Tensor, d_ND: Tensor) -> None:
        """Searches a block of nested document vectors with their global rows."""
        dot_QN, other_QN = self._matrices.take(len(self.q_QD), len(d_ND), self.q_QD)
        square_N = torch.zeros(len(d_ND), device=self.q_QD.device)
        own_QN = None if self.own_row_Q is None else self.own_row_Q[:, None] == row_N[None, :]
        below = 0
        for dim in self.dims:
            product_QN = torch.mm(self.q_QD[:, below:dim], d_ND[:, below:dim].T, out=other_QN if below else dot_QN)
            if below:
                dot_QN += product_QN
            square_N = square_N + d_ND[:, below:dim].square().sum(1)
            below = dim
            sim_QN = torch.mul(dot_QN, square_N.clamp_min(1e-24).rsqrt(), out=other_QN)
            if own_QN is not None:
                sim_QN.masked_fill_(own_QN, -torch.inf)
            score_Qk, column_Qk = sim_QN.topk(min(self.k, len(row_N)), dim=1)
            self.best[dim] = _best_of([self.best[dim], (score_Qk, row_N[column_Qk])], self.k)

    def fresh(self, matrices: Matrices) -> "PrefixSearch":
        """A new, empty search that shares this one's matrices; the two must take turns."""
        return PrefixSearch(self.q_QD, self.dims, self.k, self.own_row_Q, matrices)

    def merge(self, best: dict[int, tuple[Tensor, ...]]) -> None:
        """Takes what the same search found best in other documents."""
        self.best = {dim: _best_of([self.best[dim], best[dim]], self.k) for dim in self.dims}

    def results(self, group: Group | None = None) -> dict[int, Tensor]:
        """Global rows (Q, k) of the best documents at each prefix, best first, -1 where there were fewer than k.

        Collective where a group is given: every rank searched its own documents, and gets the merged result.
        """
        merged = {}
        for dim, (score_Qk, row_Qk) in self.best.items():
            if group is not None and group.size > 1:
                parts = list(zip(group.gather(score_Qk), group.gather(row_Qk), strict=True))
                score_Qk, row_Qk = _best_of(parts, self.k)
            merged[dim] = torch.where(score_Qk > -torch.inf, row_Qk, -1)
        return merged


def _best_of(parts: Sequence[tuple[Tensor, ...]], k: int) -> tuple[Tensor, Tensor]:
    score = torch.cat([part[0] for part in parts], dim=1)
    row = torch.cat([part[1] for part in parts], dim=1)
    score, position = score.topk(k, dim=1)
    return score, row.gather(1, position)


def gains_of(row_Qk: Tensor, judgements: Judgements) -> Tensor:
    """Grade (Q, k) of each result, 0 where it is not judged or judged below 0; row i answers judged query i."""
    if not len(judgements.doc_row_J):
        return torch.zeros(row_Qk.shape)
    stride = int(judgements.doc_row_J.max()) + 1
    key_J = judgements.query_J * stride + judgements.doc_row_J
    rows = row_Qk.cpu().numpy()
    key_Qk = np.arange(len(rows))[:, None] * stride + np.clip(rows, 0, None)
    place = np.searchsorted(key_J, key_Qk).clip(max=len(key_J) - 1)
    known = (key_J[place] == key_Qk) & (rows >= 0) & (rows < stride)
    return torch.from_numpy(np.where(known, np.maximum(judgements.score_J[place], 0), 0.0).astype(np.float32))


def ndcg(gain_Qk: Tensor, judgements: Judgements, k: int = 10) -> Tensor:
    """nDCG@k (Q) with linear gains and log2 discount, as trec_eval has it."""
    discount_k = 1 / torch.log2(torch.arange(k, dtype=torch.float64) + 2)
    width = gain_Qk[:, :k].shape[1]
    dcg_Q = gain_Qk[:, :k].double() @ discount_k[:width]
    # judgements by query and then by falling grade: the place within the query is the ideal rank
    order = np.lexsort((-judgements.score_J, judgements.query_J))
    rank_J = np.arange(len(order)) - judgements.offset_Q1[judgements.query_J]
    top = rank_J < k
    gain = torch.from_numpy(np.maximum(judgements.score_J[order], 0)[top]).double()
    ideal_Q = torch.zeros(len(judgements), dtype=torch.float64)
    ideal_Q.index_add_(0, torch.from_numpy(judgements.query_J[top]), gain * discount_k[torch.from_numpy(rank_J[top])])
    return torch.where(ideal_Q > 0, dcg_Q / ideal_Q.clamp_min(1e-12), 0)


def recall(gain_Qk: Tensor, judgements: Judgements, k: int) -> Tensor:
    """Share (Q) of a query's relevant documents among its first k results."""
    relevant_Q = torch.zeros(len(judgements), dtype=torch.float64)
    relevant_Q.index_add_(0, torch.from_numpy(judgements.query_J), torch.from_numpy(judgements.score_J > 0).double())
    return (gain_Qk[:, :k] > 0).sum(1) / relevant_Q.clamp_min(1)


def reciprocal_rank(gain_Qk: Tensor, k: int = 10) -> Tensor:
    """1 / rank (Q) of the first relevant result among the first k, 0 where there is none."""
    found_Qk = gain_Qk[:, :k] > 0
    first_Q = found_Qk.int().argmax(1)
    return torch.where(found_Qk.any(1), 1.0 / (first_Q + 1), 0.0).double()


MEASURES = ("ndcg@10", "recall@10", "recall@100", "mrr@10")
SEARCH_DEPTH = 100


def measure_queries(row_Qk: Tensor, judgements: Judgements) -> dict[str, Tensor]:
    """Every measure in MEASURES of each query (Q), for results (Q, k) of at least SEARCH_DEPTH."""
    gain_Qk = gains_of(row_Qk, judgements)
    values = (
        ndcg(gain_Qk, judgements),
        recall(gain_Qk, judgements, 10),
        recall(gain_Qk, judgements, 100),
        reciprocal_rank(gain_Qk),
    )
    return dict(zip(MEASURES, values, strict=True))


def measure(row_Qk: Tensor, judgements: Judgements) -> dict[str, float]:
    """Their means over the queries."""
    return {name: value_Q.mean().item() for name, value_Q in measure_queries(row_Qk, judgements).items()}
