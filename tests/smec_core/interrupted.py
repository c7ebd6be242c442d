"""Trainings that write checkpoints, end after one of them, and go on from one, in any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node
from smec_core.model.adapter import FrozenStage, Stage
from smec_core.training import second_start
from smec_core.training.checkpoint import Checkpoint
from smec_core.training.context import TrainingData
from smec_core.training.tracker import Record
from smec_core.training.trained import Trained
from smec_core.training.trainer import Hooks, train
from smec_core.training.warm import WarmStart
from tests.smec_core.generated import Generated, Records, generate
from tests.smec_core.ranks import Ranks

DIM = 8
MUCH_GAIN = second_start.MUCH_GAIN
TIMES = ("seconds", "rows_per_s")


class Interrupted(Exception):
    """The process was killed."""


class Folders:
    """Checkpoints in numbered folders, which all stay.

    Attributes:
        every: steps from one to the next.
        records_before: how many records had come when each was made.
    """

    def __init__(self, root: Path, every: int, group: Group, records: Records, number: int, interrupt: bool) -> None:
        self.every = every
        self.records_before: list[int] = []
        self._root, self._group, self._records, self._number, self._interrupt = root, group, records, number, interrupt

    def save(self, write: Callable[[Path], None]) -> None:
        folder = self._root / str(self._number + len(self.records_before))
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
        self._group.wait()
        self.records_before.append(len(self._records.all))
        if self._interrupt:
            raise Interrupted


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        changes: its settings.
        judged: whether it has judgements.
        has_base: whether it goes on from trained stages.
        has_champion: whether it starts at the weights of a champion.
        much_gain: by how much a stage of all dims must gain on the closed form to be trained from another start, too;
            None for the usual.
        mapped: folder where its rows are mapped; None for memory.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    judged: bool = True
    has_base: bool = False
    has_champion: bool = False
    much_gain: float | None = None
    mapped: str | None = None

    @property
    def config(self) -> TrainConfig:
        small = {
            "dims": (4,),
            "epochs": 2,
            "lr": 2e-2,
            "alpha": 0.1,
            "queue_size": 40,
            "batch_size": 200,
            "negatives": 20,
            "seed": 1,
        }
        return TrainConfig.model_validate(small | self.changes)

    def data(self, group: Group) -> TrainingData:
        # every rank is a node of its own, but where they share a folder
        node = Node(group) if self.mapped is None else Node(group, "one", group.rank, group.size, Path(self.mapped))
        return generated().training_data(self.judged, node)

    def base(self) -> list[FrozenStage]:
        if not self.has_base:
            return []
        generator = torch.Generator().manual_seed(0)
        start_II = torch.randn(DIM, DIM, generator=generator)
        last_II = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
        logits_I = torch.randn(DIM, generator=generator)
        return [Stage("linear", DIM, start_II, logits_I, 1).freeze(), Stage("linear", 6, last_II, logits_I, 1).freeze()]

    def champion(self) -> WarmStart | None:
        if not self.has_champion:
            return None
        generator = torch.Generator().manual_seed(0)
        weight_II = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
        logits_I = torch.randn(DIM, generator=generator)
        last = Stage("rotation" if self.judged else "linear", 4, weight_II, logits_I, 1).freeze()
        stages = [Stage("linear", DIM, weight_II, logits_I, 1).freeze(), last][0 if self.judged else 1 :]
        return WarmStart(DIM, (DIM, 4), stages, [2, 1][: len(stages)])


@cache
def generated() -> Generated:
    """60 documents in 8 dims, of which 3 say which of 600 queries are about them."""
    return generate(torch.arange(3), DIM, docs=60, queries=600, noise_scale=1.0, mixed=True, seed=10)


@dataclass
class Ended:
    """How a training ended.

    Attributes:
        trained: what it gave, without times; None where it was interrupted.
        records: what it reported, without times.
        records_before: how many of them had come at each checkpoint.
    """

    trained: Trained | None
    records: list[Record]
    records_before: list[int]

    @property
    def tensors(self) -> list[dict[str, Tensor]]:
        assert self.trained is not None
        return [stage.tensors for stage in self.trained.stages]

    @property
    def metrics(self) -> dict[str, Any]:
        assert self.trained is not None
        return self.trained.metrics

    @property
    def choices(self) -> list[tuple[str, int]]:
        """Kind and epochs of every stage."""
        return [(stage["projection"], stage["epochs"]) for stage in self.metrics["stages"]]


def run_case(group: Group, case: Case, root: str, resume: int | None = None, interrupt: bool = False) -> Ended:
    """Trains, perhaps from a checkpoint, perhaps only up to the next one.

    Args:
        group: all ranks.
        case: what is trained.
        root: folder of its checkpoints.
        resume: number of the checkpoint to go on from.
        interrupt: end after the first checkpoint that this process writes.
    """
    # the processes run other cases, too
    second_start.MUCH_GAIN = MUCH_GAIN if case.much_gain is None else case.much_gain
    torch.manual_seed(torch.seed())  # no process starts with the random numbers of another
    records = Records()
    resumed = None if resume is None else Checkpoint.read(Path(root) / str(resume))
    checkpoints = None
    # to write after every step takes most of the time: not where a training goes on to its end
    if resume is None or interrupt:
        checkpoints = Folders(Path(root), 1, group, records, 0 if resume is None else resume + 1, interrupt)
    trained = None
    try:
        trained = train(
            case.data(group),
            case.config,
            records,
            Hooks(checkpoints=checkpoints, resumed=resumed),
            base=case.base(),
            warm_start=case.champion(),
        )
        trained = Trained(trained.stages, without_times(trained.metrics))
    except Interrupted:
        pass
    before = checkpoints.records_before if checkpoints else []
    return Ended(trained, [without_times(record) for record in records.all], before)


def alone(ranks: Ranks, *arguments: Any) -> Ended:
    """A training in one other process."""
    ended: Ended = ranks.run(1, run_case, *arguments)[0]
    return ended


def without_times(tree: Any) -> Any:
    """The same without what clocks say."""
    if isinstance(tree, list):
        return [without_times(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: without_times(value) for key, value in tree.items() if not str(key).startswith(TIMES)}


def checkpoint_at(root: Path, number: int) -> Checkpoint:
    return Checkpoint.read(root / str(number))


def assert_same(found: Ended, expected: Ended) -> None:
    """The same model bit for bit, and the same figures."""
    assert found.metrics == expected.metrics
    for stage, other in zip(found.tensors, expected.tensors, strict=True):
        assert stage.keys() == other.keys()
        for name, tensor in stage.items():
            assert torch.equal(tensor, other[name]), f"{name} differs by {(tensor - other[name]).abs().max()}"
