"""Clients of the query service, cheap enough to share a machine with it: one thread, no HTTP library.

    python -m benchmarks.serve_client PORT BODY_FILE [--connections N] [--rate R] [--slow N] [--until-closed]

prints what `Tally` holds as JSON. Each connection sends its next request as soon as it has the answer to the last one,
also where that was 503: no client is less patient. With a rate it waits for its turn.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Tally:
    """What all connections of a load have got.

    Attributes:
        seconds: of each answer, by status.
        cut: requests that had begun and got no whole answer.
    """

    def __init__(self, path: str = "/encode", body: bytes = b"", pause: float = 0, turn: float = 0) -> None:
        """Of one kind of request.

        Args:
            path: asked for; by POST where there is a body.
            body: of each request.
            pause: seconds between an answer and the next request.
            turn: seconds between two requests of a connection, or more where the answer takes longer.
        """
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self.message = head.encode() + body
        self.seconds: dict[int, list[float]] = {}
        self.cut: Counter[str] = Counter()
        self.pause, self.turn = pause, turn
        self.refused = 0
        self.left: int | None = None
        self.is_over = False

    def may_send(self) -> bool:
        """Takes one request out of those that are left."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.is_over = True
        return not self.is_over

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        import numpy as np

        found: dict[str, Any] = {"cut": sum(self.cut.values()), "how": dict(self.cut)}
        for status, times in sorted(self.seconds.items()):
            p50, p99, most = np.percentile(times, [50, 99, 100]) * 1000
            found[str(status)] = {"count": len(times), "p50_ms": p50, "p99_ms": p99, "max_ms": most}
        return found


class Client(asyncio.Protocol):
    """One connection that asks until the tally is over."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.ended = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Sends the first request."""
        self.transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Reads an answer, and sends the next request."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        low = head.lower()
        length = int(low.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        took = time.perf_counter() - self.sent
        self.tally.seconds.setdefault(int(head[9:12]), []).append(took)
        self.buffer, self.sent = b"", 0.0
        wait = max(self.tally.pause, self.tally.turn - took)
        if b"\r\nconnection: close" in low:
            self.transport.close()
        elif wait > 0:
            asyncio.get_running_loop().call_later(wait, self._send)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has closed, or this client has."""
        if self.sent:
            self.tally.cut[type(exc).__name__ if exc else "closed"] += 1
        if not self.ended.done():
            self.ended.set_result(None)

    def _send(self) -> None:
        if self.transport.is_closing():
            return
        if self.tally.may_send():
            self.sent = time.perf_counter()
            self.transport.write(self.tally.message)
        else:
            self.transport.close()


async def keep_asking(port: int, tally: Tally, until_closed: bool = False, after: float = 0) -> None:
    """Keeps one connection open until the tally is over, and opens another one where it was closed."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(after)
    while not tally.is_over:
        try:
            _, client = await loop.create_connection(lambda: Client(tally), "127.0.0.1", port)
        except OSError:
            tally.refused += 1
            if until_closed:
                return
            await asyncio.sleep(0.05)
            continue
        await client.ended


async def load(port: int, tally: Tally, connections: int, seconds: float, until_closed: bool = False) -> None:
    """Asks from so many connections, for so long or until the tally is over or the port closed."""
    # the turns of a rate follow one another
    starts = [number * tally.turn / connections for number in range(connections)]
    tasks = [asyncio.create_task(keep_asking(port, tally, until_closed, after)) for after in starts]
    await asyncio.wait(tasks, timeout=seconds)
    tally.is_over = True
    await asyncio.wait(tasks, timeout=30)


async def slow_bodies(port: int, count: int, body: bytes) -> list[asyncio.StreamWriter]:
    """Opens connections that send half a body, and no more."""
    opened = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[: len(body) // 2])
        opened.append(writer)
    return opened


async def hold_slow(port: int, count: int, body: bytes) -> None:
    """Keeps so many slow connections open: the server closes them, and they come again."""
    while True:
        opened = await slow_bodies(port, count, body)
        await asyncio.gather(*(writer.wait_closed() for writer in opened), return_exceptions=True)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    body = arguments.body.read_bytes()
    tally = Tally(body=body, turn=arguments.connections / arguments.rate if arguments.rate else 0)
    tally.left = arguments.requests
    slow = asyncio.create_task(hold_slow(arguments.port, arguments.slow, body)) if arguments.slow else None
    health = Tally("/healthz", pause=0.02)
    asking = asyncio.create_task(load(arguments.port, health, 1, arguments.seconds)) if arguments.health else None
    started = time.perf_counter()
    await load(arguments.port, tally, arguments.connections, arguments.seconds, arguments.until_closed)
    seconds = time.perf_counter() - started
    for task in (slow, asking):
        if task is not None:
            task.cancel()
    return {"seconds": seconds, **tally.summary(), **({"health": health.summary()} if arguments.health else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("body", type=Path, help="file with the body of every request")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument(
        "--requests", type=int, help="of all connections together; default: as many as there is time for"
    )
    parser.add_argument("--rate", type=float, help="requests/s of all connections together, where answered in time")
    parser.add_argument("--slow", type=int, default=0, help="connections beside them that send half a body")
    parser.add_argument("--health", action="store_true", help="ask /healthz meanwhile")
    parser.add_argument("--until-closed", action="store_true", help="end when the port is closed")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
