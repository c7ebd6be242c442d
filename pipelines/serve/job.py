"""`smec serve`: query vectors over HTTP and by Serve handle, original embeddings in, nested vectors out.

`app` is the application builder that Serve's own tools take, as a config file or `serve run pipelines.serve:app
model=/shared/models/products`; pipelines/serve/replica.py is what runs.
"""

import logging
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ray
import ray.exceptions

from pipelines import signals
from pipelines.console import say, telling, warn
from pipelines.runtime.cluster import connect
from pipelines.runtime.ray_private import serve_http_options
from pipelines.serve.queries import check_model
from pipelines.serve.settings import ApplicationSettings, ServeSettings
from smec_core.errors import InputError, SmecError, extra
from smec_core.model.files import load

if TYPE_CHECKING:
    import socket

    from ray.serve import Application
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import ApplicationStatusOverview

    from pipelines.serve.front import Front

HOST, PORT = "127.0.0.1", 8000
STARTING = "starting the replicas"
POLL_SECONDS = 0.2
WATCH_SECONDS = 5.0
END_SECONDS = 100.0
START_TRIES = 3
HEALTH_SECONDS = 2
# of the replicas, rounded up: as many new ones start before old ones stop, so that one replica is replaced, too
SURGE_PERCENT = 25


def app(settings: ApplicationSettings) -> "Application":
    """Builds the Serve application.

    Raises:
        InputError: `model` is no model folder.
        SmecError: Ray Serve is not installed.
    """
    try:
        import ray.serve  # noqa: F401
    except ModuleNotFoundError as error:
        raise SmecError(f"smec serve needs Ray Serve: {extra('serve')}") from error
    from pipelines.serve.replica import Encoder

    deployment = Encoder.options(  # type: ignore[attr-defined]
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.threads},
        # one batch is multiplied while the next one gathers
        max_ongoing_requests=2 * settings.batch_requests,
        max_queued_requests=settings.max_queued,
        max_surge_percent=SURGE_PERCENT,
        max_constructor_retry_count=START_TRIES,
        # so soon is one replaced that was killed
        health_check_period_s=HEALTH_SECONDS,
    )
    model = load(settings.model)
    check_model(model)
    return deployment.bind(
        # replicas work in a folder of their own
        model=settings.model if "://" in settings.model else str(Path(settings.model).absolute()),
        fingerprint=model.fingerprint,
        **settings.model_dump(include={"threads", "batch_requests", "batch_wait_ms", "max_rows"}),
    )


def run(settings: ServeSettings) -> dict[str, Any]:
    """Serves a model: in the foreground on a Ray of its own, or as an application that stays on RAY_ADDRESS's cluster.

    Returns:
        url, name; of an application that stays.

    Raises:
        InputError: no model folder, or a host or port that cannot be had.
        SmecError: Ray Serve is not installed, or the application did not start or has ended.
    """
    application = app(settings)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        connect(settings.replicas * settings.threads)
        with telling(STARTING):
            http = _listen(settings)
            _deploy(application, settings)
        url = _url(http.host or HOST, http.port, settings.route)
        say(f"serving on the cluster at {url}; it stays there when this command has ended")
        return {"url": url, "name": settings.name}
    listener = _bind(settings.host or HOST, settings.port or PORT)
    # for what waits, and for its answers
    signals.allow(END_SECONDS + 2 * settings.deadline)
    connect(settings.replicas * settings.threads, has_metrics=True)
    front: Front | None = None
    # no exception of our own: Ray raises another KeyboardInterrupt where its calls are cut
    terminated: list[int] = []
    try:
        # here and not before: Ray has set a handler of its own
        signal.signal(signal.SIGTERM, partial(_terminate, terminated))
        with telling(STARTING):
            ray.serve.start(proxy_location="Disabled")
            _deploy(application, settings)
            front = _open(settings, listener)
        say(f"serving at {_url(settings.host or HOST, settings.port or PORT, settings.route)}; Ctrl-C ends it")
        _watch(settings.name, front, terminated)
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if terminated:
            say("terminated: answering what is under way, then ending")
        if front is not None:
            front.drain(settings.drain_seconds if terminated else 0)
        if not terminated:
            raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # where Ray has died already there is nothing to end
        with suppress(Exception):
            ray.serve.delete(settings.name)
        ray.shutdown()
        listener.close()
    return {}


def _bind(host: str, port: int) -> "socket.socket":
    from pipelines.serve.front import bind

    try:
        return bind(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot listen on {_place(host, port)} ({reason}); choose another --host or --port"
        ) from error


