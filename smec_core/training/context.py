"""What the stages of a training share, and what one stage is to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smec_core.config import Projection, TrainConfig
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node, Rows
from smec_core.evaluation.dev_set import DevSet, Scores
from smec_core.model.adapter import FrozenStage
from smec_core.training.sampling import LabelledSampler, UnlabelledSampler
from smec_core.training.tracker import Tracker

PASSES = ("first", "refit", "warm")


@dataclass
class StageSpec:
    """What one stage is to do.

    Attributes:
        number: place in the chain.
        d_in: dims it takes.
        dim: dims it keeps.
        kinds: projections to try; the best on dev is kept.
        epochs: most epochs, over which the learning rate runs its cycle.
        stop: epochs to train for in a replay; None in a first pass, where dev decides.
        floors: least dev score of each earlier configured prefix.
        parallel: prefixes to train all at once, as schedule=parallel has it; none for a stage of the chain, which
            trains the dims that it keeps.
        ahead: smaller dims that it trains, too.
        prepared: this dim and smaller ones, ascending, where the stage before has trained them already: the start
            mixes none of them with what is above it.
        start: the champion's stage that it starts from, in a warm start; it keeps the same dims in the same places.
        old_docs: what that stage of the champion gives for documents (N, D), in compatible training.
    """

    number: int
    d_in: int
    dim: int
    kinds: Sequence[Projection]
    epochs: int
    stop: int | None
    floors: Scores = field(default_factory=dict)
    parallel: tuple[int, ...] = ()
    ahead: tuple[int, ...] = ()
    prepared: tuple[int, ...] = ()
    start: FrozenStage | None = None
    old_docs: Callable[[Tensor], Tensor] | None = None

    @property
    def counted(self) -> tuple[int, ...]:
        """Prefixes whose dev scores decide which state is best."""
        return self.parallel or (*self.ahead, self.dim, self.d_in)

    @property
    def scored(self) -> tuple[int, ...]:
        """All prefixes that are scored on dev, ascending."""
        return tuple(sorted({*self.counted, *self.floors}))


class Gradient(NamedTuple):
    """Gradient of the linear map of a stage in one step.

    Attributes:
        dim: dims that the stage keeps.
        epoch: epochs done before.
        weight_II: gradient of its projection's matrix, a row an output dim.
    """

    dim: int
    epoch: int
    weight_II: Tensor


OnGradient = Callable[[Gradient], None]


@dataclass
class PassContext:
    """What all stages of one pass share.

    Attributes:
        config: settings of the method.
        node: this rank's machine, and all ranks of the run.
        tracker: where figures go (rank 0 only).
        pass_name: one of PASSES.
        x_docs: frozen unit document vectors.
        x_queries: frozen unit query vectors.
        sampler: gives the steps of an epoch.
        dev: dev set; None to train for fixed epochs.
        labelled: whether there are judgements to learn from.
        step: steps taken in the run so far.
        rows: queries and documents that those steps were made of.
        on_gradient: sees the gradients of linear maps, for experiments.
    """

    config: TrainConfig
    node: Node
    tracker: Tracker
    pass_name: str
    x_docs: Rows
    x_queries: Rows
    sampler: LabelledSampler | UnlabelledSampler
    dev: DevSet | None
    labelled: bool
    step: int = 0
    rows: int = 0
    on_gradient: OnGradient | None = None

    @property
    def group(self) -> Group:
        """All ranks of the run."""
        return self.node.group

    @property
    def device(self) -> torch.device:
        """Where the steps run."""
        return self.node.device

    def key(self, *numbers: int) -> tuple[int, ...]:
        """Seed of a random choice, by the pass and the numbers given."""
        return (self.config.seed, PASSES.index(self.pass_name), *numbers)

    def generator(self, *numbers: int) -> torch.Generator:
        """A CPU generator seeded by such a key, the same on every rank and device."""
        state = np.random.SeedSequence(self.key(*numbers)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> 1))
