"""What stands before the replicas: whole bodies only, a queue measured in seconds, a deadline, an orderly end.

`smec serve` has it in its own HTTP server (pipelines/serve/front.py). Ray's HTTP proxies take it where each node of the
cluster has RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=pipelines.serve.gate:middlewares in its environment.
"""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipelines.serve.answers import VECTOR_PATHS, Message, answer, problem
from pipelines.serve.settings import LimitSettings
from smec_core.errors import InputError

if TYPE_CHECKING:
    from starlette.middleware import Middleware

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

UNIT_BYTES = 16_384
"""Of a body: what it adds to the work of a request as such, roughly."""
ALWAYS_TAKEN = 16
"""Requests at a time that are taken however slow the replicas are; what they cannot do ends at the deadline."""
MEMORY_SECONDS = 2.0
"""Time in which the pace of the replicas is forgotten."""
FREE_BYTES = 65_536
"""Of a body that never wait for room, so that large bodies do not shut small ones out."""
LARGE_BYTES = 2**28
"""Memory for the rest of all bodies together."""
PROXY_BODY_BYTES = LARGE_BYTES
"""Largest body where Ray's proxies listen; each application refuses smaller ones by its own width and `max_rows`."""
SKIPPED_BYTES = 2**26
"""Of a refused body that are still taken, so that its client comes to read the answer."""
LIMITS = "SMEC_SERVE_LIMITS"
"""Environment of Ray's proxies: LimitSettings as JSON."""

ENDING = "the service is ending; ask another one, or try again"
OVERLOAD = "too many requests are under way; try again, and wait longer each time"


class Queue:
    """Requests under way, and how long one more would wait for the replicas.

    Work is counted in units: one a request, and one for each UNIT_BYTES of its body.
    """

    def __init__(self, max_wait: float) -> None:
        self.max_wait = max_wait
        self.requests = 0
        self._units = 0.0
        # of the recent past: seconds with work under way, and the units that were done in them
        self._busy, self._done = 0.005, 1.0
        self._since = 0.0

    @property
    def wait(self) -> float:
        """Seconds until all that is under way is done, at the recent pace."""
        return self._units * self._busy / self._done

    def has_room(self, units: float) -> bool:
        """Whether a request of so many units may join."""
        return self.requests < ALWAYS_TAKEN or self.wait + units * self._busy / self._done <= self.max_wait

    def enter(self, units: float) -> None:
        """A request goes to the replicas."""
        if not self.requests:
            self._since = time.monotonic()
        self.requests += 1
        self._units += units

    def leave(self, units: float, is_done: bool) -> None:
        """A request was answered, or was given up."""
        self.requests -= 1
        self._units -= units
        now = time.monotonic()
        if not is_done:
            # the time until now was not spent on what is done next
            self._since = now
        else:
            fade = math.exp((self._since - now) / MEMORY_SECONDS)
            # what has faded all the way would say nothing
            self._busy = max(self._busy * fade, 1e-4) + now - self._since
            self._done = max(self._done * fade, 0.02) + units
            self._since = now


