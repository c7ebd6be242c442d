"""Query vectors as they arrive at the service: read, checked, and encoded many requests at a time.

Shapes: N rows of a request, D input dims, d dims that it asks for, R rows of all requests together.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, FailFast, ValidationError

from smec_core.data.vectors import unit_prefix
from smec_core.errors import InputError
from smec_core.model.model import Model
from smec_core.shown import shortened

NUMBER_BYTES = 64
"""Most bytes of JSON that a number may take: 26 as programs write it, more where it is indented."""
OTHER_BYTES = 1024
"""Room for the rest of a body."""
LONGEST_KEY = 60
FEW_LISTS, FEW_NUMBERS, FEW_KEYS = 10_000, 100_000, 100
"""What any body may hold of these, so that one with too much of them for the model is told what is wrong with it."""


class Form(NamedTuple):
    """How the JSON of a path names what it holds."""

    inputs: str
    dim: str
    example: str


ROWS_CURE = "give a list of rows, [[...], ...], for one row, too"
ENCODE_FORM = Form("inputs", "dim", '{"inputs": [[...], ...]}')

Rows = Annotated[list[Annotated[list[float], FailFast()]], FailFast()]
"""Of bad rows only the first is reported: a body could hold a million."""


class QueryError(InputError):
    """A request that cannot be answered as it is; the message says what to fix.

    Attributes:
        kind: what is wrong, as the error metric counts it.
        status: of the HTTP answer.
    """

    def __init__(self, message: str, kind: str = "format", status: int = 400) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status

    @property
    def key(self) -> str:
        """What of the request it is about: a key, or the body."""
        return str(self).partition(":")[0]


class Query(NamedTuple):
    """Rows (N, D) that have passed `check`, and how many dims of each are asked for."""

    x_ND: np.ndarray
    dim: int


class EncodeBody(BaseModel):
    """The JSON of a request to /encode."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Rows
    dim: int | None = None


Body = TypeVar("Body", bound=BaseModel)


def body_limit(model: Model, max_rows: int) -> int:
    """Bytes that no body of `max_rows` rows reaches."""
    return max_rows * model.input_dim * NUMBER_BYTES + OTHER_BYTES


def read(body: bytes, model: Model, max_rows: int) -> Query:
    """Reads {"inputs": [[...], ...], "dim": d}; without "dim" all dims are asked for.

    Raises:
        QueryError: not such JSON, or not what the model takes.
    """
    request = parse(EncodeBody, body, ENCODE_FORM, model, max_rows)
    return check_rows(request.inputs, request.dim, ENCODE_FORM, model, max_rows)


def parse(kind: type[Body], body: bytes, form: Form, model: Model, max_rows: int) -> Body:
    """Reads JSON.

    Raises:
        QueryError: not such JSON, or of more parts than any request has.
    """
    _check_size(body, form, model, max_rows)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        raise _explain(found["type"], found["loc"], found["msg"], form) from None


def _check_size(body: bytes, form: Form, model: Model, max_rows: int) -> None:
    """Refuses a body of more parts than any request has, unread: to parse a million of them stops all other work."""
    if body.count(b"]") > max(max_rows, FEW_LISTS) + 1:
        raise _too_many("holds more lists than that", form, max_rows)
    if body.count(b",") > max(max_rows * model.input_dim, FEW_NUMBERS) + 1:
        raise _too_many(f"holds more than {max_rows * model.input_dim} numbers", form, max_rows)
    if body.count(b":") > FEW_KEYS:
        raise QueryError(f"body: holds more than {FEW_KEYS} keys; send {form.example}")


def check_rows(inputs: list[list[float]], dim: int | None, form: Form, model: Model, max_rows: int) -> Query:
    """As `check`, of lists, where one of another length is named.

    Raises:
        QueryError: not what the model takes.
    """
    if len({len(row) for row in inputs}) > 1:
        row = next(row for row, values in enumerate(inputs) if len(values) != model.input_dim)
        raise _wrong_width(f"row {row} has {len(inputs[row])} numbers", form, model)
    return check(inputs, dim, model, max_rows, form)


