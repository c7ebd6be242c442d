"""Vectors as users give them, as tensors, and unit vectors.

Shapes: N rows, D or d dims.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smec_core.errors import InputError

_ALIGNED_BYTES = 64
FARTHEST = 2.0**40
"""A number whose square, summed over many dims, is far from the end of float32; so is that of its inverse."""


def tensor_of(numbers: np.ndarray | Sequence[Any], is_wide: bool = False) -> Tensor:
    """Numbers as a float32 tensor.

    Args:
        numbers: an array of numbers of any type, lists of numbers, or rows as objects, as pandas holds them. What is
            masked becomes NaN.
        is_wide: whether float64 stays float64, which holds larger and smaller numbers.

    Raises:
        InputError: rows of several lengths, a table, or something else than numbers.
    """
    held = numbers if isinstance(numbers, Mapping) else getattr(numbers, "column_names", None)
    if "embedding" in (getattr(numbers, "columns", ()) if held is None else held):
        raise InputError("embeddings are a table; give its column embedding")
    try:
        if isinstance(numbers, np.ma.MaskedArray) and numbers.dtype.kind != "c":
            numbers = np.ma.filled(numbers.astype(np.float64), np.nan)
        array = np.asarray(numbers)
        if array.dtype == object:
            array = np.asarray(array.tolist() if array.ndim > 1 else list(array))
    except ValueError as error:
        raise InputError("embeddings: the rows are not all of one length; give (N, D) numbers") from error
    except (TypeError, RuntimeError) as error:
        raise InputError(f"embeddings are a {type(numbers).__name__}; give an array, a tensor or lists") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"embeddings are of type {array.dtype}; give numbers")
    dtype = np.float64 if is_wide and array.dtype.kind == "f" and array.dtype.itemsize > 4 else np.float32
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def near_one(x_ND: Tensor) -> Tensor:
    """Rows of any scale as float32 that can be multiplied: those that are very long or short are scaled.

    What lies between keeps its bits. Rows of zeros stay, and so do those with NaN or infinity.
    """
    if x_ND.is_floating_point():
        most_N1 = torch.linalg.vector_norm(x_ND, torch.inf, dim=1, keepdim=True)
        is_far_N1 = ((most_N1 > FARTHEST) | (most_N1 < 1 / FARTHEST)) & (most_N1 > 0) & most_N1.isfinite()
        if is_far_N1.any():
            wide_ND = x_ND.double()
            x_ND = torch.where(is_far_N1, wide_ND / most_N1.double(), wide_ND)
    return x_ND.float()


@contextmanager
def float32() -> Iterator[None]:
    """Makes new tensors float32, whatever the caller has set; then all is as it was."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def aligned(x_ND: np.ndarray) -> Tensor:
    """An array as a tensor whose memory begins where torch's own does: how a product is rounded depends on it."""
    x = torch.from_numpy(x_ND)
    return x if x.data_ptr() % _ALIGNED_BYTES == 0 else x.clone()


class _Writable:
    """Says of an array that it may be written to."""

    def __init__(self, numbers: np.ndarray) -> None:
        told = numbers.__array_interface__
        self.__array_interface__ = {**told, "data": (told["data"][0], False)}
        # whose memory it is
        self.numbers = numbers


def tensor_over(numbers: np.ndarray) -> Tensor:
    """A tensor over an array's own memory, which nothing may write to, as that of Arrow and of Ray's object store.

    torch would warn of it, and a warning cannot be held back for one thread alone.
    """
    return torch.from_numpy(np.asarray(_Writable(numbers)))


def unit(z_Nd: Tensor) -> Tensor:
    """Rows at norm 1, whatever their scale: the squares of a float32 vector may leave the range of float32."""
    norm_N1 = torch.linalg.vector_norm(z_Nd, dim=1, keepdim=True, dtype=torch.float64)
    return z_Nd / norm_N1.clamp_min(torch.finfo(torch.float32).tiny).float()


def unit_prefix(z_ND: Tensor, dim: int) -> Tensor:
    """The first `dim` numbers of unit vectors (N, D), as unit vectors (N, dim)."""
    return z_ND if z_ND.shape[1] == dim else unit(z_ND[:, :dim])
