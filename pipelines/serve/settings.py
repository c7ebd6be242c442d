"""What `smec serve` takes."""

from pydantic import Field

from smec_core.config import Settings


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


class ServeSettings(ApplicationSettings):
    """Serve a model on Ray Serve: original embeddings in, nested vectors out, over HTTP and by Serve handle.

    POST /encode takes {"inputs": [[...], ...], "dim": 96}; GET /healthz and /info. There is no login: whoever reaches
    the port may use it. Runs until Ctrl-C. On the cluster of RAY_ADDRESS it returns when the application runs there,
    and in place of one that is there already, without a pause: so a new model takes over.

    Example: smec serve --model models/products --replicas 2
    """

    host: str | None = None
    """Address to listen on: by default 127.0.0.1, or where Serve listens already on the cluster."""
    port: int | None = Field(None, ge=1, le=65535)
    """Port to listen on: by default 8000, or where Serve listens already on the cluster."""
    name: str = Field("smec", min_length=1)
    """Application on the cluster; the one of this name is replaced."""
    route: str = Field("/", pattern="^/([^{}]*[^/{}])?$")
    """Path under which it answers, for several applications on one cluster."""
