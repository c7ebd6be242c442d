"""The form of OpenAI's clients: what it takes, what it gives, and what it says of what it refuses."""

import base64
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.serve.answers import EMBEDDINGS
from pipelines.serve.forms import VECTORS
from pipelines.serve.queries import QueryError, encode_together
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model

DIM = 8
ROW = np.random.default_rng(0).standard_normal(DIM).tolist()


@pytest.fixture(scope="module")
def model() -> Model:
    """One stage, 8 to 4 dims."""
    weight = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0))
    return Model([FrozenStage(4, "linear", {"weight": weight, "logits": torch.ones(DIM)})], DIM, {"dims": [DIM, 4]}, {})


def ask(served: Model, **request: Any) -> dict[str, Any]:
    """The answer to a request, as its replica makes it."""
    query, write = VECTORS[EMBEDDINGS].read(json.dumps(request).encode(), served, 3)
    answer: dict[str, Any] = json.loads(write(encode_together(served, [query])[0]))
    return answer


@pytest.mark.parametrize("rows", [[ROW], [ROW, ROW[::-1]], ROW], ids=["one", "two", "without a list around it"])
def test_rows_become_vectors_in_their_order(model: Model, rows: list[Any]) -> None:
    answer = ask(model, input=rows, model="smec", dimensions=4, user="someone")
    expected_Nd = model.encode(np.atleast_2d(np.array(rows, np.float32)), 4)
    np.testing.assert_allclose([one["embedding"] for one in answer["data"]], expected_Nd, rtol=0, atol=1e-6)
    assert [(one["object"], one["index"]) for one in answer["data"]] == [
        ("embedding", row) for row in range(len(expected_Nd))
    ]
    assert (answer["object"], answer["model"]) == ("list", model.fingerprint)
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_base64_holds_the_same_numbers(model: Model) -> None:
    numbers, packed = (
        ask(model, input=[ROW], model=model.fingerprint, encoding_format=kind)["data"][0]["embedding"]
        for kind in ("float", "base64")
    )
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.array(numbers, np.float32))


@pytest.mark.parametrize(
    ("request_", "status", "code", "param", "cure"),
    [
        ({"input": "a text"}, 400, "text", "input", "has no encoder: it takes the 8 numbers"),
        ({"input": ["a text", "another"]}, 400, "text", "input", "has no encoder"),
        ({"input": ["a: b, c"] * 10_000}, 400, "text", "input", "has no encoder"),
        ({"input": [[1, 2, 3]]}, 400, "width", "input", "rows have 3 numbers, but this model takes 8"),
        ({"input": [1, 2, 3]}, 400, "width", "input", "rows have 3 numbers, but this model takes 8"),
        ({"input": [ROW, ROW[1:]]}, 400, "width", "input", "row 1 has 7 numbers"),
        ({"input": [ROW] * 4}, 413, "rows", "input", "has 4 rows, but a request takes at most 3 rows"),
        ({"input": [ROW, [0] * DIM]}, 400, "zero", "input", "row 1 is a zero vector"),
        ({"input": [float("nan"), *ROW[1:]]}, 400, "not_finite", "input", "row 0 holds NaN"),
        ({"input": [*ROW[1:], "x"]}, 400, "format", "input", "number 7 is not a number"),
        ({"input": [[*ROW[1:], None]]}, 400, "format", "input", "row 0, number 7 is not a number"),
        ({"input": [ROW, 1]}, 400, "format", "input", "row 1 is not a list"),
        ({"input": []}, 400, "empty", "input", "give at least one row"),
        ({"input": [[]]}, 400, "empty", "input", "give at least one row"),
        ({"input": [[[1]]]}, 400, "format", "input", "row 0, number 0 is not a number"),
        ({"input": None}, 400, "format", "input", "send {"),
        ({}, 400, "format", "input", "is missing; send {"),
        ({"inputs": [ROW]}, 400, "format", "input", "is missing; send {"),
        ({"input": [ROW], "dim": 4}, 400, "format", "dim", "unknown key; did you mean 'dimensions'? send {"),
        ({"input": [ROW], "k": 4}, 400, "format", "k", "unknown key; send {"),
        ({"input": [ROW], "dimensions": 9}, 400, "dim", "dimensions", "give 1 to 8"),
        ({"input": [ROW], "dimensions": "4"}, 400, "dim", "dimensions", "not a whole number"),
        ({"input": [ROW], "encoding_format": "int8"}, 400, "format", "encoding_format", "'float' or 'base64'"),
        ({"input": [ROW], "model": 3}, 400, "format", "model", "send {"),
        ({"input": [ROW], "model": "text-embedding-3-small"}, 404, "model_not_found", "model", "another one is served"),
        ({"input": [ROW], "model": "other"}, 404, "model_not_found", "model", "cannot be compared with those of the"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_what_is_refused_is_said_in_that_form(
    model: Model, request_: dict[str, Any], status: int, code: str, param: str, cure: str
) -> None:
    with pytest.raises(QueryError) as refused:
        ask(model, **request_)
    said = json.loads(VECTORS[EMBEDDINGS].refuse(refused.value))["error"]
    assert (refused.value.status, said["code"], said["param"]) == (status, code, param)
    assert said["type"] == "invalid_request_error"
    assert cure in said["message"]
    assert "\n" not in said["message"]


@pytest.mark.parametrize("level", [b"[", b"[ ", b"[\n  "], ids=["dense", "spaced", "indented"])
def test_levels_without_end_take_no_memory(model: Model, level: bytes) -> None:
    body = b'{"input": ' + level * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(QueryError, match="body: invalid JSON"):
            VECTORS[EMBEDDINGS].read(body, model, 3)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_another_model_is_not_recommended(model: Model) -> None:
    with pytest.raises(QueryError) as refused:
        ask(model, input=[ROW], model="other")
    assert "smec" not in str(refused.value)


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[" * 100_000, b'{"input": [' + b"[" * 100_000, b'"input": "a"'[:9]]
)
def test_what_is_no_json_is_about_the_body(model: Model, body: bytes) -> None:
    with pytest.raises(QueryError, match="body: invalid JSON") as refused:
        VECTORS[EMBEDDINGS].read(body, model, 3)
    assert json.loads(VECTORS[EMBEDDINGS].refuse(refused.value))["error"]["param"] is None
