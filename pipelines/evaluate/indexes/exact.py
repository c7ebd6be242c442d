"""Exact search in memory: every vector of the number type is looked at.

Shapes: Q queries, N documents, d dims of a pass, k results, S shortlist.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluate.indexes.store import (
    BATCH_ROWS,
    Cost,
    Form,
    NestedVectors,
    SearchPath,
    best_first,
    padded,
    unit_prefix,
)
from smec_core.model.quantize import from_bits

SCORES = 1 << 25
"""Most scores held at a time."""


class Exact:
    """Arrays in memory; queries stay float32 whatever the number type of the documents."""

    def __init__(self, path: SearchPath, vectors: NestedVectors) -> None:
        self._path = path
        self._norm_N: Tensor | None = None
        self._second: np.ndarray | None = None
        if path.second is not None:
            self._second = vectors.held_as(path.second)
        if path.is_nested and self._second is not None:
            # unit vectors at the larger dim: their prefixes are not, and a norm is four bytes
            self._first = self._second[:, : path.first.dim]
            self._norm_N = torch.from_numpy(np.linalg.norm(self._first, axis=1).clip(1e-12))
        else:
            self._first = vectors.held_as(path.first)
        self._rows = vectors.rows
        parts = [array for array in (None if path.is_nested else self._first, self._second) if array is not None]
        norms = 0 if self._norm_N is None else self._norm_N.element_size()
        self.bytes_per_vector = sum(array[0].nbytes for array in parts) + norms
        self.index_bytes = self.bytes_per_vector * self._rows
        self.cost = self._cost(norms)

    def _cost(self, norms: int) -> Cost:
        first, second = self._path.first, self._path.second
        read, products = self._rows * (first.nbytes + norms), self._rows * first.dim
        if second is not None:
            again = min(self._path.shortlist, self._rows)
            read, products = read + again * second.nbytes, products + again * second.dim
        return Cost(read, products)

    def search(self, q_QD: np.ndarray, k: int) -> np.ndarray:
        """See `SearchIndex`."""
        step = max(1, SCORES // self._rows)
        return np.concatenate([self._search(q_QD[at : at + step], k) for at in range(0, len(q_QD), step)])

    def _search(self, q_QD: np.ndarray, k: int) -> np.ndarray:
        wanted = k if self._path.second is None else self._path.shortlist
        score_QN = self._scores(torch.from_numpy(unit_prefix(q_QD, self._path.first.dim)))
        row_QS = score_QN.topk(min(wanted, self._rows), dim=1).indices.numpy()
        if self._path.second is None or self._second is None:
            return padded(list(row_QS), k)
        q_Qd = unit_prefix(q_QD, self._path.second.dim)
        return padded([row_S[best_first(q_d, self._second[row_S])] for q_d, row_S in zip(q_Qd, row_QS, strict=True)], k)

    def _scores(self, q_Qd: Tensor) -> Tensor:
        if self._path.first.dtype == "float32":
            score_QN = q_Qd @ torch.from_numpy(self._first).T
            return score_QN if self._norm_N is None else score_QN / self._norm_N
        score_QN = torch.empty(len(q_Qd), self._rows)
        # a batch at a time as float32: the copy stays in the processor's cache
        for start in range(0, self._rows, BATCH_ROWS):
            held = self._first[start : start + BATCH_ROWS]
            score_QN[:, start : start + len(held)] = q_Qd @ as_float(held, self._path.first).T
        return score_QN


def as_float(held: np.ndarray, form: Form) -> Tensor:
    """Vectors (N, d) float32 from how they are held, signs as -1 and 1."""
    if form.dtype == "binary":
        return torch.from_numpy(from_bits(held, form.dim))
    return torch.from_numpy(held).float()


@contextmanager
def build(path: SearchPath, vectors: NestedVectors, threads: int) -> Iterator[Exact]:
    """Holds the vectors in memory, and searches them with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield Exact(path, vectors)
    finally:
        torch.set_num_threads(before)
