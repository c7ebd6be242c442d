"""What a training has reached: each finished stage, and at the end the whole chain."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smec_core.evaluation.dev_set import Scores
from smec_core.model.adapter import FrozenStage
from smec_core.model.closed_forms import ClosedForm
from smec_core.training.checkpoint import Tree, read_tree, write_tree

TRAINED_FILE = "trained.safetensors"


@dataclass(frozen=True)
class StageOutcome:
    """One finished stage of a pass.

    Attributes:
        d_in: the dims it takes.
        stage: what was kept.
        epochs: after how many its best state came.
        dev_score: what that state counts by.
        scores: its dev score at every scored prefix; none without dev.
        seconds: what it took.
        order: the order in which its outputs started; None where its start is fixed.
    """

    d_in: int
    stage: FrozenStage
    epochs: int
    dev_score: float
    scores: Scores
    seconds: float
    order: ClosedForm | None = None

    def metrics(self, stored: FrozenStage) -> dict[str, Any]:
        """The record for metrics.json; `stored` is the stage as the last pass left it."""
        record: dict[str, Any] = {
            "d_in": self.d_in,
            "dim": self.stage.dim,
            "projection": self.stage.projection,
            "epochs": self.epochs,
            "seconds": round(self.seconds, 3),
            "importance": [round(v, 8) for v in stored.tensors["logits"].softmax(0).tolist()],
        }
        if self.order is not None:
            record["order"] = self.order._asdict()
        if self.scores:
            record["dev_score"] = self.dev_score
        return record

    def tree(self) -> Tree:
        """The outcome as a checkpoint keeps it."""
        order = None if self.order is None else self.order._asdict()
        return vars(self) | {"stage": _stage_tree(self.stage), "order": order}

    @classmethod
    def from_tree(cls, tree: Tree) -> "StageOutcome":
        """Reads it back."""
        order = ClosedForm(**tree["order"]) if tree.get("order") else None
        return cls(**tree | {"stage": FrozenStage(**tree["stage"]), "order": order})


@dataclass(frozen=True)
class Trained:
    """The trained chain and how it came about."""

    stages: list[FrozenStage]
    metrics: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes it, as the last checkpoint of a training."""
        write_tree(
            folder / TRAINED_FILE, {"stages": [_stage_tree(stage) for stage in self.stages], "metrics": self.metrics}
        )

    @classmethod
    def read(cls, folder: Path) -> "Trained":
        """Reads it back."""
        tree = read_tree(folder / TRAINED_FILE)
        return cls([FrozenStage(**stage) for stage in tree["stages"]], tree["metrics"])


def _stage_tree(stage: FrozenStage) -> Tree:
    return {"dim": stage.dim, "projection": stage.projection, "tensors": stage.tensors}
