"""FAISS's HNSW graph in memory; what a second pass needs lies in an array beside it.

Shapes: Q queries, d dims of a pass, k results.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from pipelines.evaluate.indexes.store import BATCH_ROWS, Form, NestedVectors, SearchPath, TwoPassIndex
from smec_core.model.quantize import to_bits
from smec_core.temporary import temporary_folder

NEIGHBOURS, BUILD_WIDTH = 32, 200
"""Links of a node, and how many candidates the build looks at for them."""
TRAINING_ROWS = 100_000
"""The first so many decide the range of each number at eight bits."""


class FaissHnsw(TwoPassIndex):
    """Inner product of unit vectors; for binary vectors the Hamming distance, since FAISS has no other for them."""

    def __init__(self, path: SearchPath, vectors: NestedVectors) -> None:
        super().__init__(path)
        self._index = _empty(path.first, vectors)
        self._index.hnsw.efConstruction = BUILD_WIDTH
        for start in range(0, vectors.rows, BATCH_ROWS):
            self._index.add(vectors.held_as(_given(path.first), start, start + BATCH_ROWS))
        self._second = None if path.second is None else vectors.held_as(path.second)
        self.bytes_per_vector = sum(form.nbytes for form in path.forms)
        self.index_bytes = _file_bytes(self._index) + (0 if self._second is None else self._second.nbytes)

    def first_pass(self, q_Qd: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """See `SearchIndex`."""
        k = min(k, self._index.ntotal)
        # twice as wide as what is asked for: a search that is only as wide loses some
        self._index.hnsw.efSearch = 2 * k
        _, row_Qk = self._index.search(to_bits(q_Qd) if self.path.first.dtype == "binary" else q_Qd, k)
        for row_k in row_Qk:
            found = row_k[row_k >= 0]
            yield found, None if self._second is None else self._second[found]


def _given(form: Form) -> Form:
    """What FAISS is given: bits as they are, everything else as float32, which it narrows itself."""
    return form if form.dtype == "binary" else Form(form.dim, "float32")


def _empty(form: Form, vectors: NestedVectors) -> Any:
    dim, dtype = form
    if dtype == "binary":
        # whole bytes; the bits that fill the last one are 0 in queries and documents
        return faiss.IndexBinaryHNSW(8 * form.nbytes, NEIGHBOURS)
    if dtype == "float32":
        return faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    # eight bits by FAISS's own ranges: its QT_8bit_direct_signed rounds queries, too, and those of unit length to zeros
    kinds: dict[str, Any] = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}
    index = faiss.IndexHNSWSQ(dim, kinds[dtype], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.held_as(_given(form), 0, TRAINING_ROWS))
    return index


def _file_bytes(index: Any) -> int:
    with temporary_folder() as folder:
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
