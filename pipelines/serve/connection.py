"""uvicorn's connection, with limits for what a client may leave undone."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipelines.serve.answers import answer, as_bytes, problem
from pipelines.serve.gate import App
from pipelines.serve.settings import LimitSettings

HEAD_SECONDS = 5.0
"""From a connection's start, or the first byte of its next request, to the end of the head."""
HEAD_BYTES = 65_536
"""Of a head, or of anything else that is neither a head nor a body."""
BACKLOG = 2048
"""Connections that wait to be taken, and those that are answered on the health paths only."""
PIPELINED = 16
"""Requests that a client may send before it has read the answer to the first."""
PAUSE_SECONDS = 0.05
"""Until the next request of a connection is read after one that was turned away."""
SMALL_BYTES = 2**20
"""Bodies that are skipped by the way: larger ones take a while to come."""


class _Answered:
    """In place of uvicorn's record of a request, where it was answered before it became one."""

    response_complete = True
    message_event = asyncio.Event()


_ANSWERED: Any = _Answered()


class Connection(HttpToolsProtocol):
    """A connection of one client."""

    def __init__(
        self,
        *arguments: Any,
        limits: LimitSettings,
        most: int,
        crowded: App,
        turn_away: Callable[[bytes, int], bytes | None],
        **keywords: Any,
    ) -> None:
        """As uvicorn calls it.

        Args:
            arguments: of uvicorn.
            limits: of time.
            most: connections of the server.
            crowded: application for connections above that.
            turn_away: gives an answer to a POST of so long a body to a path, where it is refused as the head is read.
            keywords: of uvicorn.
        """
        super().__init__(*arguments, **keywords)
        self.limits = limits
        self.most = most
        self.crowded = crowded
        self.turn_away = turn_away
        # of the request whose head or body comes, as far as it has come
        self.url = b""
        # since when the head of a request is awaited, if it is
        self.head_since: float | None = None
        # since when the client has not taken all that was written
        self.unread_since: float | None = None
        self.idle_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; where there are too many, the one that has been idle longest goes."""
        super().connection_made(transport)
        self.head_since = self.loop.time()
        if len(self.connections) <= self.most:
            return
        idle = [
            one
            for one in self.connections
            if isinstance(one, Connection) and one.timeout_keep_alive_task and not one.transport.is_closing()
        ]
        if idle:
            min(idle, key=lambda one: one.timeout_keep_alive_task.when()).shutdown()  # type: ignore[union-attr]
        elif len(self.connections) <= self.most + BACKLOG:
            self.app = self.crowded
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of a client; too many that are neither head nor body end the connection."""
        self.idle_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.idle_bytes > HEAD_BYTES:
            self.reject(431, f"head: is larger than {HEAD_BYTES} bytes", "size")
        elif self.head_since is None and self.timeout_keep_alive_task is None and self.cycle.response_complete:
            # the rest of a body that nobody waits for: uvicorn has stopped its own clock
            self.head_since = self.loop.time()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self.head_since is None:
            self.head_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the head; those after a body are left out, as nobody reads them."""
        if self.head_since is not None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has come."""
        if len(self.pipeline) >= PIPELINED:
            # uvicorn would read on for ever; the parser hands this to `send_400_response`
            raise ValueError(f"more than {PIPELINED} requests ahead of their answers")
        self.head_since = None
        self.idle_bytes = 0
        # thousands of these a second must leave time for what is under way: a tenth of the way of other requests
        refusal = self._refusal()
        if refusal is None:
            super().on_headers_complete()
        else:
            self.cycle = _ANSWERED
            self.transport.write(refusal)

    def _refusal(self) -> bytes | None:
        is_first = self.cycle is None or self.cycle.response_complete
        if not is_first or self.parser.get_method() != b"POST" or not self.parser.should_keep_alive():
            return None
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        if self.app is self.crowded or not length.isdigit() or int(length) > SMALL_BYTES:
            return None
        return self.turn_away(self.url, int(length))

    def on_message_complete(self) -> None:
        """The body has come; where it was not waited for, the connection is idle only now."""
        super().on_message_complete()
        self.url = b""
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.head_since = None
            self.on_response_complete()
            if self.cycle is _ANSWERED:
                # a client that does not wait as it was told must not take the time of those under way
                self.flow.pause_reading()
                self.loop.call_later(PAUSE_SECONDS, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """A part of the body has come."""
        self.idle_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP; JSON as everything else."""
        self.reject(400, f"no valid HTTP request, or more than {PIPELINED} at once", "http")

    def reject(self, status: int, detail: str, code: str) -> None:
        """Answers outside of a request, in the form of its path where that has come, and closes."""
        if self.cycle is None or self.cycle.response_complete:
            path = unquote(self.url.partition(b"?")[0].partition(b"#")[0].decode("latin-1"))
            self.transport.write(as_bytes(answer(status, problem(path, status, detail, code), is_last=True)))
        self.transport.close()

    def sweep(self) -> None:
        """Ends the connection where its client has left something undone for too long."""
        now = self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            # the gate has its own clock for this request; the next one waits
            self.head_since = None if self.head_since is None else now
        elif self.head_since is not None and now - self.head_since > min(HEAD_SECONDS, self.limits.deadline):
            self.head_since = None
            if self.idle_bytes:
                self.reject(408, "head: has not come in time", "slow")
            else:
                self.transport.close()
        if not self.transport.get_write_buffer_size():
            self.unread_since = None
        elif self.unread_since is None:
            self.unread_since = now
        elif now - self.unread_since > self.limits.deadline:
            self.transport.abort()
