"""The workers of one run: sums and gathers over torch.distributed, or nothing at all for a single process.

Shapes: L rows of one rank, A rows of all ranks, d dims.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# up to here gloo's all-reduce costs more in waiting than in bytes, and every rank rather adds up what all have sent
SMALL_BYTES = 1 << 20


def rows_of_rank(rows: int, rank: int, size: int) -> tuple[int, int]:
    """Rows [start, stop) that a rank takes of so many: a function of the number of rows and of ranks alone."""
    return rows * rank // size, rows * (rank + 1) // size


class Group:
    """Ranks that work together: all of torch.distributed, or one process without it.

    Attributes:
        rank: this process's place in the group.
        size: how many ranks there are.
    """

    def __init__(self) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if active else 0
        self.size = dist.get_world_size() if active else 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all ranks, in place."""
        if self.size == 1:
            return tensor
        if tensor.device.type == "cpu" and tensor.nbytes * (self.size - 1) <= SMALL_BYTES:
            return tensor.copy_(torch.stack(self.gather(tensor)).sum(0))
        dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Returns when all ranks are here."""
        self.sum_(torch.zeros(1))

    def from_first_(self, tensor: Tensor) -> Tensor:
        """Overwrites a tensor by that of the first rank, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def gather_objects(self, thing: Any) -> list[Any]:
        """What every rank has in place of `thing`, in rank order."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, in rank order; all of one shape."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def gather_rows(self, *own: tuple[Tensor, int]) -> Sequence[Tensor]:
        """Puts together matrices whose rows the ranks hold as `rows_of_rank` has it; gradients flow back, summed.

        Args:
            own: for each matrix the rows (L, d) of this rank, and how many rows all ranks have; d is the same for all.

        Returns:
            Each matrix (A, d), on every rank.
        """
        if self.size == 1:
            return [rows_Ld for rows_Ld, _ in own]
        gathered: Sequence[Tensor] = _GatherRows.apply(self, [total for _, total in own], *(rows for rows, _ in own))
        return gathered


class _GatherRows(torch.autograd.Function):
    """All matrices in one collective either way: waiting costs more than bytes."""

    @staticmethod
    def forward(ctx: Any, group: Group, totals: list[int], *own: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.totals = group, totals
        most = [-(-total // group.size) for total in totals]
        padded_Ld = own[0].new_zeros(sum(most), own[0].shape[1])
        for part_Ld, rows_Ld in zip(padded_Ld.split(most), own, strict=True):
            part_Ld[: len(rows_Ld)] = rows_Ld
        ranks = [part.split(most) for part in group.gather(padded_Ld)]
        return tuple(
            torch.cat([ranks[r][number][: _count(total, r, group.size)] for r in range(group.size)])
            for number, total in enumerate(totals)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        group, totals = ctx.group, ctx.totals
        summed = group.sum_(torch.cat(grads)).split(totals)
        own = [
            grad[slice(*rows_of_rank(total, group.rank, group.size))]
            for grad, total in zip(summed, totals, strict=True)
        ]
        return None, None, *own


def _count(rows: int, rank: int, size: int) -> int:
    start, stop = rows_of_rank(rows, rank, size)
    return stop - start
