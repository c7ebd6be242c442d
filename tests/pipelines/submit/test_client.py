"""A job's log as it is printed: by an HTTP server that hands it on in pieces, as a cluster's dashboard does."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest
from aiohttp import web

from pipelines.submit.client import JobClient

LOG = (
    "step 1\n"
    "loaded -----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END PRIVATE KEY----- from the store\n"
    "step 2\n"
    "no new line at its end"
)


class Dashboard:
    """Sends LOG by single lines, and loses the connection after some of them."""

    def __init__(self) -> None:
        self.pieces: Sequence[str] = LOG.splitlines(keepends=True)
        self.lost_after = len(self.pieces)
        self.url = ""

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": ""})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for piece in self.pieces[: self.lost_after]:
            await socket.send_str(piece)
        if self.lost_after < len(self.pieces):
            assert request.transport is not None
            request.transport.abort()
        await socket.close()
        return socket

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application()
        app.add_routes([web.get("/api/version", self.version), web.get("/api/jobs/job/logs/tail", self.tail)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        ready.set()
        await stop.wait()
        await runner.cleanup()


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    made, ready, stop, loop = Dashboard(), threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[made.serve(ready, stop)])
    thread.start()
    assert ready.wait(60)
    yield made
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.mark.server
def test_a_key_that_comes_line_by_line_is_masked(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    client = JobClient(dashboard.url)
    assert asyncio.run(client.print_log("job", 0)) == (len(LOG), True)
    masked = "step 1\nloaded *** from the store\nstep 2\nno new line at its end"
    assert capsys.readouterr().out == masked

    # also where the connection is lost within it
    dashboard.lost_after = 3
    printed, is_whole = asyncio.run(client.print_log("job", 0))
    assert (printed, is_whole) == (len("step 1\n"), False)
    dashboard.lost_after = len(dashboard.pieces)
    assert asyncio.run(client.print_log("job", printed)) == (len(LOG), True)
    assert capsys.readouterr().out == masked
