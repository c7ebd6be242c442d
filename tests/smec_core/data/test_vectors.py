"""Vectors in every form in which users have them, and what is no vector."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from smec_core.config import Projection
from smec_core.data.parquet import embedding_column
from smec_core.data.vectors import tensor_over
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model

DIM = 8


def make_model(kind: Projection = "linear") -> Model:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (DIM, DIM), "logits": (DIM,)}
    if kind == "residual_mlp":
        shapes |= {"up": (3, DIM), "up_bias": (3,), "down": (DIM, 3), "down_bias": (DIM,)}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return Model([FrozenStage(4, kind, tensors)], DIM, {"dims": [DIM, 4]}, {})


def vectors(rows: int = 10) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, DIM)).astype(np.float32)


GIVEN: dict[str, Callable[[np.ndarray], Any]] = {
    "lists": lambda x: x.tolist(),
    "tuples": lambda x: tuple(map(tuple, x.tolist())),
    "arrays in a list": list,
    "tensors in a list": lambda x: list(torch.from_numpy(x)),
    "objects": lambda x: pd.Series(list(x)).to_numpy(),
    "pandas column": lambda x: pd.Series(x.tolist()),
    "pandas frame": pd.DataFrame,
    "arrow": lambda x: embedding_column(x),
    "float64": lambda x: x.astype(np.float64),
    "big-endian": lambda x: x.astype(">f4"),
    "every other row of more": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every other column of more": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "torch float64": lambda x: torch.from_numpy(x).double(),
    "torch, strided": lambda x: torch.from_numpy(np.asfortranarray(x)),
}


@pytest.mark.parametrize("kind", ["linear", "residual_mlp"])
@pytest.mark.parametrize("given", GIVEN)
def test_vectors_are_taken_as_users_have_them(kind: Projection, given: str) -> None:
    model, x_ND = make_model(kind), vectors()
    expected_Nd = model.encode(x_ND, 4)
    z_Nd = model.encode(GIVEN[given](x_ND), 4)
    assert isinstance(z_Nd, torch.Tensor if given.startswith("torch") else np.ndarray)
    np.testing.assert_allclose(np.asarray(z_Nd), expected_Nd, atol=1e-6)
    # a frame and an Arrow column have no row that is a vector
    one = x_ND.tolist() if given in ("pandas frame", "arrow") else GIVEN[given](x_ND)
    z_d = model.encode(one[3], 4)
    assert z_d.shape == (4,)
    np.testing.assert_allclose(np.asarray(z_d), expected_Nd[3], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.float16, torch.int32, torch.float16, torch.bfloat16])
def test_numbers_of_any_type_are_taken_as_their_float32(dtype: Any) -> None:
    model, x_ND = make_model(), np.round(100 * np.abs(vectors())).clip(0, 127)
    given = torch.from_numpy(x_ND).to(dtype) if isinstance(dtype, torch.dtype) else x_ND.astype(dtype)
    np.testing.assert_array_equal(np.asarray(model.encode(given)), model.encode(x_ND))


def test_rows_without_a_direction_stay_apparent() -> None:
    x_ND = vectors(4)
    x_ND[0], x_ND[1, 3], x_ND[2, 5] = 0, np.nan, np.inf
    z_ND = make_model().encode(x_ND)
    assert not z_ND[0].any()
    assert np.isnan(z_ND[1:3]).all()
    np.testing.assert_allclose(z_ND[3], make_model().encode(x_ND[3]), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([[1.0] * DIM, [1.0] * (DIM - 1)], "the rows are not all of one length"),
        (pd.Series([np.ones(DIM), np.ones(DIM - 1)]), "the rows are not all of one length"),
        ([["1"] * DIM], "embeddings are of type <U1; give numbers"),
        ("text", "embeddings are of type <U4; give numbers"),
        ([[None] * DIM], "embeddings are of type object; give numbers"),
        (np.ones((1, DIM), complex), "embeddings are of type complex128; give numbers"),
        (None, "embeddings are a NoneType; give an array, a tensor or lists"),
        (pd.DataFrame({"id": ["a"], "embedding": [[1.0] * DIM]}), "embeddings are a table; give its column embedding"),
        (pa.table({"id": ["a"], "embedding": [[1.0] * DIM]}), "embeddings are a table; give its column embedding"),
        ({"id": ["a"], "embedding": [[1.0] * DIM]}, "embeddings are a table; give its column embedding"),
        ({"inputs": [[1.0] * DIM]}, "embeddings are a dict; give an array"),
        ((number for number in range(DIM)), "embeddings are a generator; give an array"),
    ],
)
def test_what_are_no_vectors_is_refused_in_one_line(given: Any, why: str) -> None:
    with pytest.raises(InputError) as refused:
        make_model().encode(given)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tensor_over_memory_that_is_read_only_is_no_copy_and_no_warning() -> None:
    x_ND = np.arange(12, dtype=np.float32).reshape(3, 4)
    x_ND.flags.writeable = False
    torch.set_warn_always(True)  # else torch warns once a process, perhaps in an earlier test
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, empty, copied = tensor_over(x_ND[:, ::2]), tensor_over(x_ND[:0]), tensor_over(x_ND.copy())
    finally:
        torch.set_warn_always(False)
    assert found.data_ptr() == x_ND.ctypes.data and found.tolist() == x_ND[:, ::2].tolist()
    assert empty.shape == (0, 4)
    # the tensor holds the memory, which would else be others' by now
    others = [np.zeros_like(x_ND) for _ in range(100)]
    assert copied.tolist() == x_ND.tolist() and len(others) == 100


@pytest.mark.parametrize("kind", ["linear", "residual_mlp"])
@pytest.mark.parametrize("scale", [1e-300, 1e-50, 1e-30, 1e-12, 1e20, 1e38, 1e50, 1e300])
def test_rows_far_from_1_keep_their_direction(scale: float, kind: Projection) -> None:
    model, x_ND = make_model(kind), vectors().astype(np.float64)
    expected = model.encode(x_ND, 4)
    far_ND = x_ND.copy()
    far_ND[::2] *= scale
    for given in (far_ND, far_ND.tolist(), torch.from_numpy(far_ND)):
        np.testing.assert_allclose(np.asarray(model.encode(given, 4)), expected, atol=1e-6)
    # the others to the bit
    np.testing.assert_array_equal(model.encode(far_ND, 4)[1::2], expected[1::2])


def test_rows_without_a_direction_stay_without_one() -> None:
    x_ND = vectors(4)
    x_ND[0], x_ND[1, 0], x_ND[2, 0], x_ND[3] = 0, np.nan, np.inf, 1e30
    found = make_model().encode(x_ND, 4)
    assert not found[0].any()
    assert np.isnan(found[1]).all()
    assert np.isnan(found[2]).all()
    assert np.linalg.norm(found[3]) == pytest.approx(1)


def test_what_is_masked_is_not_read() -> None:
    mask_ND = np.zeros((10, DIM), bool)
    mask_ND[0, :2] = True
    x_ND = np.ma.masked_array(vectors(), mask=mask_ND)
    assert np.isnan(make_model().encode(x_ND)[0]).all()


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"embeddings are of type torch\.complex64; give real numbers"):
        make_model().encode(torch.from_numpy(vectors()).to(torch.complex64))
    with pytest.raises(InputError, match="embeddings are of type complex64; give numbers"):
        make_model().encode(np.ma.masked_array(vectors().astype(np.complex64)))
