"""Rows that training reads at random: in memory, once on every node.

Shapes: N rows asked for, D dims.
"""

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from smec_core.distributed.group import Group, rows_of_rank
from smec_core.errors import InputError, SmecError

BLOCK_ROWS = 4096
SHARED_MEMORY = Path("/dev/shm")


class Stage(Protocol):
    """A trained stage, as far as rows need to know it."""

    @property
    def dim(self) -> int:
        """Dims that it keeps."""
        ...

    def keep(self, y_NI: Tensor) -> Tensor:
        """Outputs (N, dim) for its inputs (N, I)."""
        ...


class Rows(Protocol):
    """Rows of a table that every rank can read from: a sample of it, and behind that judged rows which it lacks."""

    drawn: int
    """How many the sample has, from which all that is drawn at random is drawn: the first ones."""

    @property
    def rows(self) -> int:
        """How many there are in all."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    def take(self, row_N: Tensor) -> Tensor:
        """The named rows (N, D)."""
        ...

    def own_blocks(self) -> Iterator[Tensor]:
        """This rank's share of the sample, a block (N, D) at a time."""
        ...

    def project(self, stage: Stage) -> "Rows":
        """The block that a trained stage keeps of every row. Collective."""
        ...


@dataclass(frozen=True)
class Node:
    """The ranks of one machine, which hold its matrices together, once.

    Attributes:
        group: all ranks of the run.
        name: a name that the ranks of this node share, and no other.
        rank: this rank's place among those of the node.
        size: how many ranks the node has.
        folder: where shared matrices lie; None keeps them in this process, for a node of one rank.
        device: where stages are applied.
    """

    group: Group = field(default_factory=Group)
    name: str = ""
    rank: int = 0
    size: int = 1
    folder: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def empty(self, rows: int, dim: int) -> Tensor:
        """A matrix (rows, dim) that all ranks of the node read and write. Collective.

        Raises:
            SmecError: there is no room for it.
        """
        if not rows * dim or (self.folder is None and self.group.size == 1):
            return torch.empty(rows, dim)
        file, failure = None, None
        if self.rank == 0 and self.folder is not None:
            try:
                file = _allocate(self.folder, rows * dim * 4)
            except SmecError as error:
                failure = error
        # a file without a name goes when the last process that maps it ends, however it ends
        with file or nullcontext():
            path = f"/proc/{os.getpid()}/fd/{file.fileno()}" if file else None
            # all ranks take part, and all fail where one does, whatever their own nodes need
            made = self.group.gather_objects((self.name, path, failure))
            for _, _, failed in made:
                if failed is not None:
                    raise failed
            paths = {name: path for name, path, _ in made if path}
            matrix = self._map(paths[self.name], rows * dim * 4) if self.folder else torch.empty(rows * dim)
            self.group.wait()
        return matrix.view(rows, dim)

    def _map(self, path: str, size: int) -> Tensor:
        with open(path, "r+b") as shared:
            return torch.frombuffer(mmap.mmap(shared.fileno(), size), dtype=torch.float32)

    def share(self, rows: int) -> tuple[int, int]:
        """Which of so many rows this rank writes for its node."""
        return rows_of_rank(rows, self.rank, self.size)


def _allocate(folder: Path, size: int) -> IO[bytes]:
    try:
        file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"{folder}: a file of rows cannot be made there ({error.strerror}); give access, or set scratch to a "
            "folder that can be written to"
        ) from error
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        file.close()
        raise SmecError(
            f"{folder}: no room for {size / 2**20:,.0f} MiB of rows ({error.strerror}); free some, set memory_budget "
            "or sample_rows lower, or set scratch to a folder with more"
        ) from error
    return file


class ResidentRows:
    """Rows in memory, once on each node.

    Attributes:
        matrix_ND: all of them.
        drawn: how many of them are the sample, see `Rows`.
    """

    def __init__(self, matrix_ND: Tensor, node: Node, drawn: int | None = None) -> None:
        """Takes the rows.

        Args:
            matrix_ND: the rows.
            node: where blocks of them are kept, and the ranks.
            drawn: how many are the sample; None for all.
        """
        self.matrix_ND = matrix_ND
        self.drawn = len(matrix_ND) if drawn is None else drawn
        self._node = node

    @property
    def rows(self) -> int:
        """How many there are in all."""
        return len(self.matrix_ND)

    @property
    def dim(self) -> int:
        """D."""
        return self.matrix_ND.shape[1]

    def take(self, row_N: Tensor) -> Tensor:
        """The named rows (N, D)."""
        return self.matrix_ND.index_select(0, row_N)

    def own_blocks(self) -> Iterator[Tensor]:
        """This rank's share of the sample, a block (N, D) at a time."""
        start, stop = rows_of_rank(self.drawn, self._node.group.rank, self._node.group.size)
        yield from self.matrix_ND[start:stop].split(BLOCK_ROWS)

    def project(self, stage: Stage) -> "ResidentRows":
        """The block that a trained stage keeps of every row, computed once. Collective."""
        kept_Nd = self._node.empty(len(self.matrix_ND), stage.dim)
        start, stop = self._node.share(len(self.matrix_ND))
        for low in range(start, stop, BLOCK_ROWS):
            high = min(low + BLOCK_ROWS, stop)
            kept_Nd[low:high] = stage.keep(self.matrix_ND[low:high].to(self._node.device)).cpu()
        self._node.group.wait()
        return ResidentRows(kept_Nd, self._node, self.drawn)


def folder_for(size: int, ranks: int, scratch: Path) -> Path | None:
    """Where the ranks of a node share so many bytes: in shared memory, else in mapped files.

    Args:
        size: bytes.
        ranks: ranks of the run on this node.
        scratch: folder on a local disk.

    Returns:
        The folder; None where one rank keeps them to itself.
    """
    if SHARED_MEMORY.is_dir() and size < shutil.disk_usage(SHARED_MEMORY).free:
        return SHARED_MEMORY
    return None if ranks == 1 else scratch
