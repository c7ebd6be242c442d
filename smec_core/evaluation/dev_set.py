"""Dev scores of a nested vector.

Shapes: Q dev queries, L dev documents of this rank, D input dims.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.data.folds import is_seen
from smec_core.data.judgements import Judgements
from smec_core.data.seen import LEAST_PART, LEAST_QUERIES
from smec_core.distributed.group import rows_of_rank
from smec_core.distributed.resident import BLOCK_ROWS, Node, Rows
from smec_core.evaluation.metrics import PrefixSearch, gains_of, ndcg, recall

NEIGHBOURS = 10
AGREEMENT = "agreement@10"
"""nDCG@10 where what the full vectors find takes the place of judgements."""


HELD_OUT_DOCS = 1000


Scores = dict[int, float]


QueryScores = dict[int, Tensor]


class DevSet:
    """Queries and documents that training never learns from, as the nested vectors of the chain so far.

    With judgements a prefix is scored by nDCG@10; without, by the share of each held-out document's ten nearest
    documents (by the frozen embeddings) that are also its ten nearest at the prefix.

    Attributes:
        measure: name of the score, `ndcg@10`, `neighbour_recall@10`, or as the caller names it.
        parts: parts of the queries, and how much each query counts.
    """

    def __init__(
        self,
        q_QD: Tensor,
        d_LD: Tensor,
        row_L: Tensor,
        judgements: Judgements | None,
        own_row_Q: Tensor | None,
        node: Node,
        parts: "DevParts | None" = None,
    ) -> None:
        self.parts = DevParts([], None) if parts is None else parts
        self._q_QD = q_QD.to(node.device)
        self._d_LD = d_LD
        self._row_L = row_L
        self._own_row_Q = None if own_row_Q is None else own_row_Q.to(node.device)
        self._node, self._group, self._device = node, node.group, node.device
        self._is_ranked = judgements is not None
        self.measure = "ndcg@10" if judgements is not None else f"neighbour_recall@{NEIGHBOURS}"
        self._judgements = self._full_neighbours() if judgements is None else judgements

    def _full_neighbours(self) -> Judgements:
        dim = self._q_QD.shape[1]
        rows = self._search(lambda z_ND: z_ND, dim, [dim])[dim].cpu().numpy()
        query = np.repeat(np.arange(len(rows)), rows.shape[1])
        found = rows.reshape(-1) >= 0
        doc = rows.reshape(-1)[found]
        return Judgements.from_pairs(query[found], doc, np.ones(len(doc), np.float32))

    def _search(self, apply: Callable[[Tensor], Tensor], d_in: int, dims: Sequence[int]) -> dict[int, Tensor]:
        top = max(dims)
        search = PrefixSearch(_on_top(apply, self._q_QD, d_in, top), dims, NEIGHBOURS, self._own_row_Q)
        for row_N, d_ND in zip(self._row_L.split(BLOCK_ROWS), self._d_LD.split(BLOCK_ROWS), strict=True):
            search.add(row_N.to(self._device), _on_top(apply, d_ND.to(self._device), d_in, top))
        return search.results(self._group)

    def of(self, queries: Rows, judgements: Judgements, left_out: np.ndarray) -> "DevSet":
        """Another dev set of the same documents, without those of some rows.

        Args:
            queries: frozen query vectors.
            judgements: those of its queries.
            left_out: rows of documents that are not searched.
        """
        keep_L = torch.from_numpy(~np.isin(self._row_L.numpy(), left_out))
        d_LD, row_L = (self._d_LD, self._row_L) if keep_L.all() else (self._d_LD[keep_L], self._row_L[keep_L])
        own = None if judgements.own_doc_row_Q is None else torch.from_numpy(judgements.own_doc_row_Q)
        return DevSet(queries.take(torch.from_numpy(judgements.query_row_Q)), d_LD, row_L, judgements, own, self._node)

    @torch.no_grad()
    def score(self, apply: Callable[[Tensor], Tensor], d_in: int, dims: Sequence[int]) -> QueryScores:
        """Scores (Q) of prefixes with a stage put on top of the first `d_in` dims. Collective.

        Args:
            apply: the stage; takes (N, d_in), and gives that, or the longest prefix where it is shorter.
            d_in: dims of the kept block.
            dims: prefixes to score.
        """
        values = {}
        for dim, row_Qk in self._search(apply, d_in, dims).items():
            gain_Qk = gains_of(row_Qk, self._judgements)
            values[dim] = (
                ndcg(gain_Qk, self._judgements) if self._is_ranked else recall(gain_Qk, self._judgements, NEIGHBOURS)
            )
        return values

    def weighted(self, values: QueryScores) -> QueryScores:
        """Scores (Q) times the weights of their queries, whose means choose what is kept."""
        weight_Q = self.parts.weight_Q
        if weight_Q is None:
            return values
        return {dim: value_Q * weight_Q for dim, value_Q in values.items()}

    @torch.no_grad()
    def advance(self, apply: Callable[[Tensor], Tensor], d_in: int) -> None:
        """Puts a trained stage on top for good."""
        for z_ND in (self._q_QD, *self._d_LD.split(BLOCK_ROWS)):
            z_ND[:, :d_in] = apply(z_ND[:, :d_in].to(self._device)).to(z_ND.device)


def _on_top(apply: Callable[[Tensor], Tensor], z_ND: Tensor, d_in: int, top: int) -> Tensor:
    """The first `top` dims, or more, of nested vectors with a stage applied to their first `d_in`."""
    return torch.cat([apply(z_ND[:, :d_in]), z_ND[:, d_in:top]], dim=1)


def held_out_docs(drawn: int, config: TrainConfig) -> int:
    """How many documents are held out where there are no judgements to choose by."""
    return min(max(int(drawn * config.dev_fraction), 2), HELD_OUT_DOCS)


def dev_rows(judgements: Judgements | None, held_out: np.ndarray, drawn: int, config: TrainConfig) -> np.ndarray:
    """Rows of the documents that dev is scored against, ascending: at most config.dev_corpus and all judged."""
    needed = held_out if judgements is None else np.unique(judgements.doc_row_J)
    if drawn <= config.dev_corpus:
        # what is judged lies behind the sample where that lacks it
        return np.concatenate([np.arange(drawn), needed[needed >= drawn]])
    sample = np.random.default_rng((config.seed, 1)).choice(drawn, config.dev_corpus, replace=False)
    others = sample[~np.isin(sample, needed)][: max(config.dev_corpus - len(needed), 0)]
    return np.sort(np.concatenate([needed, others]))


class DevParts(NamedTuple):
    """Dev queries by whether a train query has one of their relevant documents, too: recurring, and new.

    Attributes:
        masks: of the queries (Q) of each part that is large enough to judge by, or of all where neither is.
        weight_Q: weights of the queries, 1 in the mean; None where all count the same.
    """

    masks: list[Tensor]
    weight_Q: Tensor | None


def dev_parts(train: Judgements, dev: Judgements, config: TrainConfig) -> DevParts:
    """Parts of the dev queries, and their weights by `config.favour`.

    Args:
        train: what is learnt from.
        dev: what is chosen by.
        config: settings of the method.
    """
    recurring_Q = torch.from_numpy(is_seen(train, dev))
    parts = {"recurring": recurring_Q, "new": ~recurring_Q}
    masks = [mask_Q for mask_Q in parts.values() if mask_Q.sum() >= LEAST_QUERIES]
    masks = masks or [torch.ones(len(dev), dtype=torch.bool)]
    if config.favour == "all":
        return DevParts(masks, None)
    counted, least = list(parts.values()), max(LEAST_QUERIES, LEAST_PART * len(dev))
    if config.favour != "both":
        counted, least = [parts[config.favour]], LEAST_QUERIES
    if any(mask_Q.sum() < least for mask_Q in counted):
        return DevParts(masks, None)
    weight_Q = torch.zeros(len(dev), dtype=torch.float64)
    for mask_Q in counted:
        weight_Q[mask_Q] = len(dev) / len(counted) / int(mask_Q.sum())
    return DevParts(masks, weight_Q)


def make_dev_set(
    queries: Rows,
    docs: Rows,
    judgements: Judgements | None,
    held_out: np.ndarray,
    config: TrainConfig,
    node: Node,
    parts: DevParts | None = None,
) -> DevSet:
    """Gathers the dev queries, and this rank's share of the dev documents. Collective.

    Args:
        queries: frozen query vectors.
        docs: frozen document vectors.
        judgements: those of the dev queries; None to score by neighbours of held-out documents.
        held_out: rows of the held-out documents where there are no judgements.
        config: sizes and seed.
        node: where copies are kept, and the ranks that share the documents.
        parts: of the dev queries.
    """
    rows = dev_rows(judgements, held_out, docs.drawn, config)
    row_L = torch.from_numpy(rows)
    own = slice(*rows_of_rank(len(rows), node.group.rank, node.group.size))
    d_LD, row_L = node.empty(len(rows), docs.dim)[own], row_L[own]
    for d_ND, row_N in zip(d_LD.split(BLOCK_ROWS), row_L.split(BLOCK_ROWS), strict=True):
        d_ND.copy_(docs.take(row_N))
    if judgements is None:
        held_out_Q = torch.from_numpy(held_out)
        return DevSet(docs.take(held_out_Q), d_LD, row_L, None, held_out_Q, node)
    own_doc = judgements.own_doc_row_Q
    own_row_Q = None if own_doc is None else torch.from_numpy(own_doc)
    q_QD = queries.take(torch.from_numpy(judgements.query_row_Q))
    return DevSet(q_QD, d_LD, row_L, judgements, own_row_Q, node, parts)
