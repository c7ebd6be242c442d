"""Calls that are compared: timed in turn, so that all of them meet the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping

Seconds = dict[str, list[float]]
# for os.environ, before torch and numpy are imported, here or in a process that is started
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Seconds of every call in each of so many rounds, after one that does not count."""
    seconds: Seconds = {name: [] for name in calls}
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
