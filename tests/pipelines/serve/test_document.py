"""What the service says of itself: OpenAPI that validators take, true to what it does, and a page without a network."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from pipelines.serve.answers import EMBEDDINGS, ENCODE
from pipelines.serve.document import DOCS, DOCUMENT, Facts, openapi, pages
from pipelines.serve.forms import VECTORS
from pipelines.serve.queries import QueryError
from pipelines.serve.settings import LimitSettings
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model

DIM, MAX_ROWS = 4, 3
MODEL = Model(
    [FrozenStage(2, "linear", {"weight": torch.eye(DIM), "logits": torch.ones(DIM)})], DIM, {"dims": [DIM, 2]}, {}
)
LIMITS = LimitSettings(deadline=7.5, max_wait=0.25)


@pytest.fixture(scope="module", params=[LIMITS, None], ids=["alone", "cluster"])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of a server of its own, and of a replica behind Ray's proxies."""
    return openapi(Facts.of(MODEL, MAX_ROWS, request.param), "")


def request_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    """What the document says that a path takes."""
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return {**content["schema"], "components": document["components"]}


def test_it_is_openapi(document: dict[str, Any]) -> None:
    validate(document, cls=OpenAPIV31SpecValidator)
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names)


def test_it_has_the_limits_that_hold() -> None:
    alone, cluster = (openapi(Facts.of(MODEL, MAX_ROWS, limits), "") for limits in (LIMITS, None))
    assert "within 7.5 seconds" in alone["info"]["description"]
    assert "0.25 seconds" in alone["info"]["description"]
    assert "7.5" not in json.dumps(cluster)
    for path in (ENCODE, EMBEDDINGS):
        said = alone["paths"][path]["post"]["responses"]
        assert {"400", "408", "413", "431", "503"} <= said.keys()
        assert "408" not in cluster["paths"][path]["post"]["responses"]
        assert f"More than {MAX_ROWS} rows" in said["413"]["description"]
        assert "Retry-After" in said["503"]["headers"]
        # whichever part of the service refuses it
        for status in {"400", "408", "413", "431", "503"}:
            form = said[status]["content"]["application/json"]["schema"]["$ref"]
            assert form.endswith("/OpenAIProblem" if path == EMBEDDINGS else "/Problem")


WORDS = re.compile(r"needed|It is\.|It is not\.|A word for it")


def test_the_page_says_what_it_means() -> None:
    made = pages(Facts.of(MODEL, MAX_ROWS, LIMITS), "")
    text = made[DOCS].body.decode()
    assert "<th>inputs, required</th>" in text
    assert "<td>Healthy.</td>" in text and "<td>Ready.</td>" in text and "<td>Not ready.</td>" in text
    assert "A short error code." in made[DOCUMENT].body.decode()
    assert not WORDS.search(text + made[DOCUMENT].body.decode())


@pytest.mark.parametrize(("prefix", "servers"), [("", None), ("/my models", [{"url": "/my%20models"}])])
def test_addresses_begin_with_the_route(prefix: str, servers: list[dict[str, str]] | None) -> None:
    facts = Facts.of(MODEL, MAX_ROWS, LIMITS)
    assert openapi(facts, prefix).get("servers") == servers
    made = json.loads(pages(facts, prefix)[DOCUMENT].body)
    assert made == openapi(facts, prefix)
    validate(made, cls=OpenAPIV31SpecValidator)


NUMBERS = st.integers(1, 9) | st.floats(0.5, 100)
ROWS = st.lists(st.lists(NUMBERS, min_size=DIM - 1, max_size=DIM + 1), max_size=MAX_ROWS + 1)
FULL_ROWS = st.lists(st.lists(NUMBERS, min_size=DIM, max_size=DIM), min_size=1, max_size=MAX_ROWS)
OTHERS = st.none() | st.booleans() | st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=2) | NUMBERS
DIMS = st.none() | st.integers(-1, DIM + 1) | st.booleans()


def bodies(inputs: str, dim: str, **more: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Requests, good and bad, some with other keys."""
    row = st.lists(NUMBERS, min_size=DIM - 1, max_size=DIM + 1)
    optional = {dim: DIMS, "unknown": NUMBERS, **more}
    # most of them good but for what is optional
    wanted = FULL_ROWS | FULL_ROWS | ROWS | row | OTHERS
    return st.fixed_dictionaries({inputs: wanted}, optional=optional)


@given(
    asked=st.tuples(st.just(ENCODE), bodies("inputs", "dim"))
    | st.tuples(
        st.just(EMBEDDINGS),
        bodies(
            "input",
            "dimensions",
            model=st.sampled_from(["smec", MODEL.fingerprint, "other"]),
            encoding_format=st.sampled_from(["float", "base64", "int8"]),
            user=st.none() | st.text(max_size=3) | NUMBERS,
        ),
    )
)
def test_the_document_allows_what_the_service_takes_and_nothing_else(asked: tuple[str, dict[str, Any]]) -> None:
    path, body = asked
    schema = request_schema(openapi(Facts.of(MODEL, MAX_ROWS, LIMITS), ""), path)
    is_allowed = jsonschema.Draft202012Validator(schema).is_valid(body)
    try:
        VECTORS[path].read(json.dumps(body).encode(), MODEL, MAX_ROWS)
        is_taken = True
    except QueryError:
        is_taken = False
    assert is_allowed == is_taken


class Seen(HTMLParser):
    """Elements of a page, and all that they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links |= {value or "" for name, value in attrs if name in ("src", "href", "style", "action")}


def test_the_page_shows_every_path_and_loads_nothing() -> None:
    made = pages(Facts.of(MODEL, MAX_ROWS, LIMITS), "")
    text = made[DOCS].body.decode()
    for path, operations in json.loads(made[DOCUMENT].body)["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}</h2>" in text
            assert operation["summary"] in html.unescape(text)
    seen = Seen()
    seen.feed(text)
    assert seen.links == {"openapi.json"}
    assert not seen.tags & {"script", "img", "link", "iframe", "object", "form"}
    assert "url(" not in text and "@import" not in text


def test_the_policy_lets_nothing_in_but_the_style_of_the_page() -> None:
    page = pages(Facts.of(MODEL, MAX_ROWS, LIMITS), "")[DOCS]
    policy = dict(page.headers)["content-security-policy"]
    [style] = re.findall(r"<style>(.*?)</style>", page.body.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
