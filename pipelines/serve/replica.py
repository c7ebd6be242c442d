"""A replica of the service: it holds the model, batches queries, and answers over HTTP and by handle.

Needs the extra `serve`; pipelines/serve/job.py, which does not, builds the application from it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from ray import serve
from ray.serve.metrics import Counter, Histogram

from pipelines.serve.queries import Query, QueryError, body_limit, check, encode_together, read, too_large
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


# what its methods use must stand above it: Serve copies the routes, and all that they name, as it reads this line
@serve.deployment
@serve.ingress(http)
class Encoder:
    """A deployment; `serve.get_app_handle(name).encode.remote(x_ND, dim)` calls it from Python on the cluster."""

    def __init__(
        self, model: str, fingerprint: str, threads: int, batch_requests: int, batch_wait_ms: float, max_rows: int
    ) -> None:
        torch.set_num_threads(threads)
        self.model = load(Path(model))
        self.fingerprint = self.model.fingerprint
        if self.fingerprint != fingerprint:
            # replicas of one application would give vectors that cannot be compared
            raise InputError(
                f"{model}: holds the model {self.fingerprint[:12]} now, but {fingerprint[:12]} was deployed; deploy it "
                "again (smec serve), and give a new version a folder of its own"
            )
        self.max_rows = max_rows
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

    async def answer(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the HTTP answer to a whole body.

        {"inputs": [[...], ...], "dim": 96} gives {"embeddings": [[...], ...], "dim": 96, "model": fingerprint}.
        """
        try:
            with self.meters.request():
                if len(body) > body_limit(self.model, self.max_rows):
                    raise too_large(self.model, self.max_rows)
                read_it = partial(read, body, self.model, self.max_rows)
                query = await asyncio.to_thread(read_it) if len(body) > LARGE_BYTES else read_it()
                z_Nd = await self._answer(query)
                write = partial(self._write, query, z_Nd)
                return 200, await asyncio.to_thread(write) if z_Nd.nbytes > LARGE_BYTES else write()
        except QueryError as error:
            return error.status, to_json({"detail": str(error)})

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

    @http.post("/encode")
    async def post_encode(self, request: Request) -> Response:
        """As `answer` says."""
        body, limit = bytearray(), body_limit(self.model, self.max_rows)
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
        return _response(*await self.answer(bytes(body)))

    @http.get("/healthz")
    @http.get("/readyz")
    async def healthz(self) -> Response:
        """Answers 200 from when the model is loaded."""
        return _response(200, to_json({"status": "ok", "model": self.fingerprint}))

    @http.get("/info")
    async def info(self) -> Response:
        """What the model takes and gives, and what it reached when it was trained."""
        return _response(*await self.describe())

    def _write(self, query: Query, z_Nd: np.ndarray) -> bytes:
        return to_json({"embeddings": z_Nd.tolist(), "dim": query.dim, "model": self.fingerprint})

    async def _answer(self, query: Query) -> np.ndarray:
        z_Nd: np.ndarray = await self._encode_batch(query)
        if not np.isfinite(z_Nd).all():
            raise QueryError(
                "inputs: a row holds numbers so large that its vector is not finite; scale it", "not_finite"
            )
        self.meters.rows.inc(len(z_Nd))
        return z_Nd

    @serve.batch
    async def _encode_batch(self, queries: list[Query]) -> list[np.ndarray]:
        self.meters.batch_rows.observe(sum(len(query.x_ND) for query in queries))
        # in a thread, so that further requests are read meanwhile
        return await asyncio.to_thread(encode_together, self.model, queries)
