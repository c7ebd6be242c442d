"""What a training needs to go on from a step as if nothing had happened, and the files that hold it.

    progress.safetensors       rank 0: where the training stands, finished stages
    stage.safetensors          rank 0, within a stage: weights, their average, optimizer, schedule, guard, best state
    memory-RANK.safetensors    every rank: its shard of the memory
    trained.safetensors        rank 0, at the end, in place of all others: the trained chain and its metrics

No random state is kept: every random choice is a function of the seed and of the place in the training.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from smec_core.errors import InputError
from smec_core.training.memory import MemoryShard

STAGE_FILE = "stage.safetensors"
FORMER_LINEAR = "free"
"""What earlier versions called a linear map, in its checkpoints, too."""

Tree = dict[str, Any]
"""Numbers, strings, None, tensors, and lists and dicts of them."""


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        pass_name: `first`, `refit` or `warm`.
        stage: number of the stage in training, or of the next one.
        epoch: epochs of it that are done.
        batch: steps of the epoch that are done.
        step: steps of the run that are done.
        rows: queries and documents that those steps were made of.
        seconds: what the training has taken so far.
        stage_seconds: what the stage has taken so far.
        dev_scores: dev figures of the finished first pass.
        passes: finished stages of each pass.
        start: the closed form that the training started from, as `ClosedStart.chosen` has it; empty without.
        order: the order in which the outputs of the stage in training start; empty where its start is fixed.
    """

    pass_name: str
    stage: int
    epoch: int
    batch: int
    step: int
    rows: int
    seconds: float
    stage_seconds: float
    dev_scores: dict[str, dict[str, float]]
    passes: dict[str, list[Tree]]
    start: Tree = field(default_factory=dict)
    order: Tree = field(default_factory=dict)


@dataclass
class Checkpoint:
    """A training at one step. A rank fills in what it speaks for; what is read back is whole.

    Attributes:
        progress: where it stands; None on other ranks than the first.
        stage: state of the stage in training; None on other ranks than the first, and between stages.
        memory: shards of the memory, of the writing rank or of all.
        former: states by kind of projection instead, of which earlier versions tried several in a stage.
    """

    progress: Progress | None
    stage: Tree | None
    memory: list[MemoryShard]
    former: dict[str, Tree] = field(default_factory=dict)

    def write(self, folder: Path, rank: int) -> None:
        """Writes the part of one rank into the folder that all ranks write to."""
        if self.progress is not None:
            write_tree(folder / "progress.safetensors", vars(self.progress))
        if self.stage is not None:
            write_tree(folder / STAGE_FILE, self.stage)
        for shard in self.memory:
            write_tree(folder / f"memory-{rank}.safetensors", vars(shard))

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint":
        """Reads what all ranks wrote."""
        shards = [MemoryShard(**read_tree(path)) for path in sorted(folder.glob("memory-*.safetensors"))]
        progress = read_tree(folder / "progress.safetensors")
        former = _of_former(progress, folder)
        stage = read_tree(folder / STAGE_FILE) if (folder / STAGE_FILE).exists() else None
        return cls(Progress(**progress), stage, shards, former)

    @property
    def is_within(self) -> bool:
        """Whether it was made within a stage, not between two."""
        return self.stage is not None or bool(self.former)

    def stage_of(self, projection: str) -> Tree:
        """State of the stage in training, which has this kind of projection.

        Raises:
            InputError: an earlier version made it, and was not training that kind.
        """
        if self.stage is not None:
            return self.stage
        if projection not in self.former:
            raise InputError(
                f"checkpoint: an earlier version of smec made it, with {' and '.join(self.former)} in training, where "
                f"this one trains a {projection}; take another name for a new run, or end this one with that version"
            )
        return self.former[projection]


def _of_former(progress: Tree, folder: Path) -> dict[str, Tree]:
    """Makes today's progress of one of an earlier version; gives what that keeps of the stage in training, by kind."""
    # the plan says it now
    progress.pop("epochs", None)
    for outcomes in progress["passes"].values():
        for outcome in outcomes:
            outcome.update(outcome.pop("tried", {}).get(outcome["stage"]["projection"], {}))
    guards, states = progress.pop("guards", {}), {}
    for path in folder.glob("candidate-*.safetensors"):
        kind = path.stem.removeprefix("candidate-").replace(FORMER_LINEAR, "linear")
        states[kind] = read_tree(path) | guards[kind]
    return states


class Checkpoints(Protocol):
    """Where checkpoints go; the training loop knows this interface only."""

    every: int
    """Steps from one checkpoint to the next; one is also made after every stage."""

    def save(self, write: Callable[[Path], None]) -> None:
        """Collective: `write` puts this rank's files into a folder, and all ranks' together are a checkpoint."""


def write_tree(path: Path, tree: Tree) -> None:
    """Writes a tree: its tensors as safetensors, all else as JSON in the file's metadata."""
    tensors: dict[str, Tensor] = {}

    def strip(node: Any) -> Any:
        if isinstance(node, Tensor):
            name = str(len(tensors))
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(node, dict):
            return {"dict": [[key, strip(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return [strip(value) for value in node]
        return node

    save_file(tensors, path, metadata={"tree": json.dumps(strip(tree))})


def read_tree(path: Path) -> Tree:
    """Reads a tree that `write_tree` wrote; a tuple comes back as a list."""
    with safe_open(path, "pt") as file:

        def fill(node: Any) -> Any:
            if isinstance(node, list):
                return [fill(value) for value in node]
            if not isinstance(node, dict):
                return node
            return file.get_tensor(node["tensor"]) if "tensor" in node else {k: fill(v) for k, v in node["dict"]}

        tree: Tree = fill(json.loads(file.metadata()["tree"].replace(f'"{FORMER_LINEAR}"', '"linear"')))
    return tree


def same_device(tree: Any, device: torch.device) -> Any:
    """The tree with its tensors on a device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: same_device(value, device) for key, value in tree.items()}
    return [same_device(value, device) for value in tree] if isinstance(tree, list) else tree
