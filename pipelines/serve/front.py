"""The HTTP server of `smec serve`, in a thread of its process: the gate, and behind it the replicas by Serve handle.

Ray's own HTTP proxies, which listen where an application stays on a cluster, know no limit of time for heads and
bodies, and end without an answer to what is under way.
"""

import asyncio
import ctypes
import json
import resource
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any

import ray.exceptions
import uvicorn
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from pipelines.console import warn
from pipelines.serve.answers import VECTOR_PATHS, Message, Page, answer, as_bytes, problem
from pipelines.serve.connection import BACKLOG, Connection
from pipelines.serve.document import Facts, pages
from pipelines.serve.gate import OVERLOAD, Gate, Receive, Send
from pipelines.serve.settings import LimitSettings

IDLE_SECONDS = 75
"""Between two requests: longer than load balancers keep an idle connection, which must not be the last to know."""
SWEEP_SECONDS = 0.5
PROBE_SECONDS = 2.0
LAST_SECONDS = 1.0
"""For requests that are on their way while the port closes."""
SO_ATTACH_FILTER = 26


class Front:
    """The server.

    Attributes:
        gate: what stands before the replicas.
    """

    def __init__(self, handle: DeploymentHandle[Any], limits: LimitSettings, facts: Facts, route: str) -> None:
        self.gate = Gate(self._ask, limits, facts.body_bytes)
        self._health = {"status": "ok", "model": facts.fingerprint}
        self._prefix = route.rstrip("/")
        self._pages = pages(facts, self._prefix)

        def describe(body: bytes) -> Any:
            return handle.describe.remote()

        self._describe = describe
        self._methods: dict[str, tuple[str, Callable[[bytes], Any] | None]] = {
            **{path: ("POST", partial(handle.answer.remote, path=path)) for path in VECTOR_PATHS},
            "/info": ("GET", describe),
        }
        self._overloads = {
            f"{self._prefix}{path}".encode(): as_bytes(answer(503, problem(path, 503, OVERLOAD, "overload")))
            for path in VECTOR_PATHS
        }
        self._turned_away = 0
        self._is_ending = False
        # whether the replicas have answered when they were last asked anything
        self._is_answered = self._was_answered = True
        # each connection may need another file towards Ray
        most = min(limits.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        connection = partial(Connection, limits=limits, most=most, crowded=self._crowded, turn_away=self._turn_away)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                http=connection,  # type: ignore[arg-type]
                interface="asgi3",
                ws="none",
                lifespan="off",
                backlog=BACKLOG,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=1,
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
            )
        )
        self._thread: Thread | None = None
        self._listener: socket.socket | None = None

    def start(self, listener: socket.socket) -> None:
        """Begins to listen.

        Args:
            listener: a bound socket, which is closed in the end.
        """
        self._listener = listener
        self._thread = Thread(target=self._run, args=(listener,), name="http", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def is_alive(self) -> bool:
        """Whether it still listens."""
        return self._thread is not None and self._thread.is_alive()

    def drain(self, notice: float) -> None:
        """Ends in order: readiness, then new requests, then the port; what is under way is answered.

        Args:
            notice: seconds in which only readiness fails.
        """
        limits = self.gate.limits
        self._is_ending = self.gate.is_closing = True
        time.sleep(notice)
        self.gate.is_draining = True
        _wait_until(lambda: not self.gate.queue.requests, limits.deadline)
        if self._listener is not None:
            _refuse_connections(self._listener)
        # those that have connected already are yet to be seen
        time.sleep(LAST_SECONDS / 4)
        _wait_until(lambda: not any(map(_is_busy, list(self._server.server_state.connections))), LAST_SECONDS)
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(limits.deadline)

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        tasks = [asyncio.create_task(self._sweep()), asyncio.create_task(self._probe())]
        try:
            await self._server.serve(sockets=[listener])
        finally:
            for task in tasks:
                task.cancel()

    def _turn_away(self, path: bytes, length: int) -> bytes | None:
        overload = self._overloads.get(path)
        if overload is None or self.gate.is_closing or self.gate.has_room(length):
            return None
        self._turned_away += 1
        return overload

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, Connection):
                    connection.sweep()
            turned_away, self._turned_away = self._turned_away, 0
            # Ray may have ended
            with suppress(Exception):
                self.gate.count("overload", turned_away)

    async def _probe(self) -> None:
        """Asks the replicas something where no client has got an answer lately."""
        while True:
            self._was_answered = False
            await asyncio.sleep(PROBE_SECONDS)
            if self._was_answered:
                continue
            with suppress(Exception):
                await self._call(self._describe, b"", PROBE_SECONDS)
            self._is_answered = self._was_answered

    async def _app(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(self._prefix) if scope["path"].startswith(self._prefix) else ""
        if path == "/healthz":
            await self._say(send, 200, self._health)
        elif path == "/readyz":
            why = "ending" if self._is_ending else "" if self._is_answered else "no replica answers"
            await self._say(send, *((503, {"status": why}) if why else (200, self._health)))
        elif path in self._pages and scope["method"] == "GET":
            await self._say(send, 200, self._pages[path])
        else:
            await self.gate({**scope, "path": path}, receive, send)

    async def _crowded(self, scope: Message, receive: Receive, send: Send) -> None:
        """In place of `_app` for a connection that is one too many."""
        if scope["path"].endswith(("/healthz", "/readyz")):
            await self._app(scope, receive, send)
        else:
            detail = "too many connections are open; close those that you do not use"
            for message in answer(503, problem(scope["path"], 503, detail, "connections"), is_last=True):
                await send(message)

    async def _say(self, send: Send, status: int, content: dict[str, Any] | Page) -> None:
        for message in answer(status, content, is_last=self.gate.is_closing):
            await send(message)

    async def _ask(self, scope: Message, receive: Receive, send: Send) -> None:
        """What stands behind the gate."""
        path = scope["path"]
        # a page that is asked for as it should be has been given already
        method, call = self._methods.get(path, ("GET" if path in self._pages else "", None))
        if not method:
            known = ", ".join((*self._methods, *self._pages, "/healthz and /readyz"))
            messages = _refusal(path, 404, f"no such path; there are {known}", "path")
        elif call is None or scope["method"] != method:
            content = json.dumps(problem(path, 405, f"{path} takes {method}", "method")).encode()
            messages = answer(405, Page("application/json", content, (("allow", method),)))
        else:
            messages = await self._messages(path, call, (await receive())["body"])
        for message in messages:
            await send(message)

    async def _messages(self, path: str, call: Callable[[bytes], Any], body: bytes) -> list[Message]:
        try:
            # the gate has its own, shorter clock
            status, content = await self._call(call, body, 2 * self.gate.limits.deadline)
        except (BackPressureError, DeploymentUnavailableError):
            return self._busy(path, "all replicas are busy; try again", "overload")
        except ray.exceptions.RayTaskError as error:
            warn(f"a replica failed: {str(error).strip().splitlines()[-1]}")
            return _refusal(path, 500, "the service failed; its log says why", "internal")
        except (ray.exceptions.RayError, RayServeException):
            self._is_answered = False
            return self._busy(path, "the replica has ended while it answered; try again", "replica")
        return answer(status, Page("application/json", content))

    def _busy(self, path: str, detail: str, reason: str) -> list[Message]:
        self.gate.count(reason)
        return _refusal(path, 503, detail, reason)

    async def _call(self, call: Callable[[bytes], Any], body: bytes, seconds: float) -> tuple[int, bytes]:
        response = call(body)
        try:
            async with asyncio.timeout(seconds):
                found: tuple[int, bytes] = await response
        except (TimeoutError, asyncio.CancelledError):
            response.cancel()
            raise
        self._was_answered = self._is_answered = True
        return found


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, without listening yet.

    Raises:
        OSError: it cannot be had.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _refusal(path: str, status: int, detail: str, code: str) -> list[Message]:
    return answer(status, problem(path, status, detail, code))


def _is_busy(connection: Any) -> bool:
    """Whether a connection has a request under way, or has not had its first one."""
    return connection.cycle is None or not connection.cycle.response_complete


def _wait_until(is_done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_done() and time.monotonic() < end:
        time.sleep(0.02)


def _refuse_connections(listener: socket.socket) -> None:
    """Drops new connections (SYN) in the kernel, so that none waits to be accepted, and is reset, as the port closes.

    A client tries for a second, and then finds the port closed. Linux only; elsewhere such a client is reset.
    """
    # load the byte of TCP's flags; a SYN is dropped, everything else is let through
    program = [(0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with suppress(OSError):
        fields = struct.pack("HP", len(program), ctypes.addressof(code))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fields)
