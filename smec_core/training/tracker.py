"""Where training figures go; the training loop knows this interface only, never the store behind it."""

import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Protocol, Self

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


class StepCount:
    """Counts the steps of a training, of the most that it may take: where a stage ends early, it jumps to the next.

    Attributes:
        total: the most steps.
        done: steps that are behind it.
    """

    def __init__(self, stages: Sequence[tuple[str, int, int]]) -> None:
        """Takes pass, dim and most steps of each stage."""
        # a projection may be settled by dev only
        self._places = [(pass_name, dim) for pass_name, dim, _ in stages]
        self._starts = [0, *accumulate(steps for *_, steps in stages)]
        self._place, self._first = -1, 0
        self.total, self.done = self._starts[-1], 0

    def add(self, record: Record) -> int:
        """Takes a record of the training; gives what is behind it now."""
        step = int(record["step"])
        place = (record["pass"], record["stage"])
        if self._place < 0 or self._places[self._place] != place:
            # the first stage may keep all dims, as a stage of another pass does
            later = range(self._place + 1, len(self._places))
            self._place = next((number for number in later if self._places[number] == place), self._place)
            # a step is told of when it is done, dev scores before the first one, too
            self._first = step - ("loss" in record)
        if self._place >= 0:
            most = self._starts[self._place + 1] - self._starts[self._place]
            self.done = max(self._starts[self._place] + min(step - self._first, most), self.done)
        return self.done


class StepBar:
    """Steps of a training, of the most that it may take, as a bar.

    A tracker. Where stderr is no terminal, and this no notebook, nothing is shown.
    """

    def __init__(self, stages: Sequence[tuple[str, int, int]], shows: bool = True) -> None:
        """Takes pass, dim and most steps of each stage, and whether there is a bar at all."""
        # here and not above: whoever keeps records only needs no bar
        from tqdm.auto import tqdm

        self._count = StepCount(stages)
        # a notebook is no terminal, and where ipywidgets are missing tqdm would take it for a file
        disable = not shows or (False if _is_notebook() else None)
        self._bar = tqdm(total=self._count.total, desc="smec", unit="step", disable=disable, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is None:
            self._show(self._count.total)
        self._bar.close()

    def log(self, record: Record) -> None:
        """Takes a record of the training."""
        self._show(self._count.add(record))
        if "loss" in record:
            self._bar.set_postfix_str(f"{record['pass']} pass, {record['stage']} dims, loss {record['loss']:.4f}")

    def _show(self, step: int) -> None:
        self._bar.update(max(step - self._bar.n, 0))


def _is_notebook() -> bool:
    """Whether this process shows what it prints in a notebook, as tqdm finds it, too."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
