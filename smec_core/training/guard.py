"""Dev scores of a nested vector, and the guard that keeps the best state of a stage.

Shapes: Q dev queries, L dev documents of this rank, D input dims.
"""

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smec_core.evaluation.dev_set import QueryScores, Scores


def is_real(gain_Q: Tensor, z_threshold: float) -> bool:
    """Whether a mean gain over dev queries is more than so many of its standard errors.

    The best of many states gains by luck. What can cost earlier prefixes something, as a linear map can, has to show
    more than what cannot.
    """
    return len(gain_Q) > 1 and bool(gain_Q.mean() > z_threshold * gain_Q.std() / math.sqrt(len(gain_Q)))


Z_PRESERVING, Z_CLOSED, Z_OTHER = 0.0, 1.0, 2.0
"""Standard errors of a gain that count as real: of a projection that changes no earlier prefix, of a map that starts
from a closed form and of the rotations after it, which have less to gain, and of any other."""
Z_LOSS = 1.0
"""Standard errors of a loss that count as real: of a part of dev against a reference."""


class Loss(NamedTuple):
    """Where a state falls below a reference: numbers of the reference and of the part of dev, and the dims."""

    reference: int
    part: int
    dim: int


@dataclass(frozen=True)
class References:
    """What no part of dev should fall below at any prefix.

    Attributes:
        scores: the dev scores of each reference.
        masks: of the queries (Q) of each part.
        tolerance: the most that may be lost.
    """

    scores: Sequence[QueryScores] = ()
    masks: Sequence[Tensor] = ()
    tolerance: float = 0.0

    def losses(self, values: QueryScores, dims: Iterable[int]) -> set[Loss]:
        """Losses of more than the tolerance that are real, at some of the prefixes that a state was scored at."""
        found = set()
        for dim, (number, reference), (part, mask_Q) in product(dims, enumerate(self.scores), enumerate(self.masks)):
            loss_Q = (reference[dim] - values[dim])[mask_Q]
            if loss_Q.mean() > self.tolerance and is_real(loss_Q, Z_LOSS):
                found.add(Loss(number, part, dim))
        return found


class Guard:
    """Convergence of a stage: what state was best on dev, and whether to go on.

    A state counts by the mean of its scores at the prefixes in training, those of a stage of the chain being the new
    one, the previous one and those that it looks ahead to. The state before the first step always counts. A later one
    counts only where its gain over that state is real (see `is_real`), no earlier configured prefix falls below its
    floor, no held prefix loses too much, and no part of dev falls below a reference where that state does not.

    Attributes:
        best_score: what the best state counts by.
        best_epoch: epochs after which it was reached.
        best_scores: its mean score at every scored prefix.
    """

    def __init__(self, counted: Sequence[int], floors: Scores, held: Scores, patience: int, z_threshold: float) -> None:
        """Prepares the guard of a stage.

        Args:
            counted: the prefixes whose scores count; one may be named twice.
            floors: the least score allowed at each earlier configured prefix.
            held: the most that a prefix may lose against the state before the first step.
            patience: epochs without gain after which to stop.
            z_threshold: standard errors by which a gain has to be above 0.
        """
        self._z_threshold = z_threshold
        self._counted, self._floors, self._held, self._patience = counted, floors, held, patience
        self.best_score = -math.inf
        self.best_epoch = 0
        self.best_scores: Scores = {}
        self._start_Q = torch.empty(0)
        self._epoch = self._top_epoch = 0
        self._top = -math.inf
        self._start_losses: set[Loss] = set()

    def update(self, epoch: int, values: QueryScores, losses: Set[Loss] = frozenset()) -> tuple[bool, float]:
        """Takes the scores and losses after `epoch` epochs.

        Returns:
            Whether this is the best state so far, and what it counts by.
        """
        self._epoch = epoch
        scores = {dim: value_Q.mean().item() for dim, value_Q in values.items()}
        total_Q = torch.stack([values[dim] for dim in self._counted]).mean(0)
        if epoch == 0:
            self._start_Q = total_Q
            self._floors = {**self._floors, **{dim: scores[dim] - cost for dim, cost in self._held.items()}}
            self._start_losses = set(losses)
        keeps_floors = all(scores[dim] >= floor for dim, floor in self._floors.items()) and losses <= self._start_losses
        total = sum(scores[dim] for dim in self._counted) / len(self._counted)
        if total > self._top:
            self._top, self._top_epoch = total, epoch
        better = total > self.best_score and (
            epoch == 0 or (is_real(total_Q - self._start_Q, self._z_threshold) and keeps_floors)
        )
        if better:
            self.best_score, self.best_epoch, self.best_scores = total, epoch, scores
        return better, total

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_scores": self.best_scores,
            "start_Q": self._start_Q,
            "floors": self._floors,
            "start_losses": sorted(self._start_losses),
            "epoch": self._epoch,
            "top": self._top,
            "top_epoch": self._top_epoch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from a checkpoint."""
        self.best_score, self.best_epoch, self.best_scores = (
            state["best_score"],
            state["best_epoch"],
            state["best_scores"],
        )
        self._start_Q, self._epoch = state["start_Q"], state["epoch"]
        self._floors, self._top, self._top_epoch = state["floors"], state["top"], state["top_epoch"]
        self._start_losses = {Loss(*loss) for loss in state.get("start_losses", [])}

    @property
    def stopped(self) -> bool:
        """Whether the last `patience` epochs brought no gain; one that is not real yet may become so."""
        return self._epoch - self._top_epoch >= self._patience