class Refusal(Exception):
    """A request that the gate answers itself.

    Attributes:
        status: of HTTP.
        reason: as the metric counts it.
    """

    def __init__(self, status: int, detail: str, reason: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason


class Gate:
    """ASGI middleware.

    Attributes:
        is_draining: new requests get status 503.
        is_closing: connections are closed after their next answer.
    """

    def __init__(self, app: App, limits: LimitSettings, body_bytes: int, suffixes: tuple[str, ...] = ("",)) -> None:
        """Stands before `app`.

        Args:
            app: what answers.
            limits: of time and number.
            body_bytes: most bytes of a body.
            suffixes: requests whose path ends otherwise are handed on as they are.
        """
        self.app = app
        self.limits = limits
        self.body_bytes = body_bytes
        self.suffixes = suffixes
        self.queue = Queue(limits.max_wait)
        self.is_draining = False
        self.is_closing = False
        self._large_bytes = 0
        self._refused: Any = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http" or not scope["path"].endswith(self.suffixes):
            await self.app(scope, receive, send)
            return
        until = time.monotonic() + self.limits.deadline
        body = bytearray()
        is_read = False

        async def receive_part() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = not message.get("more_body", False)
            return message

        try:
            messages = await self._answer(scope, body, receive_part, until)
        except Refusal as refusal:
            self._forget(body)
            self.count(refusal.reason)
            is_last = self.is_closing or refusal.status in (408, 413)
            content = problem(scope["path"], refusal.status, str(refusal), refusal.reason)
            for message in answer(refusal.status, content, is_last, more=True):
                await send(message)
            if not is_read and refusal.status != 408:
                await self._skip(receive, until)
            await send({"type": "http.response.body", "body": b""})
            return
        finally:
            self._forget(body)
        for message in messages:
            if message["type"] == "http.response.start" and self.is_closing:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

    async def _answer(self, scope: Message, body: bytearray, receive: Receive, until: float) -> list[Message]:
        """What the application says, when it has said all; a slow reader so holds nothing of the replicas."""
        self._check_room(_length(scope))
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self._read(scope, body, receive)
        except TimeoutError:
            detail = f"body: has not come within {self.limits.deadline:g} seconds; send it at once"
            raise Refusal(408, detail, "slow") from None
        # others may have come while this one was read
        self._check_room(len(body))
        units = 1 + len(body) / UNIT_BYTES
        messages: list[Message] = []
        is_done = False

        async def keep(message: Message) -> None:
            messages.append(message)

        self.queue.enter(units)
        try:
            async with asyncio.timeout(until - time.monotonic()):
                # Ray's proxy fails at others
                headers = [(name, value) for name, value in scope["headers"] if name.isascii() and value.isascii()]
                await self.app({**scope, "headers": headers}, _replay(bytes(body), receive), keep)
            # refusals come quickly, and would make the replicas look quick
            is_done = bool(messages) and messages[0]["status"] == 200
        except TimeoutError:
            detail = f"no replica has answered within {self.limits.deadline:g} seconds; try again"
            raise Refusal(503, detail, "deadline") from None
        finally:
            self.queue.leave(units, is_done)
        if not messages:
            # Ray's proxy leaves a request whose replica has died without an answer
            raise Refusal(503, "the replica has ended while it answered; try again", "replica")
        return messages

    def has_room(self, body_bytes: int) -> bool:
        """Whether one more request may go to the replicas."""
        return self.queue.has_room(1 + body_bytes / UNIT_BYTES)

    def _check_room(self, body_bytes: int) -> None:
        if self.is_draining:
            raise Refusal(503, ENDING, "drain")
        if not self.has_room(body_bytes):
            raise Refusal(503, OVERLOAD, "overload")

    async def _read(self, scope: Message, body: bytearray, receive: Receive) -> None:
        if _length(scope) > self.body_bytes:
            raise self._too_large()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(408, "body: has ended early", "gone")
            more = message.get("more_body", False)
            before = max(0, len(body) - FREE_BYTES)
            body += message.get("body", b"")
            self._large_bytes += max(0, len(body) - FREE_BYTES) - before
            self._check_body(body)

    def _check_body(self, body: bytearray) -> None:
        if len(body) > self.body_bytes:
            raise self._too_large()
        if self._large_bytes > max(LARGE_BYTES, 4 * self.body_bytes):
            raise Refusal(503, "too many large bodies are under way; try again", "overload")
        if self.is_draining:
            raise Refusal(503, ENDING, "drain")

    def _too_large(self) -> Refusal:
        return Refusal(413, f"body: is larger than {self.body_bytes} bytes; send fewer rows at a time", "size")

    def _forget(self, body: bytearray) -> None:
        self._large_bytes -= max(0, len(body) - FREE_BYTES)
        body.clear()

    async def _skip(self, receive: Receive, until: float) -> None:
        """Takes what the client of a refused request is still sending: many read no answer before they have sent all.

        Raises:
            ConnectionAbortedError: it does not come to the end by the deadline, or sends very much more; this ends the
                connection, as it is too late to say so in a header.
        """
        left = max(self.body_bytes, SKIPPED_BYTES)
        with suppress(TimeoutError):
            async with asyncio.timeout(until - time.monotonic()):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        raise ConnectionAbortedError("the client did not come to the end of its body")

    def count(self, reason: str, requests: int = 1) -> None:
        """Adds to the metric of what was refused here."""
        from ray.util.metrics import Counter

        if self._refused is None:
            self._refused = Counter("smec_serve_refused", "Requests that the gate has refused, by reason.", ("reason",))
        if requests:
            self._refused.inc(requests, tags={"reason": reason})


def middlewares() -> "list[Middleware]":
    """For Ray's HTTP proxies: the gate before every path that ends as those that give vectors."""
    from starlette.middleware import Middleware

    try:
        limits = LimitSettings.model_validate_json(os.environ.get(LIMITS, "{}"))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise InputError(f"{LIMITS}: {'.'.join(map(str, found['loc']))}: {found['msg']}; fix the environment") from None
    return [Middleware(Gate, limits=limits, body_bytes=PROXY_BODY_BYTES, suffixes=VECTOR_PATHS)]


def _length(scope: Message) -> int:
    """Bytes of the body, if its head says so."""
    found = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(found) if found.isdigit() else 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the whole body at once, and after it what the connection says."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
