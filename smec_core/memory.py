"""S-XBM, the selectable cross-batch memory (paper section 3.3): a ring of frozen embeddings and its exact top-k.

Shapes: M slots, N documents pushed, A anchors, K neighbours, U distinct neighbours, D frozen dims, I kept dims.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Neighbours(NamedTuple):
    """The nearest memory items of a step's anchors.

    Attributes:
        kept_UI: kept blocks of the distinct items found.
        where_AK: row in `kept_UI` of each neighbour.
        target_AK: cosine of anchor and neighbour by their frozen embeddings.
        live_AK: 1 where there is a neighbour, 0 where the memory held fewer than K.
    """

    kept_UI: Tensor
    where_AK: Tensor
    target_AK: Tensor
    live_AK: Tensor


class CrossBatchMemory:
    """FIFO memory of the last M pushed documents, each once.

    The entry with sequence number s sits in slot s mod M, so it lives until M more have been pushed. A document that
    comes again gets a new number and its old slot is emptied. Embeddings are frozen, so no entry is ever stale.

    Attributes:
        pushed: how many documents were ever pushed: the next sequence number.
        row_M: global row of the document in each slot, -1 where empty.
        x_MD: its frozen unit embedding.
        y_MI: its kept block, the input of the stage in training.
    """

    def __init__(self, slots: int, corpus_rows: int, input_dim: int, kept_dim: int, device: torch.device) -> None:
        self.slots = slots
        self.pushed = 0
        self.row_M = torch.full((slots,), -1, dtype=torch.int64, device=device)
        self.x_MD = torch.zeros(slots, input_dim, device=device)
        self.y_MI = torch.zeros(slots, kept_dim, device=device)
        self._slot_of_row = torch.full((corpus_rows,), -1, dtype=torch.int64, device=device)

    def push(self, row_N: Tensor, x_ND: Tensor, y_NI: Tensor) -> None:
        """Adds documents, oldest first; `row_N` holds no row twice."""
        self.pushed += len(row_N)
        row_N, x_ND, y_NI = row_N[-self.slots :], x_ND[-self.slots :], y_NI[-self.slots :]
        again_N = self._slot_of_row[row_N]
        self.row_M[again_N[again_N >= 0]] = -1
        slot_N = torch.arange(self.pushed - len(row_N), self.pushed, device=row_N.device) % self.slots
        evicted_N = self.row_M[slot_N]
        self._slot_of_row[evicted_N[evicted_N >= 0]] = -1
        self.row_M[slot_N] = row_N
        self.x_MD[slot_N] = x_ND
        self.y_MI[slot_N] = y_NI
        self._slot_of_row[row_N] = slot_N

    def search(self, x_AD: Tensor, row_A: Tensor, top_k: int) -> Neighbours:
        """The `top_k` nearest items of each anchor by frozen cosine; ties go to the older item.

        Args:
            x_AD: frozen unit embeddings of the anchors.
            row_A: global row of an anchor that is a document, -1 for a query. An item is never its own neighbour.
            top_k: K.
        """
        filled = min(self.pushed, self.slots)
        sim_AM = x_AD @ self.x_MD[:filled].T
        sim_AM[:, self.row_M[:filled] < 0] = -torch.inf
        own_A = torch.where(row_A >= 0, self._slot_of_row[row_A], -1)
        seen = own_A >= 0
        sim_AM[seen.nonzero().squeeze(1), own_A[seen]] = -torch.inf
        target_AK, slot_AK = self._top_k(sim_AM, min(top_k, filled))
        live_AK = target_AK > -torch.inf
        used_U, where_AK = torch.unique(torch.where(live_AK, slot_AK, 0), return_inverse=True)
        return Neighbours(self.y_MI[used_U], where_AK, torch.where(live_AK, target_AK, 0), live_AK.float())

    def _top_k(self, sim_AM: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        filled = sim_AM.shape[1]
        if top_k == filled:
            return sim_AM, torch.arange(filled, device=sim_AM.device).expand_as(sim_AM)
        value, slot = sim_AM.topk(top_k + 1, dim=1)
        # topk leaves the order of equals open; only a tie across the last place changes which items are chosen
        tied = (value[:, top_k] == value[:, top_k - 1]) & (value[:, top_k] > -torch.inf)
        value, slot = value[:, :top_k].clone(), slot[:, :top_k].clone()
        if tied.any():
            age_order = torch.arange(self.pushed - filled, self.pushed, device=sim_AM.device) % self.slots
            ordered, position = sim_AM[tied][:, age_order].sort(dim=1, descending=True, stable=True)
            value[tied], slot[tied] = ordered[:, :top_k], age_order[position[:, :top_k]]
        return value, slot