def _open(settings: ServeSettings, listener: "socket.socket") -> "Front":
    """Begins to listen, where the replicas answer."""
    from ray import serve

    from pipelines.serve.document import Facts
    from pipelines.serve.front import Front

    model = load(settings.model)
    handle = serve.get_app_handle(settings.name)
    # the first call starts what brings all others to the replicas
    handle.describe.remote().result()
    front = Front(handle, settings, Facts.of(model, settings.max_rows, settings), settings.route)
    host, port = listener.getsockname()[:2]
    front.start(listener)
    if not front.is_alive():
        # another process has bound the address at the same time, and was the first to listen
        raise InputError(
            f"cannot listen on {_place(host, port)} (Address already in use); choose another --host or --port"
        )
    return front


def _place(host: str, port: int) -> str:
    """Host and port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _url(host: str, port: int, route: str) -> str:
    return f"http://{_place(host, port)}{route.rstrip('/')}"


def _deploy(application: "Application", settings: ServeSettings) -> None:
    """Starts or replaces the application and waits until all of its replicas hold the model.

    Raises:
        InputError: another application has the route.
        SmecError: it did not start.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import ApplicationStatus

    replaced = settings.name in serve.status().applications
    try:
        target = serve.RunTarget(application, settings.name, settings.route)
        serve.run_many([target], wait_for_applications_running=False)
    except RayServeException as error:
        problem = _last_line(str(error))
        raise InputError(f"route {settings.route}: {problem}; choose another with --set route=/...") from error
    said = ""
    while True:
        status = serve.status().applications.get(settings.name)
        if status is None:
            raise SmecError(f"the application {settings.name} was removed while it started; start smec serve again")
        if status.status == ApplicationStatus.RUNNING:
            return
        message = _message(status)
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            if replaced:
                raise SmecError(f"the new application did not start, the old one goes on: {message}")
            serve.delete(settings.name)
            raise SmecError(f"the application did not start: {message}")
        if message and message != said:
            say(message)
        said = message
        time.sleep(POLL_SECONDS)


def _listen(settings: ServeSettings) -> "HTTPOptions":
    """Starts Serve's HTTP proxies, or finds those that run.

    Raises:
        InputError: they run, but listen elsewhere.
        SmecError: they do not start.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions

    running = serve_http_options()
    if running is None:
        http = HTTPOptions(host=settings.host or HOST, port=settings.port or PORT)
        try:
            serve.start(http_options=http)
        except (ray.exceptions.RayError, TimeoutError) as error:
            serve.shutdown()
            raise SmecError(
                f"Serve cannot listen on {_place(http.host or HOST, http.port)}: {_last_line(str(error))}"
            ) from error
        return http
    if (settings.host or running.host, settings.port or running.port) != (running.host, running.port):
        raise InputError(
            f"host, port: Serve on this cluster listens on {_place(running.host or HOST, running.port)} already, for "
            "all applications; leave them out, or end Serve there first (serve shutdown)"
        )
    return running


def _message(status: "ApplicationStatusOverview") -> str:
    """Why an application does not run, as one line."""
    return next((_last_line(found.message) for found in status.deployments.values() if found.message), status.message)


def _last_line(message: str) -> str:
    """The error at the end of a traceback, without the name of its class."""
    return re.sub(r"^[\w.]+: ", "", message.strip().split("\n")[-1].strip())


def _watch(name: str, front: "Front", terminated: Sequence[int]) -> NoReturn:
    """Waits for a signal, and reports what happens to the application meanwhile."""
    from ray import serve
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import ApplicationStatus

    said = ""
    while True:
        time.sleep(WATCH_SECONDS)
        if terminated:
            # it came while code ran that drops exceptions, as a destructor does
            raise KeyboardInterrupt
        if not front.is_alive():
            raise SmecError("the HTTP server has ended; start smec serve again")
        try:
            status = serve.status().applications.get(name)
        except (ray.exceptions.RayError, RayServeException) as error:
            raise SmecError(f"Ray has ended ({_last_line(str(error))}); start smec serve again") from error
        if status is None:
            raise SmecError(f"the application {name} was removed; start smec serve again")
        message = "" if status.status == ApplicationStatus.RUNNING else _message(status)
        if message and message != said:
            warn(message)
        said = message


def _terminate(terminated: list[int], number: int, _: object) -> NoReturn:
    # the next one is to cut nothing short
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    terminated.append(number)
    raise KeyboardInterrupt
