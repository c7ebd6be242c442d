"""What the query service makes of a request: refusals with their cure, and one product for many requests."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serve.queries import Query, QueryError, body_limit, check, encode_together, read
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model

DIM = 8


@pytest.fixture(scope="module", params=["linear", "residual_mlp"])
def model(request: pytest.FixtureRequest) -> Model:
    """One stage, 8 to 4 dims, that folds into a matrix or does not."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(DIM, DIM, generator=generator), "logits": torch.ones(DIM)}
    if request.param == "residual_mlp":
        shapes = {"up": (16, DIM), "up_bias": (16,), "down": (DIM, 16), "down_bias": (DIM,)}
        tensors |= {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return Model([FrozenStage(4, request.param, tensors)], DIM, {"dims": [DIM, 4]}, {})


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)


@given(asked=st.lists(st.tuples(st.integers(1, 5), st.integers(2, DIM)), min_size=1, max_size=9))
def test_together_gives_each_request_what_encode_gives_it(model: Model, asked: list[tuple[int, int]]) -> None:
    queries = [Query(rows(count, seed), dim) for seed, (count, dim) in enumerate(asked)]
    for query, z_Nd in zip(queries, encode_together(model, queries), strict=True):
        np.testing.assert_allclose(z_Nd, model.encode(query.x_ND, query.dim), rtol=0, atol=1e-6)


def test_without_dim_all_dims_are_given(model: Model) -> None:
    query = read(json.dumps({"inputs": rows(2).tolist()}).encode(), model, max_rows=2)
    np.testing.assert_array_equal(query.x_ND, rows(2))
    assert query.dim == DIM


@pytest.mark.parametrize(
    ("body", "cure"),
    [
        ("", "body: invalid JSON"),
        (b"\xff\xfe", "body: invalid JSON"),
        ("[" * 100_000, "body: invalid JSON"),
        ("[]", 'send {"inputs"'),
        ("{}", "inputs: is missing; send"),
        ('{"inputs": [[1]], "dim": true}', "dim: not a whole number"),
        ('{"inputs": [[1]], "dim": "4"}', "dim: not a whole number"),
        (f'{{"inputs": [[1,1,1,1,1,1,1,1]], "dim": {"9" * 4000}}}', "dim: give 1 to 8"),
        (f'{{"inputs": [[1,1,1,1,1,1,1,1]], "dim": {"9" * 9000}}}', "body: invalid JSON: number out of range"),
        ('{"inputs": null}', "inputs: "),
        ('{"inputs": [[[1]]]}', "row 0, number 0 is not a number"),
        ('{"inputs": [["1"]]}', "row 0, number 0 is not a number"),
        ('{"inputs": [[]]}', "give at least one row"),
        ('{"inputs": [[1,1,1,1,1,1,1,1e999]]}', "row 0 holds NaN or infinity"),
        ('{"inputs": [[1,1,1,1,1,1,1,1e39]]}', "row 0 holds NaN or infinity"),
        ('{"inputs": [[0,0,0,0,0,0,0,1e-50]]}', "row 0 is a zero vector"),
        (f'{{"inputs": [[1,1,1,1,1,1,1,1]], "{"x" * 3000}": 1}}', "characters)... xxx"),
    ],
)
def test_bad_bodies_are_refused_in_one_line(model: Model, body: str | bytes, cure: str) -> None:
    with pytest.raises(QueryError) as refused:
        read(body if isinstance(body, bytes) else body.encode(), model, max_rows=2)
    assert cure in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.status == 400


@pytest.mark.parametrize("scale", ["1e-44", "1e-30", "1e30", "3e38"])
def test_the_scale_of_a_vector_says_nothing(model: Model, scale: str) -> None:
    found = read(f'{{"inputs": [[{",".join([scale] * 8)}]]}}'.encode(), model, max_rows=2)
    one = read(b'{"inputs": [[1,1,1,1,1,1,1,1]]}', model, max_rows=2)
    np.testing.assert_allclose(encode_together(model, [found])[0], encode_together(model, [one])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "dim", "cure"),
    [
        (rows(2)[0].tolist(), 4, "give a list of rows"),
        ([["a"] * DIM], 4, "not rows of numbers"),
        ([[1.0], [1.0, 2.0]], 4, "not rows of numbers"),
        (None, 4, "inputs: "),
        (rows(2).tolist(), 4.0, "dim: give 1 to 8"),
        (rows(2).tolist(), "4", "dim: give 1 to 8"),
        (rows(2).tolist(), -1, "dim: give 1 to 8"),
    ],
)
def test_bad_arguments_of_a_handle_are_refused(model: Model, inputs: Any, dim: Any, cure: str) -> None:
    with pytest.raises(QueryError, match=cure):
        check(inputs, dim, model, max_rows=2)


def test_a_full_request_fits_into_the_limit_however_it_is_written(model: Model) -> None:
    longest = [[-1.2345678901234567e-100] * DIM] * 100
    assert len(json.dumps({"inputs": longest, "dim": DIM}, indent=8)) < body_limit(model, 100)


def test_more_rows_than_allowed_are_too_large(model: Model) -> None:
    with pytest.raises(QueryError, match="has 3 rows, but a request takes at most 2") as refused:
        check(rows(3), 4, model, max_rows=2)
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("body", "status", "cure"),
    [
        ('{"inputs": [' + "[]," * 100_000 + "[]]}", 413, "at most 2 rows"),
        ('{"inputs": [[' + "1," * 200_000 + "1]]}", 413, "at most 2 rows"),
        ('{"inputs": [[1]]' + ', "a": 1' * 200_000 + "}", 413, "at most 2 rows"),
        ('{"inputs": [[1]]' + ', "a": 1' * 200 + "}", 400, "more than 100 keys"),
    ],
    ids=["rows", "numbers", "parts", "keys"],
)
def test_a_body_of_too_many_parts_is_refused_unread(
    model: Model, body: str, status: int, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serve.queries.EncodeBody", None)
    with pytest.raises(QueryError, match=cure) as refused:
        read(body.encode(), model, max_rows=2)
    assert refused.value.status == status
