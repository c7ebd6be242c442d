"""The workers of one run: all-reduce and gather over torch.distributed, or nothing at all for a single process."""

import torch
import torch.distributed as dist
from torch import Tensor


def rows_of_rank(rows: int, rank: int, size: int) -> tuple[int, int]:
    """Global rows [start, stop) that a rank owns: a function of the number of rows and of ranks alone."""
    return rows * rank // size, rows * (rank + 1) // size


class Group:
    """The default process group if torch.distributed is initialised, else a group of one."""

    def __init__(self) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if active else 0
        self.size = dist.get_world_size() if active else 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first_(self, tensor: Tensor) -> Tensor:
        """Overwrites a tensor by that of rank 0, in place: for what processors may round differently."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, in rank order; all of one shape."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts
