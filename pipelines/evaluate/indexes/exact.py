"""Exact search in memory: every vector of the number type is looked at.

Shapes: Q queries, N documents, d dims of a pass.
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
    TwoPassIndex,
)
from smec_core.model.quantize import from_bits

SCORES = 1 << 25
"""Most scores held at a time."""


class Exact(TwoPassIndex):
    """Arrays in memory; queries stay float32 whatever the number type of the documents."""

    def __init__(self, path: SearchPath, vectors: NestedVectors) -> None:
        super().__init__(path)
        first, second, shortlist = path
        self._norm_N: Tensor | None = None
        self._second = None if second is None else vectors.held_as(second)
        if second is not None and self._second is not None and first.dtype == second.dtype == "float32":
            # One array holds both. It is of unit vectors at the larger dim: their prefixes need a norm of four bytes
            self._first = self._second[:, : first.dim]
            self._norm_N = torch.from_numpy(np.linalg.norm(self._first, axis=1).clip(1e-12))
            self.bytes_per_vector = second.nbytes + 4
        else:
            self._first = vectors.held_as(first)
            self.bytes_per_vector = sum(form.nbytes for form in path.forms)
        rows = vectors.rows
        self.index_bytes = self.bytes_per_vector * rows
        read, products = rows * (first.nbytes + (0 if self._norm_N is None else 4)), rows * first.dim
        if second is not None:
            again = min(shortlist, rows)
            read, products = read + again * second.nbytes, products + again * second.dim
        self.cost = Cost(read, products)

    def first_pass(self, q_Qd: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """See `SearchIndex`."""
        rows = len(self._first)
        step = max(1, SCORES // rows)
        for start in range(0, len(q_Qd), step):
            score_QN = self._scores(torch.from_numpy(q_Qd[start : start + step]))
            for row_k in score_QN.topk(min(k, rows), dim=1).indices.numpy():
                yield row_k, None if self._second is None else self._second[row_k]

    def _scores(self, q_Qd: Tensor) -> Tensor:
        if self.path.first.dtype == "float32":
            score_QN = q_Qd @ torch.from_numpy(self._first).T
            return score_QN if self._norm_N is None else score_QN / self._norm_N
        score_QN = torch.empty(len(q_Qd), len(self._first))
        # a batch at a time as float32: the copy stays in the processor's cache
        for start in range(0, len(self._first), BATCH_ROWS):
            held = self._first[start : start + BATCH_ROWS]
            score_QN[:, start : start + len(held)] = q_Qd @ as_float(held, self.path.first).T
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
