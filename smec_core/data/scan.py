"""One pass over a table: every row is checked, and what a training needs of them all is summed up or kept.

A table is read in cuts of any size and in any order: all sums are of whole numbers, so the result is the
same, bit for bit.

Shapes: N rows of a cut, K rows that are kept, M rows of the table, D dims.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from smec_core.data.fingerprint import are_in, check_of, hash_ids, keys_of
from smec_core.data.parquet import EmbeddingTable, unit_rows
from smec_core.errors import SmecError

SMALL_BYTES = 128 << 20
"""Vectors of so many bytes are read before a cluster would have started."""
CUT_ROWS = 8192
GRID = 2.0**18
"""Unit vectors are rounded to multiples of 1 / GRID for their sums: by 2e-6 a number at most, which averages out."""
PIECE_ROWS = 4096
"""Rows to multiply at a time; up to 2^17 rows, the sums are exact in float64."""
KEYS = 2.0**64
_MARGIN = 6.0
_LOW_BITS = 32


def is_small(table: EmbeddingTable) -> bool:
    """Whether one process reads a table by itself."""
    return 4 * table.rows * table.dim <= SMALL_BYTES


def cut_rows(dim: int) -> int:
    """Rows to read at a time: their D x D sum takes half of what their vectors take, or less."""
    return max(CUT_ROWS, 4 * dim)


@dataclass(frozen=True)
class Keep:
    """Which rows of a table are kept: a sample, and the judged ones.

    Attributes:
        rows: M.
        sample: how many the sample has at most.
        hashes: ascending hashes of the ids that are kept as well.
    """

    rows: int
    sample: int
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    @property
    def is_whole(self) -> bool:
        """Whether all rows are kept."""
        return self.sample >= self.rows

    def of(self, hash_N: np.ndarray) -> np.ndarray:
        """Which rows (K) of those with such hashes to keep: some more than the sample has, and the judged ones."""
        if self.is_whole:
            return np.arange(len(hash_N))
        share = (self.sample + _MARGIN * (self.sample**0.5 + _MARGIN)) / self.rows
        return np.flatnonzero((keys_of(hash_N) < min(share, 1.0) * KEYS) | are_in(hash_N, self.hashes))


class Cut(NamedTuple):
    """What is left of a cut.

    Attributes:
        rows: N.
        check: sum of the hashes of its rows, modulo 2^64.
        sum_D: sum of its unit rows in units of 1 / GRID, whole numbers.
        moment_DD: sum of x x^T over them in units of 1 / GRID^2, whole numbers.
        id_K: ids of the rows that are kept.
        x_KD: their unit vectors.
    """

    rows: int
    check: int
    sum_D: np.ndarray
    moment_DD: np.ndarray
    id_K: pa.Array
    x_KD: np.ndarray


def scan_cut(ids: pa.Array, vectors_ND: np.ndarray, keep: Keep) -> Cut:
    """Reduces a cut.

    Args:
        ids: checked ids (N).
        vectors_ND: checked vectors, float32, not normalised.
        keep: which rows are kept.
    """
    hash_N = hash_ids(ids)
    check = check_of(hash_N, vectors_ND)
    x_ND, dim = unit_rows(vectors_ND), vectors_ND.shape[1]
    sum_D, moment_DD = np.zeros(dim, np.int64), np.zeros((dim, dim), np.int64)
    for low in range(0, len(x_ND), PIECE_ROWS):
        # in place: as much memory again for each would take longer than the sums
        whole_PD = np.multiply(x_ND[low : low + PIECE_ROWS], GRID, dtype=np.float64)
        np.rint(whole_PD, out=whole_PD)
        sum_D += whole_PD.sum(0).astype(np.int64)
        moment_DD += (whole_PD.T @ whole_PD).astype(np.int64)
    place_K = keep.of(hash_N)
    x_KD = x_ND if len(place_K) == len(x_ND) else x_ND[place_K]
    return Cut(len(x_ND), check, sum_D, moment_DD, ids.take(pa.array(place_K)).cast(pa.large_string()), x_KD)


@dataclass(frozen=True)
class Scanned:
    """What a scan leaves of a table.

    Attributes:
        check: sum of the hashes of all rows, modulo 2^64.
        mean_D: mean of the unit rows, float64.
        moment_DD: mean of x x^T over them, float64.
        id_K: ids of the rows that are kept: a sample, and behind it the judged ones that it lacks. Where all are kept
            they are in the order of the table, else in that of their hashes.
        x_KD: their unit vectors.
        drawn: how many the sample has.
    """

    check: int
    mean_D: np.ndarray
    moment_DD: np.ndarray
    id_K: pa.Array
    x_KD: np.ndarray
    drawn: int

    @classmethod
    def nothing(cls, dim: int) -> "Scanned":
        """That of a table without rows."""
        ids, rows = pa.array([], pa.large_string()), np.empty((0, dim), np.float32)
        return cls(0, np.zeros(dim), np.zeros((dim, dim)), ids, rows, 0)


class TableScan:
    """Adds up the cuts of a table."""

    def __init__(self, keep: Keep, dim: int) -> None:
        """Takes what is kept, and D."""
        self._keep = keep
        self._rows = self._check = 0
        self._sum_D = np.zeros(dim, np.int64)
        # two halves of a sum that may be of more than 64 bits
        self._high_DD, self._low_DD = np.zeros((dim, dim), np.int64), np.zeros((dim, dim), np.int64)
        self._ids, self._vectors = list[pa.Array](), list[np.ndarray]()

    def add(self, cut: Cut) -> None:
        """Takes a cut."""
        self._rows += cut.rows
        self._check = (self._check + cut.check) % 2**64
        self._sum_D += cut.sum_D
        self._high_DD += cut.moment_DD >> _LOW_BITS
        self._low_DD += cut.moment_DD & (2**_LOW_BITS - 1)
        self._ids.append(cut.id_K)
        self._vectors.append(cut.x_KD)

    def merge(self, other: "TableScan") -> None:
        """Takes what another has added up, of other rows."""
        self._rows += other._rows
        self._check = (self._check + other._check) % 2**64
        self._sum_D += other._sum_D
        self._high_DD += other._high_DD
        self._low_DD += other._low_DD
        self._ids += other._ids
        self._vectors += other._vectors

    def state(self) -> tuple[dict[str, np.ndarray], pa.Array, np.ndarray]:
        """All of it, to be stored: sums by name, ids of the rows that are kept, and their vectors."""
        counts = np.array([self._rows, self._check], np.uint64)
        sums = {"counts": counts, "sum_D": self._sum_D, "high_DD": self._high_DD, "low_DD": self._low_DD}
        return sums, pa.concat_arrays(self._ids), np.concatenate(self._vectors)

    @classmethod
    def restored(cls, keep: Keep, sums: dict[str, np.ndarray], id_K: pa.Array, x_KD: np.ndarray) -> "TableScan":
        """What had that state."""
        scan = cls(keep, len(sums["sum_D"]))
        scan._rows, scan._check = map(int, sums["counts"])
        scan._sum_D, scan._high_DD, scan._low_DD = sums["sum_D"], sums["high_DD"], sums["low_DD"]
        scan._ids, scan._vectors = [id_K], [x_KD]
        return scan

    def finish(self, hash_M: np.ndarray | None = None) -> Scanned:
        """The result, of all cuts.

        Args:
            hash_M: hashes of all ids, in the order of the table; needed where all rows are kept.

        Raises:
            SmecError: the rows are not those of the table.
        """
        keep, id_A = self._keep, pa.concat_arrays(self._ids)
        hash_A = order_A = hash_ids(id_A)
        is_sample_A = np.ones(len(hash_A), bool)
        if keep.is_whole:
            assert hash_M is not None
            by_hash_M = np.argsort(hash_M)
            order_A = by_hash_M[np.searchsorted(hash_M, hash_A, sorter=by_hash_M).clip(max=len(hash_M) - 1)]
            is_same = len(hash_A) == len(hash_M) and bool((hash_M[order_A] == hash_A).all())
            if not is_same or len(np.unique(order_A)) != len(order_A):
                raise SmecError("a table was changed while it was read; run again")
        else:
            is_sample_A[np.lexsort((hash_A, keys_of(hash_A)))[keep.sample :]] = False
        if self._rows != keep.rows:
            raise SmecError(f"{self._rows} rows were read of a table of {keep.rows}, which was changed; run again")
        kept = np.flatnonzero(is_sample_A | np.isin(hash_A, keep.hashes))
        kept = kept[np.lexsort((order_A[kept], ~is_sample_A[kept]))]
        place_A = np.full(len(hash_A), -1)
        place_A[kept] = np.arange(len(kept))
        # memory of torch's own: how a product is rounded depends on where its operands lie
        x_KD = torch.empty(len(kept), len(self._low_DD)).numpy()
        start = 0
        # part by part, each let go of: the vectors are not held twice
        while self._vectors:
            x_PD = self._vectors.pop(0)
            place_P = place_A[start : start + len(x_PD)]
            x_KD[place_P[place_P >= 0]] = x_PD[place_P >= 0]
            start += len(x_PD)
        mean_D = self._sum_D / GRID / self._rows
        moment_DD = (self._high_DD * 2.0**_LOW_BITS + self._low_DD) / GRID**2 / self._rows
        return Scanned(self._check, mean_D, moment_DD, id_A.take(pa.array(kept)), x_KD, int(is_sample_A.sum()))


def scan_table(table: EmbeddingTable, keep: Keep, hash_M: np.ndarray | None = None) -> Scanned:
    """Scans a table in this process, on one thread.

    Raises:
        RowError: a row that is no sound vector.
        SmecError: rows that cannot be read.
    """
    scan = TableScan(keep, table.dim)
    # numpy's other threads wait for each other longer than so small products take
    with threadpool_limits(1):
        for block in table.blocks(batch_rows=cut_rows(table.dim)):
            scan.add(scan_cut(block.ids, block.vectors_ND, keep))
    return scan.finish(hash_M)
