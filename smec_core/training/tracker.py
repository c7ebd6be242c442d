"""Where training figures go; the training loop knows this interface only, never the store behind it."""

from collections.abc import Mapping
from typing import Protocol

Record = Mapping[str, float | int | str]


class Tracker(Protocol):
    """Receives one record per step and one per scored epoch, in order of `step`."""

    def log(self, record: Record) -> None:
        """Takes one record.

        Step records hold `pass`, `stage`, `projection`, `epoch`, `step`, the loss parts, `tau`, `lr`, `rows_per_s`,
        the seconds spent by part and, where there is a memory, `memory_fill`, the share of its slots that hold a
        document; epoch records hold the dev figures in place of those.
        """


class NullTracker:
    """Keeps nothing."""

    def log(self, record: Record) -> None:
        """Drops the record."""
