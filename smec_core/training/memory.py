"""S-XBM, the selectable cross-batch memory (paper section 3.3), sharded over the ranks, with its exact top-k.

Shapes: M slots, N documents pushed, A anchors, K neighbours, L slots of this rank, E entries of this rank, D frozen
dims.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smec_core.distributed.group import Group
from smec_core.distributed.resident import Rows

NEVER = torch.iinfo(torch.int64).max


class Neighbours(NamedTuple):
    """The nearest memory items of a step's anchors, in ascending order of `row_AK`.

    Attributes:
        row_AK: row of each neighbour.
        target_AK: cosine of anchor and neighbour by their frozen embeddings.
        live_AK: whether there is a neighbour; false where the memory held fewer than K.
    """

    row_AK: Tensor
    target_AK: Tensor
    live_AK: Tensor


@dataclass(frozen=True)
class MemoryShard:
    """What a checkpoint keeps of one rank's share of the memory; embeddings are read again from the documents.

    Attributes:
        pushed: documents pushed so far on all ranks: the next sequence number.
        seq_E: sequence numbers of this rank's live entries, ascending.
        row_E: their rows.
    """

    pushed: int
    seq_E: Tensor
    row_E: Tensor


class CrossBatchMemory:
    """FIFO memory of the last M pushed documents, each once.

    The entry with sequence number s is live while s >= pushed - M, and its embedding lives on rank s mod R. A document
    that comes again gets a new number, and its old entry dies. Embeddings are frozen, so no entry is ever stale. Which
    document sits in which slot is known on all ranks.

    Attributes:
        slots: M.
        pushed: how many documents were ever pushed: the next sequence number.
        row_M: row of the document in slot (s mod M), -1 where empty.
        x_LD: frozen unit embeddings of this rank's entries, at (s div R) mod L.
    """

    def __init__(
        self, slots: int, input_dim: int, group: Group, mode: Literal["global", "local"], device: torch.device
    ) -> None:
        self.slots = slots
        self.pushed = 0
        self.row_M = torch.full((slots,), -1, dtype=torch.int64, device=device)
        self.x_LD = torch.zeros(-(-slots // group.size), input_dim, device=device)
        self._group, self._mode = group, mode

    def push(self, row_N: Tensor, x_ND: Tensor) -> None:
        """Adds documents, oldest first, the same on every rank; `row_N` holds no row twice."""
        self.pushed += len(row_N)
        row_N, x_ND = row_N[-self.slots :], x_ND[-self.slots :]
        seq_N = torch.arange(self.pushed - len(row_N), self.pushed, device=row_N.device)
        self.row_M[torch.isin(self.row_M, row_N)] = -1
        self.row_M[seq_N % self.slots] = row_N
        size = self._group.size
        mine = slice((self._group.rank - self.pushed + len(row_N)) % size, None, size)
        self._keep(seq_N[mine], x_ND[mine])

    def _keep(self, seq_E: Tensor, x_ED: Tensor) -> None:
        self.x_LD[(seq_E // self._group.size) % len(self.x_LD)] = x_ED

    def search(self, x_AD: Tensor, row_A: Tensor, top_k: int) -> Neighbours:
        """The `top_k` nearest items of each anchor by frozen cosine; ties go to the older item.

        Collective in global mode, where all ranks ask for the same anchors, each searches its own entries, and the
        result is that of one memory. In local mode a rank asks for its own anchors and searches its own entries.

        Args:
            x_AD: frozen unit embeddings of the anchors.
            row_A: row of an anchor that is a document, -1 for a query. An item is never its own neighbour.
            top_k: K.
        """
        seq_L, row_L = self._own_entries()
        sim_AL = x_AD @ self.x_LD[: len(seq_L)].T
        # a sum takes far less time than a masked assignment
        sim_AL += torch.where(row_L < 0, -torch.inf, 0.0)
        if len(row_L):
            place_A1, is_own_A1 = _own_places(row_A, row_L)
            own_sim_A1 = sim_AL.gather(1, place_A1)
            sim_AL.scatter_(1, place_A1, own_sim_A1.masked_fill_(is_own_A1, -torch.inf))
        target_AK, seq_AK = _top_k(sim_AL, seq_L, top_k)
        if self._mode == "global" and self._group.size > 1:
            target_AK, seq_AK = self._merge(target_AK, seq_AK)
        live_AK = target_AK > -torch.inf
        row_AK = torch.where(live_AK, self.row_M[seq_AK % self.slots], NEVER)
        row_AK, order_AK = row_AK.sort(dim=1)
        return Neighbours(row_AK, target_AK.gather(1, order_AK), live_AK.gather(1, order_AK))

    def _own_entries(self) -> tuple[Tensor, Tensor]:
        """Sequence number and row of this rank's slots that were ever filled; row -1 where the entry is dead."""
        rank, size, slots = self._group.rank, self._group.size, len(self.x_LD)
        newest = (self.pushed - 1 - rank) // size
        place_L = torch.arange(min(newest + 1, slots), device=self.row_M.device)
        seq_L = rank + size * (newest - (newest - place_L) % slots)
        row_L = torch.where(seq_L >= self.pushed - self.slots, self.row_M[seq_L % self.slots], -1)
        return seq_L, row_L

    def _merge(self, target_AK: Tensor, seq_AK: Tensor) -> tuple[Tensor, Tensor]:
        # both in one collective: float64 holds float32 and sequence numbers exactly
        parts = self._group.gather(torch.stack([target_AK.double(), seq_AK.double()]))
        target, seq = torch.cat(parts, dim=2)
        seq, order = seq.sort(dim=1)
        target, order = target.gather(1, order).sort(dim=1, descending=True, stable=True)
        top_k = target_AK.shape[1]
        return target[:, :top_k].float(), seq.gather(1, order[:, :top_k]).long()

    def fill(self) -> Tensor:
        """Share of the slots that hold a document, on the device: reading it waits for that."""
        return (self.row_M >= 0).float().mean()

    def shard(self) -> MemoryShard:
        """This rank's entries, for a checkpoint."""
        seq_L, row_L = self._own_entries()
        seq_E, order = seq_L[row_L >= 0].sort()
        return MemoryShard(self.pushed, seq_E.cpu(), row_L[row_L >= 0][order].cpu())

    def restore(self, shards: Sequence[MemoryShard], x_docs: Rows) -> None:
        """Takes up the entries of a checkpoint, whatever number of ranks wrote it; x_docs has their embeddings."""
        device = self.row_M.device
        self.pushed = shards[0].pushed
        seq_E, order = torch.cat([shard.seq_E for shard in shards]).sort()
        row_E = torch.cat([shard.row_E for shard in shards])[order]
        live = seq_E >= self.pushed - self.slots
        seq_E, row_E = seq_E[live], row_E[live]
        self.row_M[(seq_E % self.slots).to(device)] = row_E.to(device)
        mine = seq_E % self._group.size == self._group.rank
        self._keep(seq_E[mine].to(device), x_docs.take(row_E[mine]).to(device))


