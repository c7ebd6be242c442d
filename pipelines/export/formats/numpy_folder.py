"""A model as a folder for query services: its matrix, and `nested_embedding.py`, which needs no torch.

Shapes: N rows, D input dims, d dims exported.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pipelines.export.formats import nested_embedding


def write(matrix_dD: np.ndarray, origin: dict[str, Any], path: Path) -> None:
    """Writes the matrix and the file that reads it into a folder that exists."""
    save_file({"matrix": matrix_dD}, path / "matrix.safetensors", metadata={"smec_export": json.dumps(origin)})
    source = Path(nested_embedding.__file__)
    shutil.copyfile(source, path / source.name)


def encode(path: Path, x_ND: np.ndarray) -> np.ndarray:
    """What the folder's matrix makes of embeddings, (N, d)."""
    return nested_embedding.load(path).encode(x_ND)
