"""A model as a FAISS index: the matrix and the division by the length, in front of an empty flat index.

Shapes: N rows, D input dims, d dims exported.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np


def write(matrix_dD: np.ndarray, origin: dict[str, Any], path: Path) -> None:
    """Writes the index, to which original embeddings are added and which is searched with such.

    The format has no place for `origin`.
    """
    kept, input_dim = matrix_dD.shape
    linear = faiss.LinearTransform(input_dim, kept, False)
    faiss.copy_array_to_vector(matrix_dD.ravel(), linear.A)
    linear.is_trained = True
    index = faiss.IndexPreTransform(faiss.IndexFlatIP(kept))
    index.prepend_transform(faiss.NormalizationTransform(kept, 2.0))
    index.prepend_transform(linear)
    faiss.write_index(index, str(path))


def encode(path: Path, x_ND: np.ndarray) -> np.ndarray:
    """What the flat index holds, (N, d), once embeddings are added to the index of a file; the file stays empty."""
    index = faiss.read_index(str(path))
    assert isinstance(index, faiss.IndexPreTransform)
    index.add(x_ND)
    return np.asarray(faiss.downcast_index(index.index).reconstruct_n(0, len(x_ND)))
