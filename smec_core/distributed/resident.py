"""Rows that training reads at random: resident on every node, in memory or mapped from disk, or streamed on demand.

Shapes: N rows asked for, D dims, W rows held.
"""

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from smec_core.distributed.group import Group, rows_of_rank
from smec_core.errors import SmecError

BLOCK_ROWS = 4096
SHARED_MEMORY = Path("/dev/shm")

Tier = Literal["memory", "mapped", "streamed"]
Stream = Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]
"""Reads global rows `start` to `stop` once, in pieces of any order: row numbers (N) and unit vectors (N, D)."""


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
    """A matrix of global rows that every rank can read from."""

    rows: int
    """How many there are."""
    most_held: int | None
    """How many can be prepared at a time; None where all always are."""

    @property
    def dim(self) -> int:
        """D."""
        ...

    def prepare(self, row_N: np.ndarray) -> None:
        """Makes these rows, and perhaps only these, ready to be taken. Collective."""
        ...

    def take(self, row_N: Tensor) -> Tensor:
        """The named global rows (N, D)."""
        ...

    def own_blocks(self) -> Iterator[Tensor]:
        """This rank's share of all rows, a block (N, D) at a time. Streams where the rows are not resident."""
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


def _check_arrived(arrived_N: np.ndarray, row_N: np.ndarray) -> None:
    if not arrived_N.all():
        raise SmecError(f"row {row_N[arrived_N.argmin()]} did not arrive; the data changed while it was read")


def _allocate(folder: Path, size: int) -> IO[bytes]:
    file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        file.close()
        raise SmecError(
            f"{folder}: no room for {_mib(size)} of resident rows ({error.strerror}); free some, set memory_budget "
            "lower, or set scratch to a larger disk"
        ) from error
    return file


class ResidentRows:
    """All rows, once on each node: in memory where they fit, else mapped from a file.

    Attributes:
        rows: how many there are.
        matrix_ND: all of them.
    """

    most_held: int | None = None

    def __init__(self, matrix_ND: Tensor, node: Node) -> None:
        self.rows = len(matrix_ND)
        self.matrix_ND = matrix_ND
        self._node = node

    @classmethod
    def filled(cls, stream: Stream, rows: int, dim: int, node: Node) -> "ResidentRows":
        """Reads all rows, each rank of the node a share of them. Collective, but wait for the others before reading.

        Raises:
            SmecError: a row did not arrive.
        """
        matrix_ND = node.empty(rows, dim)
        start, stop = node.share(rows)
        arrived = np.zeros(stop - start, bool)
        for row_N, x_ND in stream(start, stop):
            matrix_ND[row_N] = x_ND
            arrived[row_N.numpy() - start] = True
        _check_arrived(arrived, np.arange(start, stop))
        return cls(matrix_ND, node)

    @property
    def dim(self) -> int:
        """D."""
        return self.matrix_ND.shape[1]

    def prepare(self, row_N: np.ndarray) -> None:
        """Does nothing: all rows are here."""

    def take(self, row_N: Tensor) -> Tensor:
        """The named global rows (N, D)."""
        return self.matrix_ND.index_select(0, row_N)

    def own_blocks(self) -> Iterator[Tensor]:
        """This rank's share of all rows, a block (N, D) at a time."""
        start, stop = rows_of_rank(self.rows, self._node.group.rank, self._node.group.size)
        yield from self.matrix_ND[start:stop].split(BLOCK_ROWS)

    def project(self, stage: Stage) -> "ResidentRows":
        """The block that a trained stage keeps of every row, computed once. Collective."""
        kept_Nd = self._node.empty(self.rows, stage.dim)
        start, stop = self._node.share(self.rows)
        for low in range(start, stop, BLOCK_ROWS):
            high = min(low + BLOCK_ROWS, stop)
            kept_Nd[low:high] = stage.keep(self.matrix_ND[low:high].to(self._node.device)).cpu()
        self._node.group.wait()
        return ResidentRows(kept_Nd, self._node)


