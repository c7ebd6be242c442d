"""What a person reads while a job runs: styled on a terminal, plain lines elsewhere, always on stderr."""

import time
from functools import cache
from typing import TYPE_CHECKING, Self

from smec_core.tracker import Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table


@cache
def console() -> "Console":
    """The one console, on stderr: stdout is for results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Prints a line of progress."""
    console().print(text, markup=False)


def warn(text: str) -> None:
    """Prints a warning."""
    console().print(f"warning: {text}", style="yellow", markup=False)


def show(table: "Table") -> None:
    """Prints a result on stdout."""
    from rich.console import Console

    Console(highlight=False).print(table)


class Progress:
    """The latest step of a training: a live line on a terminal, a plain line every ten seconds elsewhere."""

    EVERY_SECONDS = 10.0

    def __init__(self) -> None:
        self._status: Status | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if console().is_terminal:
            self._status = console().status("waiting for the workers")
            self._status.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, record: Record) -> None:
        """Takes one record of the training; those without a loss are not shown."""
        if "loss" not in record:
            return
        text = (
            f"{record['pass']} pass, stage {record['stage']}, {record['projection']}, epoch {record['epoch']}, "
            f"step {record['step']}: loss {record['loss']:.4f}, {record['rows_per_s']:.0f} rows/s"
        )
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._printed > self.EVERY_SECONDS:
            say(text)
            self._printed = time.monotonic()
