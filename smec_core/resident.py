"""Rows that stay with the workers for a whole run: each rank holds a contiguous range of the global rows.

Shapes: N rows asked for, L rows of this rank, D dims.
"""

import torch
from torch import Tensor

from smec_core.group import Group, rows_of_rank


class ResidentRows:
    """Row-sharded matrix (rows, D); `local_LD` holds this rank's rows, `start` is the global row of the first.

    Attributes:
        rows: global number of rows.
        start: global row of the first local one.
        local_LD: this rank's rows.
    """

    def __init__(self, local_LD: Tensor, rows: int, group: Group) -> None:
        self.rows = rows
        self.start, stop = rows_of_rank(rows, group.rank, group.size)
        if len(local_LD) != stop - self.start:
            raise ValueError(f"rank {group.rank} holds {len(local_LD)} rows, but owns {stop - self.start} of {rows}")
        self.local_LD = local_LD
        self._group = group

    @property
    def dim(self) -> int:
        """D."""
        return self.local_LD.shape[1]

    def take(self, row_N: Tensor) -> Tensor:
        """The named global rows (N, D), on every rank. Collective: all ranks ask for the same rows."""
        if self._group.size == 1:
            return self.local_LD.index_select(0, row_N)
        found_ND = torch.zeros(len(row_N), self.dim, dtype=self.local_LD.dtype, device=self.local_LD.device)
        mine = (row_N >= self.start) & (row_N < self.start + len(self.local_LD))
        found_ND[mine] = self.local_LD.index_select(0, row_N[mine] - self.start)
        return self._group.sum_(found_ND)

    def with_local(self, local_LD: Tensor) -> "ResidentRows":
        """The same rows with other values."""
        return ResidentRows(local_LD, self.rows, self._group)
