"""One global step, divided among the ranks.

Every rank projects its own part of the queries and documents (the anchors) and of the memory items that were found; the
anchors' outputs are gathered; a (query, document) pair counts on the rank of its query, an (anchor, neighbour) pair on
the rank of its neighbour, and where the unsupervised loss is listwise an anchor's whole list on the rank of the anchor.

Shapes: B queries, N documents, A anchors (B + N, or fewer with lists), F documents in no pair, K neighbours, U distinct
neighbours of this rank, R rows of this rank, P pairs, I dims the stage takes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smec_core.distributed.group import Group, rows_of_rank
from smec_core.distributed.resident import Rows
from smec_core.training.context import PassContext
from smec_core.training.distillation import Lists, make_lists, used_items
from smec_core.training.losses import Pairs, RankedPairs
from smec_core.training.memory import CrossBatchMemory, Neighbours
from smec_core.training.sampling import Batch


@dataclass
class Step:
    """What one rank computes of a global step.

    Attributes:
        y_RI: kept blocks of its queries, its documents, and the distinct neighbours whose pairs it counts.
        own_queries: which of the step's queries are its own.
        own_docs: which of the step's documents are its own.
        queries: B.
        docs: N.
        counts_all_anchors: whether its neighbours may be those of any anchor, or of its own anchors only.
        pairs: (anchor, neighbour) pairs that it counts.
        lists: what its anchors are compared with instead where the unsupervised loss is listwise.
        unsup_weight: how many pairs, or anchors with lists, the global step has.
        ranked: what the ranking loss compares, as places among its queries and among all documents.
        weight_sum: sum of the weights of the global step.
        old_NI: all documents as the champion's stage gives them; None where training need not be compatible.
    """

    y_RI: Tensor
    own_queries: slice
    own_docs: slice
    queries: int
    docs: int
    counts_all_anchors: bool
    pairs: Pairs
    lists: Lists | None
    unsup_weight: int
    ranked: RankedPairs
    weight_sum: float
    old_NI: Tensor | None = None

    @property
    def parts(self) -> list[int]:
        """How many rows are queries, documents and neighbours."""
        own = [part.stop - part.start for part in (self.own_queries, self.own_docs)]
        return [*own, len(self.y_RI) - sum(own)]


class Clock:
    """Seconds spent by part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Counts the time since the last lap as spent on a part."""
        now = time.perf_counter()
        self.seconds[f"seconds/{part}"] = self.seconds.get(f"seconds/{part}", 0.0) + now - self._last
        self._last = now


def load_step(
    context: PassContext,
    batch: Batch,
    memory: CrossBatchMemory,
    y_docs: Rows,
    y_queries: Rows,
    old_docs: Callable[[Tensor], Tensor] | None,
    is_unsupervised: bool,
    clock: Clock,
) -> Step:
    """Reads the rows of a step, searches the memory for its anchors, then adds its documents to it. Collective.

    Args:
        context: what the stages share.
        batch: the step.
        memory: the memory.
        y_docs: kept blocks of the documents.
        y_queries: kept blocks of the queries.
        old_docs: gives the documents as the champion's stage has them, in compatible training.
        is_unsupervised: whether there is an unsupervised loss.
        clock: takes the time of reading and of searching.
    """
    doc_row_N, query_row_B = torch.from_numpy(batch.doc_row_N), torch.from_numpy(batch.query_row_B)
    group = context.group
    queries = slice(*rows_of_rank(len(query_row_B), group.rank, group.size))
    docs = slice(*rows_of_rank(len(doc_row_N), group.rank, group.size))
    own = [y_queries.take(query_row_B[queries]), y_docs.take(doc_row_N[docs])]
    x_docs_ND = torch.empty(0, context.x_docs.dim)
    if is_unsupervised or old_docs is not None:
        x_docs_ND = context.x_docs.take(doc_row_N).to(context.device)
    clock.lap("data")

    used_U, pairs, lists, weight = torch.empty(0, dtype=torch.int64), Pairs.none(context.device), None, 0
    is_global = context.config.memory == "global"
    if is_unsupervised and context.config.unsupervised_loss(context.labelled) == "listwise":
        used_U, lists = _lists(context, batch, memory, x_docs_ND)
        weight = lists.anchors
    elif is_unsupervised:
        x_queries_BD = context.x_queries.take(query_row_B).to(context.device)
        anchors = [x_queries_BD, x_docs_ND] if is_global else [x_queries_BD[queries], x_docs_ND[docs]]
        row_A = torch.cat([torch.full((len(anchors[0]),), -1), doc_row_N if is_global else doc_row_N[docs]])
        found = memory.search(torch.cat(anchors), row_A.to(context.device), context.config.neighbours(context.labelled))
        live = found.live_AK.sum()
        if not is_global:
            group.sum_(live)
        weight = int(live)
        used_U, pairs = own_pairs(found, group if is_global else None)
    if is_unsupervised:
        memory.push(doc_row_N.to(context.device), x_docs_ND)
    clock.lap("search")

    own.append(y_docs.take(used_U.cpu()))
    mine = np.flatnonzero((batch.pair_query_P >= queries.start) & (batch.pair_query_P < queries.stop))
    step = Step(
        y_RI=torch.cat(own).to(context.device),
        own_queries=queries,
        own_docs=docs,
        queries=len(query_row_B),
        docs=len(doc_row_N),
        counts_all_anchors=is_global,
        pairs=pairs,
        lists=lists,
        unsup_weight=weight,
        ranked=RankedPairs(
            torch.from_numpy(batch.pair_query_P[mine] - queries.start).to(context.device),
            torch.from_numpy(batch.pair_doc_P[mine]).to(context.device),
            torch.from_numpy(batch.weight_PN[mine]).to(context.device),
        ),
        weight_sum=float(batch.weight_PN.sum()),
        old_NI=None if old_docs is None else old_docs(x_docs_ND),
    )
    clock.lap("data")
    return step


def _lists(context: PassContext, batch: Batch, memory: CrossBatchMemory, x_ND: Tensor) -> tuple[Tensor, Lists]:
    """Rows of the memory items that this rank's anchors are compared with, and their lists. Collective.

    Anchors are the step's documents that are in no pair of it: what a pair is to change, the teacher should not hold.
    """
    assert context.teacher is not None
    device, is_global = context.device, context.config.memory == "global"
    is_free_N = np.ones(len(batch.doc_row_N), bool)
    is_free_N[batch.pair_doc_P] = False
    doc_F = torch.from_numpy(np.flatnonzero(is_free_N))
    start, stop = rows_of_rank(len(batch.doc_row_N), context.group.rank, context.group.size)
    own_F = (doc_F >= start) & (doc_F < stop)
    row_N = torch.from_numpy(batch.doc_row_N)
    asked_A = doc_F if is_global else doc_F[own_F]
    top_k = context.config.neighbours(context.labelled)
    found = memory.search(x_ND[asked_A.to(device)], row_N[asked_A].to(device), top_k)
    if is_global:
        found = Neighbours(*(part[own_F.to(device)] for part in found))
    used_U, item_AK, hidden_AK = used_items(found, row_N.to(device))
    t_ND, t_UD = (context.teacher.take(rows).to(device) for rows in (row_N, used_U.cpu()))
    anchor_A, temperature = doc_F[own_F].to(device), context.config.list_temperature
    lists = make_lists(anchor_A, doc_F.to(device), item_AK, hidden_AK, t_ND, t_UD, len(doc_F), temperature)
    return used_U, lists


def own_pairs(found: Neighbours, group: Group | None) -> tuple[Tensor, Pairs]:
    """Rows of the distinct neighbours whose pairs this rank counts, and the pairs; all of them without a group."""
    anchor_P = found.live_AK.nonzero()[:, 0]
    used_U, item_P = torch.unique(found.row_AK[found.live_AK], return_inverse=True)
    target_P = found.target_AK[found.live_AK]
    if group is not None and group.size > 1:
        mine = item_P % group.size == group.rank
        used_U = used_U[group.rank :: group.size]
        anchor_P, item_P, target_P = anchor_P[mine], item_P[mine] // group.size, target_P[mine]
    return used_U, Pairs(anchor_P, item_P, target_P, len(found.row_AK), len(used_U))
