"""What a training learns from, and what the stages of one of its passes share."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.data.judgements import Judgements
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node, Rows
from smec_core.evaluation.dev_set import AGREEMENT, DevSet, dev_parts, make_dev_set
from smec_core.model.adapter import FrozenStage
from smec_core.training.guard import References
from smec_core.training.sampling import LabelledSampler, UnlabelledSampler, make_sampler
from smec_core.training.schedule import TrainingShape
from smec_core.training.tracker import Tracker

PassName = Literal["first", "refit", "warm"]
PASSES: tuple[PassName, ...] = get_args(PassName)


@dataclass(frozen=True)
class TrainingData:
    """What one rank trains on.

    Attributes:
        docs: frozen unit document vectors.
        queries: frozen unit query vectors.
        train: judgements to learn from; None to train without judgements.
        dev: judgements to choose by; None without judgements, or where nothing is chosen.
        node: this rank's machine and device, and all ranks of the run.
        docs_DD: mean of x x^T over all documents of the corpus, of which `docs` are a part; None where they are all.
        is_self_taught: whether the judgements are what the full vectors find.
    """

    docs: Rows
    queries: Rows
    train: Judgements | None
    dev: Judgements | None
    node: Node = field(default_factory=Node)
    docs_DD: Tensor | None = None
    is_self_taught: bool = False

    def shape(self, config: TrainConfig) -> TrainingShape:
        """The facts about the data that decide the plan."""
        return TrainingShape.of(self.docs.dim, self.docs.drawn, self.train, self.dev, config, self.is_self_taught)


@dataclass
class PassContext:
    """What all stages of one pass share.

    Attributes:
        config: settings of the method.
        node: this rank's machine, and all ranks of the run.
        tracker: where figures go (rank 0 only).
        pass_name: which pass.
        x_docs: frozen unit document vectors.
        x_queries: frozen unit query vectors.
        sampler: gives the steps of an epoch.
        dev: dev set; None to train for fixed epochs.
        references: what dev should not fall below.
        labelled: whether there are judgements to learn from.
        is_pooled: whether outputs that start in order of importance are ordered by documents and train queries alike;
            else by documents.
        closed_DD: the closed form that a stage of all dims starts from; None where none does.
        docs_DD: mean of x x^T over all documents of the corpus; None where `x_docs` are all.
        teacher: documents as the teacher of the stage in training has them, for unsupervised=listwise.
        step: steps taken in the run so far.
        rows: queries and documents that those steps were made of.
    """

    config: TrainConfig
    node: Node
    tracker: Tracker
    pass_name: PassName
    x_docs: Rows
    x_queries: Rows
    sampler: LabelledSampler | UnlabelledSampler
    dev: DevSet | None
    labelled: bool
    is_pooled: bool = False
    closed_DD: Tensor | None = None
    references: References = field(default_factory=References)
    docs_DD: Tensor | None = None
    teacher: Rows | None = None
    step: int = 0
    rows: int = 0

    @property
    def group(self) -> Group:
        """All ranks of the run."""
        return self.node.group

    @property
    def judgements(self) -> Judgements:
        """Those that the pass learns from."""
        assert isinstance(self.sampler, LabelledSampler)
        return self.sampler.judgements

    def put_on_top(self, stage: FrozenStage) -> None:
        """Puts a trained stage on top of the dev set."""
        if self.dev is not None:
            self.dev.advance(stage.apply, stage.d_in)

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


def pass_context(
    data: TrainingData, config: TrainConfig, pass_name: PassName, tracker: Tracker, step: int = 0, rows: int = 0
) -> PassContext:
    """What the stages of a pass share. Collective.

    Args:
        data: what this rank holds.
        config: settings of the method.
        pass_name: the pass; only the first one has a dev set.
        tracker: takes the records.
        step: steps that the run has taken.
        rows: rows that those steps were made of.
    """
    with_dev = config.guard and pass_name == "first"
    sampler, held_out = make_sampler(config, data.docs.drawn, data.train, data.dev, with_dev)
    dev = None
    if with_dev:
        parts = None
        if data.train is not None and data.dev is not None:
            parts = dev_parts(data.train, data.dev, config)
        dev = make_dev_set(data.queries, data.docs, data.dev, held_out, config, data.node, parts)
        if data.is_self_taught:
            dev.measure = AGREEMENT
    return PassContext(
        config=config,
        node=data.node,
        tracker=tracker,
        pass_name=pass_name,
        x_docs=data.docs,
        x_queries=data.queries,
        sampler=sampler,
        dev=dev,
        labelled=data.train is not None,
        docs_DD=data.docs_DD,
        step=step,
        rows=rows,
    )
