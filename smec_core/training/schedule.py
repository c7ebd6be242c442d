"""Dims of the stages, how long they take, and how the learning rate runs within one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.optim.lr_scheduler import OneCycleLR

from smec_core.config import TrainConfig
from smec_core.data.judgements import Judgements
from smec_core.errors import InputError
from smec_core.training.sampling import make_sampler


def chain_dims(input_dim: int, dims: Sequence[int]) -> list[int]:
    """Target dim of every stage: the input dim first, then by halves down to each of the user's dims.

    Example:
        >>> chain_dims(768, [100])
        [768, 384, 192, 100]

    Raises:
        InputError: a dim above the input dim.
    """
    if max(dims) > input_dim:
        raise InputError(f"dims: {max(dims)} is more than the {input_dim} dims of the data")
    chain = [input_dim]
    for dim in sorted(set(dims) - {input_dim}, reverse=True):
        while chain[-1] // 2 > dim:
            chain.append(chain[-1] // 2)
        chain.append(dim)
    return chain


def prefix_dims(input_dim: int, dims: Sequence[int]) -> tuple[int, ...]:
    """The usable prefixes: the input dim and the user's dims, descending."""
    return tuple(sorted({input_dim, *dims}, reverse=True))


def one_cycle(optimizer: torch.optim.Optimizer, epochs: int, epoch_steps: int) -> OneCycleLR:
    """One-cycle schedule over the most steps a stage may take, a tenth of them warm-up; peak rates as in the groups."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    # one step more than is taken: the scheduler steps once after the last update
    total = max(epochs * epoch_steps, 1) + 1
    # the warm-up takes at least one step, without which the scheduler divides by zero
    return OneCycleLR(optimizer, peaks, total_steps=total, pct_start=max(0.1, 2 / total))


@dataclass(frozen=True)
class TrainingShape:
    """What of the data decides the plan.

    Attributes:
        input_dim: D.
        labelled: whether there are judgements to learn from.
        is_self_taught: whether these are what the full vectors find, whose cosines no stage is to change.
        epoch_steps: steps of an epoch while dev is held out.
        refit_steps: steps of an epoch on train + dev.
    """

    input_dim: int
    labelled: bool
    epoch_steps: int = 1
    refit_steps: int = 1
    is_self_taught: bool = False

    @classmethod
    def of(
        cls,
        input_dim: int,
        drawn: int,
        train: Judgements | None,
        dev: Judgements | None,
        config: TrainConfig,
        is_self_taught: bool = False,
    ) -> "TrainingShape":
        """Counts the steps.

        Args:
            input_dim: D.
            drawn: documents of the sample.
            train: judgements to learn from; None without.
            dev: judgements to choose by.
            config: settings of the method.
            is_self_taught: whether the judgements are what the full vectors find.
        """
        guarded, refit = (
            make_sampler(config, drawn, train, dev, with_dev)[0].epoch_steps for with_dev in (True, False)
        )
        return cls(input_dim, train is not None, guarded, refit, is_self_taught)

    @property
    def changes_cosines(self) -> bool:
        """Whether there is something that the cosines of all dims could learn."""
        return self.labelled and not self.is_self_taught

    def without_dev(self) -> "TrainingShape":
        """That of a training that holds out no dev queries."""
        return replace(self, epoch_steps=self.refit_steps)


@dataclass(frozen=True)
class Rhythm:
    """How long a stage takes.

    Attributes:
        epoch_steps: steps of an epoch.
        epochs: most epochs, over which the learning rate runs its cycle.
        score_epochs: epochs from one dev score to the next.
        patience: epochs without gain on dev after which it stops.
        stop: epochs to train for, where dev does not decide.
    """

    epoch_steps: int
    epochs: int
    score_epochs: int
    patience: int
    stop: int | None = None

    @classmethod
    def of(cls, shape: TrainingShape, config: TrainConfig, times: float = 1, waits: float | None = None) -> "Rhythm":
        """That of a stage of the first pass.

        Args:
            shape: the data.
            config: settings of the method.
            times: how long it may take, against a full stage.
            waits: how long it goes on without gain, against a full stage; default: as `times`.
        """
        steps = shape.epoch_steps if config.guard else shape.refit_steps
        most = config.stage_epochs(steps)
        waits = times if waits is None else waits
        # two, for a dev score between
        epochs = max(math.ceil(most * times), min(most, 2))
        patience = config.stage_patience(math.ceil(most * max(waits, 1)))
        if waits < 1:
            patience = max(math.ceil(patience * waits), 2)
        # without dev the last state counts
        score_epochs = config.scoring_epochs(patience, steps) if config.guard else max(epochs, 1)
        return cls(steps, epochs, score_epochs, patience)

    @property
    def last(self) -> int:
        """Epochs after which the stage ends in any case."""
        return self.epochs if self.stop is None else self.stop

    @property
    def most_steps(self) -> int:
        """Steps after which it does."""
        return self.last * self.epoch_steps

    def stopping_at(self, epochs: int) -> "Rhythm":
        """That of a stage that trains for so many epochs."""
        return replace(self, stop=epochs, score_epochs=max(epochs, 1))
