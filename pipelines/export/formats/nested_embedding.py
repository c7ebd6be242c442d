"""Compresses embeddings for a query service; needs numpy and safetensors, no torch.

`smec export --to numpy` copies this file and writes matrix.safetensors beside it:

    from nested_embedding import load

    model = load()                          # the matrix beside this file
    small = model.encode(vector, dim=96)    # (D,) to (96,), or (N, D) to (N, 96); unit norm

Shapes: N rows, D input dims, d dims kept.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
from safetensors import safe_open

SMALLEST_NORM = 1e-12


class NestedEmbedding:
    """A matrix of which every first d rows give a usable embedding; `origin` says which model it comes from."""

    def __init__(self, matrix_dD: np.ndarray, origin: dict) -> None:
        self.matrix_dD = matrix_dD
        self.origin = origin

    def encode(self, x: np.ndarray, dim: int | None = None) -> np.ndarray:
        """Compresses one embedding (D,) or several (N, D) to unit vectors of `dim` dims (default: all).

        Raises:
            ValueError: the input has another shape, or `dim` is out of range.
        """
        x = np.asarray(x, np.float32)
        most, input_dim = self.matrix_dD.shape
        dim = most if dim is None else dim
        if x.ndim not in (1, 2) or x.shape[-1] != input_dim:
            raise ValueError(f"embeddings have shape {x.shape}; this model takes ({input_dim},) or (N, {input_dim})")
        if not 1 <= dim <= most:
            raise ValueError(f"dim is {dim}; this model gives 1 to {most}, trained for {self.origin['dims']}")
        if x.ndim == 1:
            z_d = self.matrix_dD[:dim] @ x
            return z_d / max(math.sqrt(z_d @ z_d), SMALLEST_NORM)
        z_Nd = x @ self.matrix_dD[:dim].T
        return z_Nd / np.maximum(np.linalg.norm(z_Nd, axis=1, keepdims=True), SMALLEST_NORM)


def load(folder: str | Path = Path(__file__).parent) -> NestedEmbedding:
    """Reads the matrix.safetensors of a folder, by default of the one this file lies in.

    Raises:
        ValueError: it is not as it was exported.
    """
    record = Path(folder) / "export.json"
    if record.exists():
        content = (Path(folder) / "matrix.safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != json.loads(record.read_text())["files"]["matrix.safetensors"]:
            raise ValueError(f"{folder}/matrix.safetensors: is not as it was exported; copy the folder anew")
    with safe_open(Path(folder) / "matrix.safetensors", framework="numpy") as file:
        return NestedEmbedding(file.get_tensor("matrix"), json.loads(file.metadata()["smec_export"]))
