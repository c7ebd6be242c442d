"""The gate: what it lets in, whatever the replicas' pace, and what it keeps from Ray's proxies."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serve import gate
from pipelines.serve.answers import Message, answer
from pipelines.serve.gate import ALWAYS_TAKEN, FREE_BYTES, App, Gate, Queue, Receive, Send
from pipelines.serve.settings import LimitSettings


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("pipelines.serve.gate.time.monotonic", lambda: found.now)
    return found


def fill(queue: Queue, units: float) -> int:
    """Lets requests in until one is refused."""
    while queue.has_room(units):
        queue.enter(units)
    return queue.requests


@pytest.mark.parametrize("batch", [1, 7, 16])
@pytest.mark.parametrize("pace", [0.0005, 0.002, 0.004])
def test_what_is_let_in_is_done_within_the_wait(clock: Clock, pace: float, batch: int) -> None:
    queue = Queue(max_wait=0.2)
    for _ in range(5000):
        fill(queue, 1)
        clock.now += pace * batch
        for _ in range(batch):
            queue.leave(1, is_done=True)
    assert fill(queue, 1) == pytest.approx(0.2 / pace, rel=0.1, abs=batch)


def test_a_few_are_taken_however_slow_it_is(clock: Clock) -> None:
    queue = Queue(max_wait=0.2)
    for _ in range(3):
        queue.enter(50)
        clock.now += 30
        queue.leave(50, is_done=True)
    assert fill(queue, 50) == ALWAYS_TAKEN


def test_what_was_given_up_tells_nothing_of_the_pace(clock: Clock) -> None:
    queue = Queue(max_wait=0.2)
    taken = fill(queue, 1)
    clock.now += 10
    for _ in range(taken):
        queue.leave(1, is_done=False)
    assert fill(queue, 1) == taken


@given(units=st.lists(st.floats(1, 1000), max_size=50))
def test_an_idle_queue_waits_for_nothing(units: list[float]) -> None:
    queue = Queue(max_wait=0.2)
    for one in units:
        queue.enter(one)
    for one in units:
        queue.leave(one, is_done=False)
    assert queue.wait == pytest.approx(0, abs=1e-6)


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """An application that says what it was given."""
    message = await receive()
    assert not message["more_body"]
    names = [name.decode() for name, _ in scope["headers"]]
    for found in answer(200, {"bytes": len(message["body"]), "headers": names}):
        await send(found)


class Request:
    """A request to the gate whose body comes in parts; after them the client is silent, or done."""

    def __init__(self, parts: list[bytes], is_done: bool = True, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.scope = {"type": "http", "path": "/encode", "headers": list(headers)}
        self.parts = parts
        self.is_done = is_done
        self.said: list[Message] = []

    async def receive(self) -> Message:
        if not self.parts:
            await asyncio.Event().wait()
        body = self.parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(self.parts) or not self.is_done}

    async def send(self, message: Message) -> None:
        self.said.append(message)

    async def pass_by(self, through: Gate) -> tuple[int, dict[str, object]]:
        await through(self.scope, self.receive, self.send)
        assert not self.said[-1].get("more_body")
        return self.said[0]["status"], json.loads(b"".join(one["body"] for one in self.said[1:]))


def gate_before(app: App, body_bytes: int = 10_000_000, deadline: float = 0.5) -> Gate:
    return Gate(app, LimitSettings(deadline=deadline), body_bytes)


def test_a_body_is_handed_on_whole_with_headers_that_ray_can_read() -> None:
    headers = ((b"host", b"x"), (b"x-request-id", b"\xff"))
    said = asyncio.run(Request([b"a", b"b" * 100, b""], headers=headers).pass_by(gate_before(echo)))
    assert said == (200, {"bytes": 101, "headers": ["host"]})


def test_a_replica_that_leaves_no_answer_is_told_as_503() -> None:
    async def nothing(scope: Message, receive: Receive, send: Send) -> None:
        await receive()

    request = Request([b"{}"])
    status, content = asyncio.run(request.pass_by(gate_before(nothing)))
    assert status == 503
    assert "try again" in str(content["detail"])
    assert (b"retry-after", b"1") in request.said[0]["headers"]


def test_a_replica_that_hangs_is_given_up_at_the_deadline() -> None:
    async def hangs(scope: Message, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    before = gate_before(hangs)
    assert asyncio.run(Request([b"{}"]).pass_by(before))[0] == 503
    assert before.queue.requests == 0


@pytest.mark.parametrize("headers", [(), ((b"content-length", b"5000"),)], ids=["counted", "said"])
def test_a_body_past_its_limit_is_refused_and_skipped(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    request = Request([b"a" * 1000] * 5, headers=headers)
    assert asyncio.run(request.pass_by(gate_before(echo, body_bytes=2500)))[0] == 413
    assert not request.parts


def test_large_bodies_that_do_not_end_leave_room_for_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LARGE_BYTES", 500_000)

    async def crowd() -> list[int]:
        before = gate_before(echo, body_bytes=100_000, deadline=5)
        large = [asyncio.create_task(Request([b"a" * 90_000], False).pass_by(before)) for _ in range(30)]
        await asyncio.sleep(0)
        found = [(await Request([b"a" * size]).pass_by(before))[0] for size in (FREE_BYTES, 90_000)]
        for task in large:
            task.cancel()
        await asyncio.gather(*large, return_exceptions=True)
        # they have given back all that they held
        return [*found, (await Request([b"a" * 90_000]).pass_by(before))[0]]

    assert asyncio.run(crowd()) == [200, 503, 200]
