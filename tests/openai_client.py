"""The service as other people's tools see it: OpenAI's own client, and readers of its OpenAPI document."""

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urljoin

import jsonschema
import numpy as np
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from smec_core.model.model import Model


def check_client(url: str, model: Model, max_rows: int) -> None:
    """The client gets the model's vectors, and raises its own errors, which say what to fix."""
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed (extra: dev)")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none is asked for", max_retries=0)
    x_ND = np.random.default_rng(0).standard_normal((3, model.input_dim), dtype=np.float32)
    # without a format the client asks for base64, and unpacks it
    for name, asked in (("smec", {}), (model.fingerprint, {"encoding_format": "float"})):
        for dim in (None, 8, 9):
            wanted = asked if dim is None else {**asked, "dimensions": dim}
            answer = client.embeddings.create(model=name, input=x_ND.tolist(), **wanted)
            z_Nd = np.array([one.embedding for one in answer.data])
            np.testing.assert_allclose(z_Nd, model.encode(x_ND, dim), rtol=0, atol=1e-6)
            assert (answer.model, answer.usage.total_tokens) == (model.fingerprint, 0)
    with pytest.raises(openai.BadRequestError, match="has no encoder") as text:
        client.embeddings.create(model="smec", input="how do cats purr?")
    assert (text.value.type, text.value.param, text.value.code) == ("invalid_request_error", "input", "text")
    with pytest.raises(openai.NotFoundError, match="another one is served") as unknown:
        client.embeddings.create(model="text-embedding-3-small", input=x_ND.tolist())
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError, match=f"at most {max_rows} rows") as much:
        client.embeddings.create(model="smec", input=[x_ND[0].tolist()] * (max_rows + 1))
    assert (much.value.status_code, much.value.code) == (413, "rows")


def check_document(url: str, input_dim: int) -> None:
    """The document is OpenAPI, the page is there, and what the paths answer has the form that the document says."""
    status, document, headers = _ask(url, "GET", "/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    validate(document, cls=OpenAPIV31SpecValidator)
    # as tools make addresses: without servers, below the root
    [server] = document.get("servers", [{"url": "/"}])
    assert urljoin(url, server["url"]).rstrip("/") == url
    rows = np.random.default_rng(0).standard_normal((2, input_dim)).tolist()
    asked: list[tuple[str, str, Any]] = [("GET", path, None) for path in ("/info", "/healthz", "/readyz")]
    asked += [("POST", "/encode", body) for body in ({"inputs": rows, "dim": 8}, {"inputs": rows, "dim": -1})]
    vectors: list[dict[str, Any]] = [{"input": rows}, {"input": rows[0], "encoding_format": "base64"}, {"input": "x"}]
    asked += [("POST", "/v1/embeddings", body) for body in [*vectors, {"input": rows, "model": "x"}]]
    seen = set()
    for method, path, body in asked:
        status, answer, _ = _ask(url, method, path, body)
        content = document["paths"][path][method.lower()]["responses"][str(status)]["content"]["application/json"]
        schema = {**content["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer)
        seen.add(status)
    assert seen == {200, 400, 404}
    status, page, headers = _ask(url, "GET", "/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "POST /v1/embeddings" in page
    assert _ask(url, "POST", "/docs", {})[0] == 405
    status, answer, _ = _ask(url, "GET", "/v1/embeddings")
    assert (status, answer["error"]["type"], answer["error"]["code"]) == (405, "invalid_request_error", "method")
    status, answer, _ = _ask(url, "GET", "/nowhere")
    assert (status, answer.keys()) == (404, {"detail"})
    assert "/docs" in answer["detail"]


def _ask(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
    """Status, content and headers of an answer."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, method=method), timeout=60) as answer:
            status, content, headers = answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        status, content, headers = error.code, error.read(), error.headers
    return status, json.loads(content) if "json" in headers["content-type"] else content.decode(), headers
