"""The queue in seconds: what it lets in, whatever the replicas' pace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serve.gate import ALWAYS_TAKEN, Queue


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
