"""A training's progress as a bar, on a terminal and in a notebook."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Self

from tqdm.auto import tqdm

from smec_core.training.plan import StagePlan
from smec_core.training.tracker import Record


class StepBar:
    """Steps of a training, of the most that it may take: where a stage ends early, the bar jumps to the next.

    A tracker. Where stderr is no terminal, and this no notebook, nothing is shown.
    """

    def __init__(self, plan: Sequence[StagePlan], shows: bool = True) -> None:
        """Takes the stages of all passes, and whether there is a bar at all."""
        steps = [stage.rhythm.last * stage.rhythm.epoch_steps for stage in plan]
        # a projection may be settled by dev only
        self._places = [(stage.pass_name, stage.dim) for stage in plan]
        self._starts = [0, *accumulate(steps)]
        self._place, self._first = -1, 0
        self._score = ""
        self._bar = tqdm(
            total=self._starts[-1], desc="smec", unit="step", disable=None if shows else True, dynamic_ncols=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is None:
            self._show(self._starts[-1])
        self._bar.close()

    def log(self, record: Record) -> None:
        """Takes a record of the training."""
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
            self._show(self._starts[self._place] + min(step - self._first, most))
        if "loss" in record:
            self._bar.set_postfix_str(f"{record['pass']} pass, {record['stage']} dims, loss {record['loss']:.4f}")

    def _show(self, step: int) -> None:
        self._bar.update(max(step - self._bar.n, 0))