class StreamedRows:
    """Rows that no node can hold: read from their source whenever others are needed, and only those kept.

    Attributes:
        rows: how many there are.
        most_held: how many may be held at a time.
    """

    def __init__(
        self,
        stream: Stream,
        rows: int,
        dim: int,
        node: Node,
        most_held: int | None,
        stages: Sequence[Stage] = (),
    ) -> None:
        self.rows, self.most_held = rows, most_held
        self._stream, self._input_dim, self._node, self._stages = stream, dim, node, list(stages)
        self._held = _Held(np.empty(0, np.int64), torch.empty(0, dim))

    @property
    def dim(self) -> int:
        """D."""
        return self._stages[-1].dim if self._stages else self._input_dim

    def prepare(self, row_N: np.ndarray) -> None:
        """Reads these rows, each rank of the node its share of the source. Collective.

        Raises:
            SmecError: a row did not arrive.
        """
        wanted = np.unique(row_N)
        if np.isin(wanted, self._held.row_W).all():
            return
        held = _Held(wanted, self._node.empty(len(wanted), self._input_dim))
        first, last = self._node.share(self.rows)
        arrived = (wanted < first) | (wanted >= last)
        # those of the ranges that hold no wanted row are not read
        for start, stop in _ranges(wanted, first, last):
            for row_P, x_PD in self._stream(start, stop):
                place = np.searchsorted(wanted, row_P.numpy()).clip(max=len(wanted) - 1)
                here = wanted[place] == row_P.numpy()
                held.x_WD[torch.from_numpy(place[here])] = x_PD[torch.from_numpy(here)]
                arrived[place[here]] = True
        _check_arrived(arrived, wanted)
        self._node.group.wait()
        self._held.row_W, self._held.x_WD = held.row_W, held.x_WD

    def take(self, row_N: Tensor) -> Tensor:
        """The named global rows (N, D), which must have been prepared."""
        place = np.searchsorted(self._held.row_W, row_N.numpy())
        return self._apply(self._held.x_WD.index_select(0, torch.from_numpy(place)))

    def own_blocks(self) -> Iterator[Tensor]:
        """This rank's share of all rows, a block (N, D) at a time, from the source."""
        for _, x_ND in self._stream(*rows_of_rank(self.rows, self._node.group.rank, self._node.group.size)):
            yield self._apply(x_ND)

    def project(self, stage: Stage) -> "StreamedRows":
        """The block that a trained stage keeps, computed whenever rows are taken; shares the rows that are held."""
        stages = [*self._stages, stage]
        kept = StreamedRows(self._stream, self.rows, self._input_dim, self._node, self.most_held, stages)
        kept._held = self._held
        return kept

    def _apply(self, x_ND: Tensor) -> Tensor:
        for stage in self._stages:
            x_ND = stage.keep(x_ND.to(self._node.device)).cpu()
        return x_ND


def rows_at_once(rows: Rows) -> int:
    """How many rows to make ready at a time: of streamed ones as many as can be held."""
    return BLOCK_ROWS if rows.most_held is None else rows.most_held


@dataclass
class _Held:
    """Rows held by a node: their global numbers, ascending, and their unit vectors (W, D)."""

    row_W: np.ndarray
    x_WD: Tensor


def _ranges(wanted: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Ranges of BLOCK_ROWS rows between start and stop that hold a wanted row, neighbours joined."""
    inside = wanted[(wanted >= start) & (wanted < stop)]
    blocks = np.unique((inside - start) // BLOCK_ROWS)
    if not len(blocks):
        return
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1):
        yield start + int(run[0]) * BLOCK_ROWS, min(start + (int(run[-1]) + 1) * BLOCK_ROWS, stop)


@dataclass(frozen=True)
class Residency:
    """Where the rows of a run are kept, and why."""

    tier: Tier
    folder: Path | None
    reason: str


def choose_residency(
    rows: int, dev_rows: int, dim: int, budget: int, ranks: int, scratch: Path, tier: Tier | None = None
) -> Residency:
    """Decides where this node keeps the rows of a run.

    Args:
        rows: rows of all tables.
        dev_rows: documents of which there is a copy, as those that dev is scored against.
        dim: D.
        budget: bytes of memory that the rows of this node may take.
        ranks: ranks of the run on this node.
        scratch: folder on a local disk.
        tier: what the user insists on.
    """
    # the frozen rows, the block that the first stage keeps (D again), and the next block while it is computed
    need = int((2.5 * rows + dev_rows) * dim * 4)
    shared = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    disk = shutil.disk_usage(scratch).free
    facts = (
        f"{_mib(need)} for all stages, {'within' if need <= budget else 'above'} the memory budget of {_mib(budget)}"
    )
    if tier is not None:
        facts += f", and tier={tier} was asked for"
    if tier == "memory" or (tier is None and need <= budget):
        if need < shared:
            return Residency("memory", SHARED_MEMORY, facts)
        if ranks == 1:
            return Residency("memory", None, facts)
        facts += f", but {SHARED_MEMORY} has {_mib(shared)} free"
    facts += f", {_mib(disk)} free in {scratch}"
    if tier == "mapped" or (tier != "streamed" and need <= disk):
        return Residency("mapped", scratch, facts)
    return Residency("streamed", None if ranks == 1 else scratch, facts)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
