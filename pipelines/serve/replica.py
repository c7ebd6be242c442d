"""A replica of the service: it holds the model, batches queries, and answers over HTTP and by handle.

Needs the extra `serve`; pipelines/serve/job.py, which does not, builds the application from it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from ray import serve
from ray.serve.metrics import Counter, Histogram
from starlette.exceptions import HTTPException

from pipelines.serve.answers import EMBEDDINGS, ENCODE, problem
from pipelines.serve.document import DOCS, DOCUMENT, Facts, pages
from pipelines.serve.forms import VECTORS
from pipelines.serve.queries import (
    ENCODE_FORM,
    Form,
    Query,
    QueryError,
    body_limit,
    check,
    encode_together,
    too_large,
)
from smec_core.errors import InputError
from smec_core.model.files import load

MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
ROWS = [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384]

LARGE_BYTES = 65_536
"""Of a body or its vectors: more is read and written in a thread, so that others are answered meanwhile."""

http = FastAPI(title="smec: nested embeddings", openapi_url=None)


class Meters:
    """The metrics of a replica that Ray exports to Prometheus, each name with `ray_` before it."""

    def __init__(self) -> None:
        self.requests = Counter("smec_serve_requests", "Requests for vectors, those refused included.")
        self.rows = Counter("smec_serve_rows", "Vectors given.")
        self.errors = Counter("smec_serve_errors", "Requests refused or failed, by kind.", ("kind",))
        self.batch_rows = Histogram("smec_serve_batch_rows", "Rows that were multiplied together.", ROWS)
        self.latency = Histogram("smec_serve_latency_ms", "From a request's arrival to its answer.", MILLISECONDS)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts one request, its time and its error."""
        started = time.perf_counter()
        try:
            yield
        except BaseException as error:
            label = "cancelled" if isinstance(error, asyncio.CancelledError) else getattr(error, "kind", "internal")
            self.errors.inc(tags={"kind": label})
            raise
        finally:
            self.requests.inc()
            self.latency.observe(1000 * (time.perf_counter() - started))


def _response(status: int, body: bytes) -> Response:
    return Response(body, status, media_type="application/json")


@http.exception_handler(HTTPException)
async def _refuse(request: Request, error: HTTPException) -> Response:
    """Another path or method than those below, in the form of the path."""
    path, status = request.url.path, error.status_code
    said, code = f"{error.detail}; GET {DOCS} shows what there is", "method" if status == 405 else "path"
    response = _response(status, to_json(problem(path, status, said, code)))
    # of a method: those that there are
    response.headers.update(error.headers or {})
    return response


# what its methods use must stand above it: Serve copies the routes, and all that they name, as it reads this line
@serve.deployment
@serve.ingress(http)
class Encoder:
    """A deployment; `serve.get_app_handle(name).encode.remote(x_ND, dim)` calls it from Python on the cluster."""

    def __init__(
        self, model: str, fingerprint: str, threads: int, batch_requests: int, batch_wait_ms: float, max_rows: int
    ) -> None:
        torch.set_num_threads(threads)
        self.model = load(model)
        self.fingerprint = self.model.fingerprint
        if self.fingerprint != fingerprint:
            # replicas of one application would give vectors that cannot be compared
            raise InputError(
                f"{model}: holds the model {self.fingerprint[:12]} now, but {fingerprint[:12]} was deployed; deploy it "
                "again (smec serve), and give a new version a folder of its own"
            )
        self.max_rows = max_rows
        # by the prefix of the route, which an update may change under a replica
        self.pages = lru_cache(1)(partial(pages, Facts.of(self.model, max_rows, None)))
        self.meters = Meters()
        self._encode_batch.set_max_batch_size(batch_requests)  # type: ignore[attr-defined]
        self._encode_batch.set_batch_wait_timeout_s(batch_wait_ms / 1000)  # type: ignore[attr-defined]

    async def encode(self, x_ND: Any, dim: int | None = None) -> np.ndarray:
        """Compresses query vectors; for Serve handles.

        Args:
            x_ND: original embeddings (N, D), an array or lists, any scale.
            dim: how many dims to keep. Default: all.

        Returns:
            Unit vectors (N, dim), float32: those of `Model.encode`, but for rounding.

        Raises:
            QueryError: not what the model takes; an InputError.
        """
        with self.meters.request():
            return await self._answer(check(x_ND, dim, self.model, self.max_rows))

    async def answer(self, body: bytes, path: str) -> tuple[int, bytes]:
        """Status and body of the HTTP answer to a whole body, in the form of its path (pipelines/serve/forms.py)."""
        vectors = VECTORS[path]
        try:
            with self.meters.request():
                if len(body) > body_limit(self.model, self.max_rows):
                    raise too_large(vectors.form, self.model, self.max_rows)
                read = partial(vectors.read, body, self.model, self.max_rows)
                query, write = await asyncio.to_thread(read) if len(body) > LARGE_BYTES else read()
                z_Nd = await self._answer(query, vectors.form)
                return 200, await asyncio.to_thread(write, z_Nd) if z_Nd.nbytes > LARGE_BYTES else write(z_Nd)
        except QueryError as error:
            return error.status, vectors.refuse(error)

    async def describe(self) -> tuple[int, bytes]:
        """Status and body of the HTTP answer to /info."""
        info = {
            "model": self.fingerprint,
            "input_dim": self.model.input_dim,
            "dims": self.model.dims,
            "max_rows": self.max_rows,
            "evaluation": self.model.metrics.get("evaluation", {}),
        }
        return 200, to_json(info, inf_nan_mode="null")

    @http.post(ENCODE)
    async def post_encode(self, request: Request) -> Response:
        """As `answer` says."""
        return await self._post(request, ENCODE)

    @http.post(EMBEDDINGS)
    async def post_embeddings(self, request: Request) -> Response:
        """As `answer` says."""
        return await self._post(request, EMBEDDINGS)

    async def _post(self, request: Request, path: str) -> Response:
        body, limit = bytearray(), body_limit(self.model, self.max_rows)
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
        return _response(*await self.answer(bytes(body), path))

    @http.get("/healthz")
    @http.get("/readyz")
    async def healthz(self) -> Response:
        """Answers 200 from when the model is loaded."""
        return _response(200, to_json({"status": "ok", "model": self.fingerprint}))

    @http.get("/info")
    async def info(self) -> Response:
        """What the model takes and gives, and what it reached when it was trained."""
        return _response(*await self.describe())

    @http.get(DOCUMENT)
    @http.get(DOCS)
    async def page(self, request: Request) -> Response:
        """What the service says of itself: pipelines/serve/document.py."""
        made = self.pages(request.scope.get("root_path", "").rstrip("/"))
        found = made[DOCS if request.url.path.endswith(DOCS) else DOCUMENT]
        return Response(found.body, 200, dict(found.headers), found.media_type)

    async def _answer(self, query: Query, form: Form = ENCODE_FORM) -> np.ndarray:
        z_Nd: np.ndarray = await self._encode_batch(query)
        if not np.isfinite(z_Nd).all():
            why = "a row holds numbers so large that its vector is not finite; scale it"
            raise QueryError(f"{form.inputs}: {why}", "not_finite")
        self.meters.rows.inc(len(z_Nd))
        return z_Nd

    @serve.batch
    async def _encode_batch(self, queries: list[Query]) -> list[np.ndarray]:
        self.meters.batch_rows.observe(sum(len(query.x_ND) for query in queries))
        # in a thread, so that further requests are read meanwhile
        return await asyncio.to_thread(encode_together, self.model, queries)
