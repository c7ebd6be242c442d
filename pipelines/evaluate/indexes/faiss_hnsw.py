"""FAISS's HNSW graph in memory; what a second pass needs lies in an array beside it.

Shapes: Q queries, N documents, d dims of a pass, k results, S shortlist.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from pipelines.evaluate.indexes.store import (
    BATCH_ROWS,
    Form,
    NestedVectors,
    SearchPath,
    best_first,
    padded,
    unit_prefix,
)
from smec_core.model.quantize import to_bits

NEIGHBOURS, BUILD_WIDTH = 32, 200
"""Links of a node, and how many candidates the build looks at for them."""
TRAINING_ROWS = 100_000
"""The first so many decide the range of each number at eight bits."""


class FaissHnsw:
    """Inner product of unit vectors; for binary vectors the Hamming distance, since FAISS has no other for them."""

    cost = None

    def __init__(self, path: SearchPath, vectors: NestedVectors) -> None:
        self._path = path
        self._index = _empty(path, vectors)
        self._index.hnsw.efConstruction = BUILD_WIDTH
        for start in range(0, vectors.rows, BATCH_ROWS):
            self._index.add(vectors.held_as(_given(path.first), start, start + BATCH_ROWS))
        self._second = None if path.second is None else vectors.held_as(path.second)
        self.bytes_per_vector = path.first.nbytes + (0 if path.second is None else path.second.nbytes)
        self.index_bytes = _file_bytes(self._index) + (0 if self._second is None else self._second.nbytes)

    def search(self, q_QD: np.ndarray, k: int) -> np.ndarray:
        """See `SearchIndex`."""
        wanted = min(k if self._path.second is None else self._path.shortlist, self._index.ntotal)
        # twice as wide as what is asked for: a search that is only as wide loses some
        self._index.hnsw.efSearch = 2 * wanted
        q_Qd = unit_prefix(q_QD, self._path.first.dim)
        _, row_QS = self._index.search(to_bits(q_Qd) if self._path.first.dtype == "binary" else q_Qd, wanted)
        found = [row_S[row_S >= 0] for row_S in row_QS]
        if self._path.second is not None and self._second is not None:
            q_Qd = unit_prefix(q_QD, self._path.second.dim)
            found = [row_S[best_first(q_d, self._second[row_S])] for q_d, row_S in zip(q_Qd, found, strict=True)]
        return padded(found, k)


def _given(form: Form) -> Form:
    """What FAISS is given: bits as they are, everything else as float32, which it narrows itself."""
    return form if form.dtype == "binary" else Form(form.dim, "float32")


def _empty(path: SearchPath, vectors: NestedVectors) -> Any:
    dim, dtype = path.first
    if dtype == "binary":
        # whole bytes; the bits that fill the last one are 0 in queries and documents
        return faiss.IndexBinaryHNSW(8 * path.first.nbytes, NEIGHBOURS)
    if dtype == "float32":
        return faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    # eight bits by FAISS's own ranges: its QT_8bit_direct_signed rounds queries, too, and those of unit length to zeros
    kinds: dict[str, Any] = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}
    index = faiss.IndexHNSWSQ(dim, kinds[dtype], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.held_as(_given(path.first), 0, TRAINING_ROWS))
    return index


def _file_bytes(index: Any) -> int:
    with tempfile.TemporaryDirectory(prefix="smec-faiss-") as folder:
        path = os.path.join(folder, "index")
        (faiss.write_index_binary if isinstance(index, faiss.IndexBinary) else faiss.write_index)(index, path)
        return os.path.getsize(path)


@contextmanager
def build(path: SearchPath, vectors: NestedVectors, threads: int) -> Iterator[FaissHnsw]:
    """Builds the graph; with one thread it is the same every time."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield FaissHnsw(path, vectors)
    finally:
        faiss.omp_set_num_threads(before)