def _own_places(row_A: Tensor, row_L: Tensor) -> tuple[Tensor, Tensor]:
    """Where in `row_L` each anchor's own row is, and whether it is there at all, both (A, 1); rows below 0 are none."""
    sorted_L, order_L = row_L.sort()
    place_A1 = torch.searchsorted(sorted_L, row_A[:, None]).clamp(max=len(row_L) - 1)
    return order_L[place_A1], (sorted_L[place_A1] == row_A[:, None]) & (row_A[:, None] >= 0)


def _top_k(sim_AL: Tensor, seq_L: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Highest `top_k` similarities and their sequence numbers, the lower number first among equals; -inf for none."""
    filled = sim_AL.shape[1]
    if filled <= top_k:
        lack = (len(sim_AL), top_k - filled)
        none, no_seq = sim_AL.new_full(lack, -torch.inf), seq_L.new_zeros(lack)
        return torch.cat([sim_AL, none], dim=1), torch.cat([seq_L.expand(len(sim_AL), -1), no_seq], dim=1)
    value, place = sim_AL.topk(top_k + 1, dim=1)
    # topk leaves the order of equals open; only a tie across the last place changes which items are chosen
    tied = (value[:, top_k] == value[:, top_k - 1]) & (value[:, top_k] > -torch.inf)
    value, place = value[:, :top_k].clone(), place[:, :top_k].clone()
    if tied.any():
        by_age = seq_L.argsort()
        ordered, position = sim_AL[tied][:, by_age].sort(dim=1, descending=True, stable=True)
        value[tied], place[tied] = ordered[:, :top_k], by_age[position[:, :top_k]]
    return value, seq_L[place]
