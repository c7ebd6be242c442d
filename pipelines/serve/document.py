"""What the service says of itself: an OpenAPI 3.1 document of its paths and limits, and a page made from that."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from pydantic import BaseModel
from pydantic_core import to_json

import smec_core
from pipelines.serve.answers import EMBEDDINGS, ENCODE, Page
from pipelines.serve.connection import HEAD_BYTES
from pipelines.serve.forms import ANY_MODEL, EmbeddingsBody
from pipelines.serve.queries import EncodeBody, body_limit
from pipelines.serve.settings import LimitSettings
from smec_core.model.model import Model

DOCUMENT, DOCS = "/openapi.json", "/docs"
NO_SNIFFING = ("x-content-type-options", "nosniff")


class Facts(NamedTuple):
    """What a service serves, and with which limits.

    Attributes:
        body_bytes: most bytes of a body.
        limits: of its HTTP server; None where Ray's proxies listen, which have limits of their own or none.
    """

    fingerprint: str
    input_dim: int
    dims: Sequence[int]
    max_rows: int
    body_bytes: int
    limits: LimitSettings | None

    @classmethod
    def of(cls, model: Model, max_rows: int, limits: LimitSettings | None) -> "Facts":
        """The facts of a model."""
        size = body_limit(model, max_rows)
        return cls(model.fingerprint, model.input_dim, model.dims, max_rows, size, limits)


def pages(facts: Facts, prefix: str) -> dict[str, Page]:
    """The document and the page, by path below the prefix of the route."""
    document = openapi(facts, prefix)
    page, style = _page(document)
    sources = f"style-src 'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
    policy = f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    headers = (("content-security-policy", policy), ("referrer-policy", "no-referrer"), NO_SNIFFING)
    return {
        DOCUMENT: Page("application/json", to_json(document), (NO_SNIFFING,)),
        DOCS: Page("text/html; charset=utf-8", page.encode(), headers),
    }


def _page(document: dict[str, Any]) -> tuple[str, str]:
    """The page, and the style sheet that it holds."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.serve"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("docs.css").render()
    schemas = document["components"]["schemas"]

    def keys(operation: dict[str, Any]) -> dict[str, Any]:
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        found: dict[str, Any] = schemas[content["schema"]["$ref"].rpartition("/")[2]] if content else {}
        return found

    page = environment.get_template("docs.html.j2").render(document, style=Markup(style), keys=keys)
    return page, style


