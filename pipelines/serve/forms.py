"""The forms in which vectors are asked for and given: this service's own, and that of OpenAI's clients.

Shapes: N rows of a request, d dims that it asks for.
"""

import re
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast
from pydantic_core import to_json

from pipelines.serve import queries
from pipelines.serve.answers import EMBEDDINGS, ENCODE, problem
from pipelines.serve.queries import ENCODE_FORM, Form, Query, QueryError, Rows, check_rows, parse
from smec_core.model.model import Model

ANY_MODEL = "smec"
"""The model that is served, whichever it is."""
EMBEDDINGS_FORM = Form("input", "dimensions", f'{{"model": "{ANY_MODEL}", "input": [[...], ...]}}')
# searched in whole bodies of whatever a client sends: nothing is repeated without end but single bytes, which are never
# gone back over (*+), so that no memory is taken, and no more time than it takes to count the bytes
_TEXT = re.compile(rb'"input"\s*+:\s*+(?:\[\s*+){0,3}"')
_ONE_ROW = re.compile(rb'"input"\s*+:\s*+\[\s*+[^\s\[\]"]')


class _EmbeddingsBody(BaseModel):
    """What the JSON of a request to /v1/embeddings holds besides its input."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ANY_MODEL
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class EmbeddingsBody(_EmbeddingsBody):
    """The JSON of a request to /v1/embeddings."""

    input: Rows


class _OneRowBody(_EmbeddingsBody):
    input: Annotated[list[float], FailFast()]


Write = Callable[[np.ndarray], bytes]
"""Makes the body of the answer of unit vectors (N, d)."""


class Vectors(NamedTuple):
    """How a path asks for vectors, gives them, and says what is wrong.

    Attributes:
        form: names of the keys.
        read: takes a body, the model and the most rows; what it raises is a QueryError.
    """

    path: str
    form: Form
    read: Callable[[bytes, Model, int], tuple[Query, Write]]

    def refuse(self, error: QueryError) -> bytes:
        """The body of the answer to what cannot be encoded."""
        param = None if error.key == "body" else error.key
        return to_json(problem(self.path, error.status, str(error), error.kind, param))


def _read_encode(body: bytes, model: Model, max_rows: int) -> tuple[Query, Write]:
    query = queries.read(body, model, max_rows)
    return query, partial(_write_encode, query.dim, model.fingerprint)


def _write_encode(dim: int, fingerprint: str, z_Nd: np.ndarray) -> bytes:
    return to_json({"embeddings": z_Nd.tolist(), "dim": dim, "model": fingerprint})


def _read_embeddings(body: bytes, model: Model, max_rows: int) -> tuple[Query, Write]:
    """Reads {"input": [[...], ...], "dimensions": d, "encoding_format": "base64", "model": "smec"}, or one row."""
    if _TEXT.search(body):
        # before it is parsed: of text, some would be refused for its length only
        raise QueryError(
            f"input: holds text, but this service has no encoder: it takes the {model.input_dim} numbers that yours "
            f"makes of a text; send {EMBEDDINGS_FORM.example}",
            "text",
        )
    request: _EmbeddingsBody
    if _ONE_ROW.search(body):
        request = one = parse(_OneRowBody, body, EMBEDDINGS_FORM, model, max_rows)
        rows = [one.input]
    else:
        request = several = parse(EmbeddingsBody, body, EMBEDDINGS_FORM, model, max_rows)
        rows = several.input
    if request.model not in (ANY_MODEL, model.fingerprint):
        raise QueryError(
            f"model: another one is served, {model.fingerprint}; its vectors cannot be compared with those of the "
            "model you named: use an index made by the served model, or serve yours",
            "model_not_found",
            404,
        )
    query = check_rows(rows, request.dimensions, EMBEDDINGS_FORM, model, max_rows)
    return query, partial(_write_embeddings, request.encoding_format == "base64", model.fingerprint)


def _write_embeddings(is_base64: bool, fingerprint: str, z_Nd: np.ndarray) -> bytes:
    # little-endian float32, as the clients read it
    rows = [b64encode(z_d).decode() for z_d in z_Nd.astype("<f4")] if is_base64 else z_Nd.tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    # the form asks for tokens, of which vectors have none
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return to_json({"object": "list", "data": data, "model": fingerprint, "usage": usage})


VECTORS = {
    ENCODE: Vectors(ENCODE, ENCODE_FORM, _read_encode),
    EMBEDDINGS: Vectors(EMBEDDINGS, EMBEDDINGS_FORM, _read_embeddings),
}
