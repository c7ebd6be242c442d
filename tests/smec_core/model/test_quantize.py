"""int8 and bits: how near they are to the vectors, what a store sees, what clipping does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from smec_core.model.quantize import LIMIT, from_bits, learn_int8_scales, to_bits, to_int8

DIM = 32


@pytest.fixture
def model() -> Model:
    weight = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0))
    return Model(
        [FrozenStage(8, "linear", {"weight": weight, "logits": torch.arange(DIM).float()})], DIM, {"dims": [DIM, 8]}, {}
    )


def random_vectors(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, DIM), dtype=np.float32)


@pytest.mark.parametrize("rows", [1, 700, 20_000])
def test_int8_keeps_directions_at_every_dim(model: Model, rows: int) -> None:
    vectors = random_vectors(rows)
    scales = learn_int8_scales(model, vectors)
    model.config["int8_scales"] = scales
    for dim in model.dims:
        z_Nd = model.encode(torch.from_numpy(vectors), dim)
        q_Nd = to_int8(z_Nd, model.int8_scale(dim)).float()
        cosines = torch.nn.functional.cosine_similarity(z_Nd, q_Nd)
        # one number in ten thousand is clipped
        assert cosines.mean() > 0.9998
        assert cosines.min() > 0.95
        norms = q_Nd.norm(dim=1) * scales[str(dim)]
        assert (norms - 1).abs().mean() < 0.01


def test_a_prefix_of_int8_is_int8_of_the_prefix_but_for_rounding(model: Model) -> None:
    vectors = random_vectors(500)
    scales = learn_int8_scales(model, vectors)
    long_Nd = to_int8(model.encode(torch.from_numpy(vectors)), scales[str(DIM)]).float()[:, :8]
    z_Nd = model.encode(torch.from_numpy(vectors), 8)
    assert torch.nn.functional.cosine_similarity(long_Nd, z_Nd).min() > 0.99


def test_dims_without_a_scale_are_refused(model: Model) -> None:
    with pytest.raises(InputError, match=r"scales for none, because an earlier version trained it"):
        model.int8_scale(8)
    model.config["int8_scales"] = learn_int8_scales(model, random_vectors(100))
    with pytest.raises(InputError, match=r"dim is 9, but for int8 vectors this model has scales for 32, 8"):
        model.int8_scale(9)


def test_what_is_too_large_is_clipped() -> None:
    assert to_int8(torch.tensor([[2.0, -2.0, 0.1]]), 0.01).tolist() == [[LIMIT, -LIMIT, 10]]


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 20)), elements=st.floats(-1, 1, width=32)))
def test_bits_are_the_signs(z_Nd: np.ndarray) -> None:
    bits_Nb = to_bits(z_Nd)
    assert bits_Nb.shape == (len(z_Nd), -(-z_Nd.shape[1] // 8))
    np.testing.assert_array_equal(from_bits(bits_Nb, z_Nd.shape[1]), np.where(z_Nd > 0, 1, -1))
