"""Query vectors as they arrive at the service: read, checked, and encoded many requests at a time.

Shapes: N rows of a request, D input dims, d dims that it asks for, R rows of all requests together.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, FailFast, ValidationError

from smec_core.data.vectors import unit_prefix
from smec_core.errors import InputError
from smec_core.model.model import Model

NUMBER_BYTES = 64
"""Most bytes of JSON that a number may take: 26 as programs write it, more where it is indented."""
OTHER_BYTES = 1024
"""Room for the rest of a body."""
FEW_LISTS, FEW_NUMBERS, FEW_KEYS = 10_000, 100_000, 100
"""What any body may hold of these, so that one with too much of them for the model is told what is wrong with it."""

FORM = '{"inputs": [[...], ...], "dim": 96}'


class QueryError(InputError):
    """A request that cannot be answered as it is; the message says what to mend.

    Attributes:
        kind: what is wrong, as the error metric counts it.
        status: of the HTTP answer.
    """

    def __init__(self, message: str, kind: str = "format", status: int = 400) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class Query(NamedTuple):
    """Rows (N, D) that have passed `check`, and how many dims of each are asked for."""

    x_ND: np.ndarray
    dim: int


class _Body(BaseModel):
    """The JSON of a request. Of bad rows only the first is reported: a body could hold a million."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[list[Annotated[list[float], FailFast()]], FailFast()]
    dim: int | None = None


def body_limit(model: Model, max_rows: int) -> int:
    """Bytes that no body of `max_rows` rows reaches."""
    return max_rows * model.input_dim * NUMBER_BYTES + OTHER_BYTES


def read(body: bytes, model: Model, max_rows: int) -> Query:
    """Reads {"inputs": [[...], ...], "dim": d}; without "dim" all dims are asked for.

    Raises:
        QueryError: not such JSON, or not what the model takes.
    """
    _check_size(body, model, max_rows)
    try:
        request = _Body.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise _explain(problem["type"], problem["loc"], problem["msg"]) from None
    widths = {len(row) for row in request.inputs}
    if len(widths) > 1:
        row = next(row for row, values in enumerate(request.inputs) if len(values) != model.input_dim)
        raise _wrong_width(f"row {row} has {len(request.inputs[row])} numbers", model)
    return check(request.inputs, request.dim, model, max_rows)


def _check_size(body: bytes, model: Model, max_rows: int) -> None:
    """Refuses a body of more parts than any request has, unread: to parse a million of them stops all other work."""
    if body.count(b"]") > max(max_rows, FEW_LISTS) + 1:
        raise _too_many("holds more lists than that", max_rows)
    if body.count(b",") > max(max_rows * model.input_dim, FEW_NUMBERS) + 1:
        raise _too_many(f"holds more than {max_rows * model.input_dim} numbers", max_rows)
    if body.count(b":") > FEW_KEYS:
        raise QueryError(f"body: holds more than {FEW_KEYS} keys; send {FORM}")


def check(inputs: Any, dim: int | None, model: Model, max_rows: int) -> Query:
    """Takes rows (N, D) as lists or an array, of any scale, and the dims to give; None for all.

    Raises:
        QueryError: not what the model takes.
    """
    dim = model.input_dim if dim is None else dim
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or not 1 <= dim <= model.input_dim:
        trained = ", ".join(map(str, model.dims))
        raise QueryError(f"dim: give 1 to {model.input_dim}, or leave it out for all; trained are {trained}", "dim")
    try:
        # what float32 cannot hold becomes infinity and is refused below
        with np.errstate(over="ignore"):
            x_ND = np.asarray(inputs, dtype=np.float32)
    except (TypeError, ValueError):
        raise QueryError("inputs: not rows of numbers, all of one length; give [[...], ...]") from None
    if x_ND.size == 0:
        raise QueryError("inputs: holds no numbers; give at least one row, [[...]]", "empty")
    if x_ND.ndim != 2:
        raise QueryError(f"inputs: has {x_ND.ndim} levels, not 2; give a list of rows, [[...], ...], for one row, too")
    if x_ND.shape[1] != model.input_dim:
        raise _wrong_width(f"rows have {x_ND.shape[1]} numbers", model)
    if len(x_ND) > max_rows:
        raise _too_many(f"has {len(x_ND)} rows", max_rows)
    with np.errstate(over="ignore"):
        norms_N = np.linalg.norm(x_ND, axis=1)
    if not np.isfinite(norms_N).all():
        row = int(np.isfinite(norms_N).argmin())
        what = "holds numbers too large for float32" if np.isfinite(x_ND[row]).all() else "holds NaN or infinity"
        raise QueryError(f"inputs: row {row} {what}; mend or leave out the row", "not_finite")
    if not norms_N.all():
        row = int(norms_N.argmin())
        raise QueryError(f"inputs: row {row} is a zero vector, which has no direction; leave it out", "zero")
    return Query(x_ND, int(dim))


def too_large(model: Model, max_rows: int) -> QueryError:
    """The error for a body past `body_limit`."""
    return _too_many(f"is larger than {body_limit(model, max_rows)} bytes", max_rows)


def check_model(model: Model) -> None:
    """Refuses a model that does not give numbers.

    Raises:
        InputError: it gives NaN or infinity for an ordinary vector.
    """
    x_1D = np.random.default_rng(0).standard_normal((1, model.input_dim), dtype=np.float32)
    if not np.isfinite(model.encode(x_1D)).all():
        raise InputError(f"the model {model.fingerprint[:12]} gives NaN or infinity; train it again")


def encode_together(model: Model, queries: Sequence[Query]) -> list[np.ndarray]:
    """What `model.encode` gives for each query, but for rounding, by one product for all of them.

    Returns:
        For each query its unit vectors (N, d), float32.
    """
    dim = max(query.dim for query in queries)
    z_Rd = torch.from_numpy(model.encode(np.concatenate([query.x_ND for query in queries]), dim))
    pieces = z_Rd.split([len(query.x_ND) for query in queries])
    return [unit_prefix(piece, query.dim).numpy() for query, piece in zip(queries, pieces, strict=True)]


def _explain(problem: str, place: tuple[int | str, ...], message: str) -> QueryError:
    """A validation error of pydantic in the words of this service."""
    if problem == "json_invalid":
        return QueryError(f"body: {message[0].lower()}{message[1:]}; send {FORM}", "json")
    key = place[0] if place else "body"
    if problem == "extra_forbidden":
        return QueryError(f"{key}: unknown key; send {FORM}")
    if problem == "missing":
        return QueryError(f"{key}: is missing; send {FORM}")
    if key == "dim":
        return QueryError("dim: not a whole number; leave it out for all dims", "dim")
    if key == "inputs" and len(place) == 2:
        return QueryError(f"inputs: row {place[1]} is not a list; give a list of rows, [[...], ...], for one row, too")
    if key == "inputs" and len(place) == 3:
        return QueryError(f"inputs: row {place[1]}, number {place[2]} is not a number; mend or leave out the row")
    return QueryError(f"{key}: {message[0].lower()}{message[1:]}; send {FORM}")


def _wrong_width(found: str, model: Model) -> QueryError:
    return QueryError(f"inputs: {found}, but this model takes {model.input_dim}; send the original embeddings", "width")


def _too_many(found: str, max_rows: int) -> QueryError:
    return QueryError(f"inputs: {found}, but a request takes at most {max_rows} rows; send several", "rows", 413)
