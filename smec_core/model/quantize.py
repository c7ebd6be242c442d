"""Smaller number types for stored vectors: int8 by one scale a dim, and signs as bits.

One scale for all numbers of a vector, learnt for each of a model's dims, instead of one per number: the cosine of int8
vectors is then that of the vectors themselves, so any store can search them, and a cut prefix stays usable.

Shapes: N rows, d dims kept, b = ceil(d / 8) bytes of bits.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from smec_core.model.model import Model

LIMIT = 127
QUANTILE = 0.9999
"""Share of the numbers that int8 holds without clipping: a scale up to the largest is coarser for all the others."""
SCALE_ROWS = 8192


def learn_int8_scales(model: "Model", x_ND: np.ndarray) -> dict[str, float]:
    """What 1 is worth in an int8 vector at each dim of a model, by vectors (N, D) of a corpus or a sample of it."""
    some = np.linspace(0, len(x_ND) - 1, min(SCALE_ROWS, len(x_ND))).astype(int)
    z_ND = model.encode(x_ND[some])
    scales = {}
    for dim in model.dims:
        z_Nd = z_ND[:, :dim] / np.linalg.norm(z_ND[:, :dim], axis=1, keepdims=True).clip(1e-12)
        scales[str(dim)] = float(np.quantile(np.abs(z_Nd), QUANTILE)) / LIMIT
    return scales


def to_int8(z_Nd: Tensor, scale: float) -> Tensor:
    """Unit vectors (N, d) as int8 (N, d); `scale` times the result is about the vectors."""
    return (z_Nd / scale).round().clamp(-LIMIT, LIMIT).to(torch.int8)


def to_bits(z_Nd: np.ndarray) -> np.ndarray:
    """Signs of vectors (N, d) as bytes (N, b), the first number in the highest bit; 1 is above 0, the rest is 0."""
    return np.packbits(z_Nd > 0, axis=1)


def from_bits(bits_Nb: np.ndarray, dim: int) -> np.ndarray:
    """Vectors (N, dim) of -1 and 1, float32, from what `to_bits` gave."""
    return np.unpackbits(bits_Nb, axis=1, count=dim).astype(np.float32) * 2 - 1
