"""Calls that are compared: timed in turn, so that all of them meet the same machine."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

Seconds = Mapping[str, list[float]]


def use_one_thread() -> None:
    """Leaves this process, and those that it starts, one thread; before torch and numpy are imported."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Seconds of every call in each of so many rounds, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for counts in [False, *[True] * rounds]:
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if counts:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(seconds: Seconds, name: str, base: str) -> float:
    """Median over the rounds of how many times as long `name` took as `base` in the same round."""
    return statistics.median(one / other for one, other in zip(seconds[name], seconds[base], strict=True))