def check(inputs: Any, dim: int | None, model: Model, max_rows: int, form: Form = ENCODE_FORM) -> Query:
    """Takes rows (N, D) as lists or an array, of any scale, and the dims to give; None for all.

    Raises:
        QueryError: not what the model takes.
    """
    dim = model.input_dim if dim is None else dim
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or not 1 <= dim <= model.input_dim:
        trained = ", ".join(map(str, model.dims))
        raise QueryError(
            f"{form.dim}: give 1 to {model.input_dim}, or leave it out for all; trained are {trained}", "dim"
        )
    try:
        # what float32 cannot hold becomes infinity and is refused below
        with np.errstate(over="ignore"):
            x_ND = np.asarray(inputs, dtype=np.float32)
    except (TypeError, ValueError):
        raise QueryError(f"{form.inputs}: not rows of numbers, all of one length; give [[...], ...]") from None
    if x_ND.size == 0:
        raise QueryError(f"{form.inputs}: holds no numbers; give at least one row, [[...]]", "empty")
    if x_ND.ndim != 2:
        raise QueryError(f"{form.inputs}: has {x_ND.ndim} levels, not 2; {ROWS_CURE}")
    if x_ND.shape[1] != model.input_dim:
        raise _wrong_width(f"rows have {x_ND.shape[1]} numbers", form, model)
    if len(x_ND) > max_rows:
        raise _too_many(f"has {len(x_ND)} rows", form, max_rows)
    is_sound_N = np.isfinite(x_ND).all(1)
    if not is_sound_N.all():
        row = int(is_sound_N.argmin())
        what = "holds NaN or infinity, or a number too large for float32"
        raise QueryError(f"{form.inputs}: row {row} {what}; fix or leave out the row", "not_finite")
    has_length_N = x_ND.any(1)
    if not has_length_N.all():
        row = int(has_length_N.argmin())
        raise QueryError(f"{form.inputs}: row {row} is a zero vector, which has no direction; leave it out", "zero")
    return Query(x_ND, int(dim))


def too_large(form: Form, model: Model, max_rows: int) -> QueryError:
    """The error for a body past `body_limit`."""
    return _too_many(f"is larger than {body_limit(model, max_rows)} bytes", form, max_rows)


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


def _explain(problem: str, place: tuple[int | str, ...], message: str, form: Form) -> QueryError:
    """A validation error of pydantic in the words of this service."""
    said, cure = f"{message[0].lower()}{message[1:]}", f"send {form.example}"
    if problem == "json_invalid":
        return QueryError(f"body: {said}; {cure}", "json")
    key = str(place[0]) if place else "body"
    if problem == "extra_forbidden":
        known = [form.inputs, form.dim]
        # as dim and dimensions, of which each path has one
        near = [name for name in known if name.startswith(key) or key.startswith(name)]
        near = near or difflib.get_close_matches(key, known, n=1)
        return QueryError(
            f"{shortened(key, LONGEST_KEY)}: unknown key; {f'did you mean {near[0]!r}? ' if near else ''}{cure}"
        )
    if problem == "missing":
        return QueryError(f"{key}: is missing; {cure}")
    if key == form.dim:
        return QueryError(f"{key}: not a whole number; leave it out for all dims", "dim")
    if key == form.inputs and len(place) == 2 and problem != "list_type":
        return QueryError(f"{key}: number {place[1]} is not a number; fix the row")
    if key == form.inputs and len(place) == 2:
        return QueryError(f"{key}: row {place[1]} is not a list; {ROWS_CURE}")
    if key == form.inputs and len(place) == 3:
        return QueryError(f"{key}: row {place[1]}, number {place[2]} is not a number; fix or leave out the row")
    return QueryError(f"{key}: {said}; {cure}")


def _wrong_width(found: str, form: Form, model: Model) -> QueryError:
    problem = f"{form.inputs}: {found}, but this model takes {model.input_dim}; send the original embeddings"
    return QueryError(problem, "width")


def _too_many(found: str, form: Form, max_rows: int) -> QueryError:
    problem = f"{form.inputs}: {found}, but a request takes at most {max_rows} rows; send several"
    return QueryError(problem, "rows", 413)
