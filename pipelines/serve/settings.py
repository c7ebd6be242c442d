"""What `smec serve` takes."""

from typing import Annotated

from pydantic import Field

from smec_core.config import Settings, matching

A_ROUTE = matching(r"/([^{}]*[^/{}])?", "a path that begins with / and does not end with it, as /smec")


class ApplicationSettings(Settings):
    """What the application takes, from `smec serve` or under `args` in a Serve config file."""

    model: str
    """Model folder, on a path that all nodes with replicas reach."""
    replicas: int = Field(1, ge=1)
    """Processes that each hold the model and answer requests."""
    threads: int = Field(1, ge=1)
    """Torch threads of each replica, and the CPUs that it claims from Ray."""
    batch_requests: int = Field(64, ge=1)
    """Most requests that a replica multiplies together."""
    batch_wait_ms: float = Field(2, ge=0)
    """Milliseconds that a request waits for others to join it."""
    max_rows: int = Field(1024, ge=1)
    """Most vectors of one request."""
    max_queued: int = Field(1000, ge=1)
    """Requests that wait at each HTTP proxy or handle while all replicas are busy; further ones get status 503."""


class LimitSettings(Settings):
    """What keeps slow clients and too many requests from those that can be answered."""

    deadline: float = Field(10, gt=0)
    """Seconds from a request's head to its answer. A body that has not come by then gets status 408, and what still
    waits for a replica 503. A client that takes as long again to read its answer is cut off."""
    max_wait: float = Field(0.15, gt=0)
    """Seconds that requests may wait for replicas, as judged by how fast the last ones were answered: what would wait
    longer gets status 503 at once, but a few requests at a time are always taken."""
    max_connections: int = Field(2000, ge=1)
    """Open connections, of which half of the open files that the system allows are the most: one more takes the place
    of an idle one, or else is answered on the health paths only."""
    drain_seconds: float = Field(2, ge=0)
    """Seconds after SIGTERM in which /readyz fails but requests are still taken, for load balancers to notice."""


class ServeSettings(ApplicationSettings, LimitSettings):
    """Serve a model on Ray Serve: original embeddings in, nested vectors out, over HTTP and by Serve handle.

    POST /encode takes {"inputs": [[...], ...], "dim": 96}, POST /v1/embeddings the same in the form of OpenAI's
    API. GET /docs shows all paths. There is no login: whoever reaches the port may use it. Runs until Ctrl-C. On
    the cluster of RAY_ADDRESS it returns when the application runs there, and in place of one that is there
    already, without a pause: so a new model takes over.

    Example: smec serve --model models/products --replicas 2
    """

    host: str | None = None
    """Address to listen on: by default 127.0.0.1, or where Serve listens already on the cluster."""
    port: int | None = Field(None, ge=1, le=65535)
    """Port to listen on: by default 8000, or where Serve listens already on the cluster."""
    name: str = Field("smec", min_length=1)
    """Application on the cluster; the one of this name is replaced."""
    route: Annotated[str, A_ROUTE] = "/"
    """Path under which it answers, for several applications on one cluster."""