def openapi(facts: Facts, prefix: str) -> dict[str, Any]:
    """The document.

    Args:
        facts: what is served.
        prefix: of the route, without a slash at its end, so that tools can put a path behind it.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": "smec serve", "version": smec_core.__version__, "description": _description(facts)},
        # without servers it is the root of where the document was found
        **({"servers": [{"url": quote(prefix)}]} if prefix else {}),
        "paths": _paths(facts),
        "components": {"schemas": _schemas(facts)},
    }


def _description(facts: Facts) -> str:
    parts = [
        f"Original embeddings of {facts.input_dim} dims in, nested unit vectors out, of any number of dims up to that; "
        f"the model {facts.fingerprint} is trained for {_listed(facts.dims)}. Vectors of two models cannot be "
        "compared: each answer names its model.",
        f"A request takes at most {facts.max_rows} rows and {facts.body_bytes} bytes. There is no login: whoever "
        "reaches the port may use it.",
    ]
    if facts.limits is not None:
        parts.append(
            f"Every request is answered within {facts.limits.deadline:g} seconds; what would wait longer than "
            f"{facts.limits.max_wait:g} seconds for a replica gets status 503 at once."
        )
    return " ".join(parts)


def _paths(facts: Facts) -> dict[str, Any]:
    health = _json("Health", "Healthy.")
    ready, away = _json("Health", "Ready."), _json("Health", "Not ready.")
    return {
        ENCODE: {"post": _vectors(facts, "encode", "Gives vectors.", "Encode", "Problem", {})},
        EMBEDDINGS: {
            "post": _vectors(
                facts,
                "embeddings",
                "Gives vectors, in the form of clients of OpenAI's API; vectors are their input, text is refused.",
                "Embeddings",
                "OpenAIProblem",
                {404: "Another model is served than the one that is named."},
            )
        },
        "/info": {
            "get": {
                "operationId": "info",
                "summary": "Says what the model takes and gives, and what it reached when it was trained.",
                "responses": {"200": _json("Info", "What the model is."), **_refusals(facts, "Problem", {}, (503,))},
            }
        },
        "/healthz": _get("healthz", "Says that the service lives.", {"200": health}),
        "/readyz": _get("readyz", "Says whether it takes requests.", {"200": ready, "503": away}),
        DOCUMENT: _get("document", "Gives this document.", {"200": _plain("application/json", "OpenAPI 3.1.")}),
        DOCS: _get("docs", "Shows this document as a page.", {"200": _plain("text/html", "A page.")}),
    }


def _get(name: str, summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"operationId": name, "summary": summary, "responses": responses}}


def _vectors(facts: Facts, name: str, summary: str, request: str, error: str, more: dict[int, str]) -> dict[str, Any]:
    statuses = (400, 413, 500, 503) if facts.limits is None else (400, 408, 413, 431, 500, 503)
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(f"{request}Request")}}},
        "responses": {
            "200": _json(f"{request}Answer", "The vectors, in the order of the rows."),
            **_refusals(facts, error, more, statuses),
        },
    }


def _refusals(facts: Facts, error: str, more: dict[int, str], statuses: Sequence[int]) -> dict[str, Any]:
    words = {
        400: "It cannot be answered as it is; the message says what to fix.",
        408: "It came too slowly: send it at once.",
        413: f"More than {facts.max_rows} rows, or {facts.body_bytes} bytes: send several.",
        431: f"Its head is larger than {HEAD_BYTES} bytes.",
        500: "The service failed; its log says why.",
        503: "Too many requests are under way, a replica was lost, or the service is ending: send the same again after "
        "the seconds of Retry-After, each time after a longer wait.",
        **more,
    }
    found = {str(status): _json(error, words[status]) for status in (*statuses, *more)}
    found["503"]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return dict(sorted(found.items()))


def _plain(media_type: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {}}}


def _json(schema: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _schemas(facts: Facts) -> dict[str, Any]:
    size, number, text = facts.input_dim, {"type": "number"}, {"type": "string"}
    row = {"type": "array", "items": number, "minItems": size, "maxItems": size}
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": facts.max_rows}
    said = f"1 to {facts.max_rows} rows of {size} numbers each, at any scale, none of them all zero"
    dim = {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": size,
        "description": f"How many dims to give, 1 to {size}, of which {_listed(facts.dims)} are trained; default: all.",
    }
    fingerprint = {**text, "description": "The sha256 that tells whose vectors these are."}
    vector = {"type": "array", "items": number}
    model = {
        "enum": [ANY_MODEL, facts.fingerprint],
        "default": ANY_MODEL,
        "description": f"{ANY_MODEL}: whichever is served; or the fingerprint of this one, which another refuses.",
    }
    return {
        "EncodeRequest": _request(EncodeBody, inputs={**rows, "description": f"{said}."}, dim=dim),
        "EncodeAnswer": _object(
            embeddings={"type": "array", "items": vector, "description": "Unit vectors."},
            dim={"type": "integer"},
            model=fingerprint,
        ),
        "EmbeddingsRequest": _request(
            EmbeddingsBody,
            input={"anyOf": [rows, row], "description": f"{said}; or one row."},
            model=model,
            dimensions=dim,
            encoding_format={
                "enum": ["float", "base64"],
                "default": "float",
                "description": "float: numbers; base64: float32, little-endian.",
            },
            user={"type": ["string", "null"], "description": "Taken from clients that send it, and not used."},
        ),
        "EmbeddingsAnswer": _object(
            object={"const": "list"},
            data={
                "type": "array",
                "items": _object(
                    object={"const": "embedding"},
                    index={"type": "integer"},
                    embedding={"oneOf": [vector, {**text, "contentEncoding": "base64"}]},
                ),
            },
            model=fingerprint,
            usage=_object(prompt_tokens={"const": 0}, total_tokens={"const": 0}),
        ),
        "Info": _object(
            model=fingerprint,
            input_dim={"const": size},
            dims={"type": "array", "items": {"type": "integer"}},
            max_rows={"const": facts.max_rows},
            evaluation={"type": "object"},
        ),
        "Health": {**_object(status=text, model=fingerprint), "required": ["status"]},
        "Problem": _object(detail={**text, "description": "What is wrong and what to do."}),
        "OpenAIProblem": _object(
            error=_object(
                message={**text, "description": "What is wrong and what to do."},
                type={"enum": ["invalid_request_error", "server_error"]},
                param={"type": ["string", "null"], "description": "The key that it is about."},
                code={"type": ["string", "null"], "description": "A short error code."},
            )
        ),
    }


def _request(kind: type[BaseModel], **properties: Any) -> dict[str, Any]:
    """The schema of what `kind` reads; every key of it must be told."""
    schema = kind.model_json_schema()
    needed = schema["required"]
    known = {name: properties[name] for name in sorted(schema["properties"], key=lambda name: name not in needed)}
    return {"type": "object", "properties": known, "required": needed, "additionalProperties": False}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _listed(dims: Sequence[int]) -> str:
    return ", ".join(map(str, dims))
