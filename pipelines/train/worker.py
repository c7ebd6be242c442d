"""What every Ray Train worker of a training does: its rows, the loop of smec_core, checkpoints and figures."""

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode
from ray.util.queue import Queue

from pipelines.data.source import Source
from pipelines.runtime.cluster import RayFailure, quiet_data
from pipelines.runtime.leftovers import remove_left
from pipelines.runtime.prometheus import TrainMeters
from pipelines.storage.model_folder import make_out
from pipelines.train.checkpoints import open_checkpoint, write_file_list
from smec_core.config import TrainConfig
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node, folder_for
from smec_core.errors import SmecError
from smec_core.model.adapter import FrozenStage
from smec_core.temporary import base_folder, make_folder, remove_folder
from smec_core.training.checkpoint import Checkpoint
from smec_core.training.context import TrainingData
from smec_core.training.tracker import NullTracker, Record
from smec_core.training.trained import TRAINED_FILE
from smec_core.training.trainer import Hooks, StageReached, train
from smec_core.training.warm import WarmStart

SEND_SECONDS = 0.5
RESENT_AT_ONCE = 1000
HISTORY_FILE = "history.jsonl"
KEPT_CHECKPOINTS = 2
LOCAL_DISK = "name a folder on a local disk of every node"


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is told.

    Attributes:
        config: settings of the method.
        source: what to learn from.
        base: stages that are trained already.
        warm_start: the champion that the stages start from.
        checkpoint: what this start of the run goes on from, until there is a newer one.
        queue: takes figures and lines of progress to the driver.
        threads: torch threads.
        checkpoint_every: steps from one checkpoint to the next.
        scratch: folder on a local disk of each node.
        reports_stages: whether the driver wants to know what each stage reached.
    """

    config: TrainConfig
    source: Source
    base: list[FrozenStage]
    warm_start: WarmStart | None
    checkpoint: ray.train.Checkpoint | None
    queue: Queue
    threads: int
    checkpoint_every: int
    scratch: str | None
    reports_stages: bool

    def local_folder(self) -> Path:
        """A folder on a local disk of this node.

        Raises:
            InputError: it cannot be used.
        """
        if not self.scratch:
            return base_folder()
        folder = Path(self.scratch)
        make_out(folder, "scratch", LOCAL_DISK)
        return folder


class Resent(NamedTuple):
    """Records that were sent before, but may not have arrived."""

    records: list[Record]


class Placed(NamedTuple):
    """Where the workers of this attempt run: the id of their placement group."""

    group_id: str


Item = Record | Resent | StageReached | Placed | str | SmecError
"""What a worker sends to the driver: figures, lines of progress, and why there is no point in trying again."""


class Sender:
    """Tracker of rank 0: sends records and lines of progress to the driver, some at a time.

    Attributes:
        history: every record as a line of JSON, also those from before an interruption.
    """

    def __init__(self, queue: Queue, meters: TrainMeters | None = None) -> None:
        self.history: list[str] = []
        self._queue = queue
        self._meters = meters
        self._waiting: list[Item] = []
        self._sent = time.monotonic()

    def log(self, record: Record) -> None:
        """Takes a record of the training."""
        self.history.append(json.dumps(record))
        if self._meters is not None:
            self._meters.take(record)
        self._add(record)

    def say(self, line: str) -> None:
        """Sends a line of progress, at once."""
        self._add(line)
        self.flush()

    def report(self, item: StageReached | Placed) -> None:
        """Sends what the driver waits for, at once."""
        self._add(item)
        self.flush()

    def resume(self, history: list[str]) -> None:
        """Takes up the records of before an interruption, and sends them again: the last may not have arrived."""
        self.history = history
        for start in range(0, len(history), RESENT_AT_ONCE):
            self._add(Resent([json.loads(line) for line in history[start : start + RESENT_AT_ONCE]]))
            self.flush()

    def fail(self, error: SmecError) -> None:
        """Tells the driver why there is no point in trying again."""
        self._add(error)
        self.flush()

    def _add(self, item: Item) -> None:
        self._waiting.append(item)
        if time.monotonic() - self._sent > SEND_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what waits."""
        if self._waiting:
            # bytes: the queue's process, which reads what is put, would import torch for it
            self._queue.put(pickle.dumps(self._waiting))
            self._waiting = []
        self._sent = time.monotonic()


class RayCheckpoints:
    """Checkpoints through Ray Train, which uploads them while the training goes on and keeps the last."""

    def __init__(self, every: int, group: Group, sender: Sender, number: int, place: Path) -> None:
        """Prepares them.

        Args:
            every: steps from one to the next.
            group: all ranks of the run.
            sender: has the figures so far.
            number: that of the last one of the run.
            place: local folder, for one in which checkpoints wait until they are stored.
        """
        self.every = every
        self._group, self._sender, self._number = group, sender, number
        # what this process leaves there, the next worker of this machine removes
        self._folder = make_folder(place)

    def save(self, write: Callable[[Path], None]) -> None:
        """Collective: every rank writes its part of one checkpoint."""
        self._report(write, CheckpointUploadMode.ASYNC)

    def save_last(self, write: Callable[[Path], None]) -> None:
        """Saves a checkpoint, and returns when it is stored. Collective."""
        self._report(write, CheckpointUploadMode.SYNC)

    def close(self) -> None:
        """Removes the local folder; all checkpoints are stored."""
        remove_folder(self._folder)

    def _report(self, write: Callable[[Path], None], mode: CheckpointUploadMode) -> None:
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        write(folder)
        if self._group.rank == 0:
            (folder / HISTORY_FILE).write_text("".join(f"{line}\n" for line in self._sender.history))
        write_file_list(folder, self._group.rank, self._group.size, self._number)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({}, checkpoint, checkpoint_upload_mode=mode, delete_local_checkpoint_after_upload=True)


def _run_name() -> str:
    return ray.train.get_context().get_experiment_name().rpartition(".start-")[0]


def train_on_worker(loop: dict[str, WorkerTask]) -> None:
    """Trains, from the run's last checkpoint where there is one; the last checkpoint of all holds the result."""
    task = loop["task"]
    torch.set_num_threads(task.threads)
    quiet_data()
    group = Group()
    meters = TrainMeters(_run_name()) if group.rank == 0 else None
    if meters is not None:
        meters.start()
    sender = Sender(task.queue, meters)
    placed = ray.util.get_current_placement_group()
    if group.rank == 0 and placed is not None:
        sender.report(Placed(placed.id.hex()))
    latest = ray.train.get_checkpoint() or task.checkpoint
    resumed, number = None, 0
    if latest is not None:
        with latest.as_directory() as folder:
            if (Path(folder) / TRAINED_FILE).exists():
                return
            number = open_checkpoint(Path(folder), latest.path)
            resumed = Checkpoint.read(Path(folder))
            if group.rank == 0:
                sender.resume((Path(folder) / HISTORY_FILE).read_text().splitlines())
    is_first = group.rank == 0
    on_stage = (sender.report if is_first else lambda reached: None) if task.reports_stages else None
    try:
        scratch = task.local_folder()
        remove_left(scratch)
        checkpoints = RayCheckpoints(task.checkpoint_every, group, sender, number, scratch)
        data = _load(task, group, scratch)
        if is_first:
            sender.say(f"{group.size} worker(s) share the steps from here on")
        trained = train(
            data,
            task.config,
            sender if is_first else NullTracker(),
            Hooks(
                say=sender.say if is_first else lambda line: None,
                checkpoints=checkpoints,
                resumed=resumed,
                on_stage=on_stage,
            ),
            task.base,
            task.warm_start,
        )
    except RayFailure:
        raise
    except SmecError as error:
        sender.fail(error)
        raise
    sender.flush()
    checkpoints.save_last(lambda folder: trained.write(folder) if is_first else None)
    checkpoints.close()


def _load(task: WorkerTask, group: Group, scratch: Path) -> TrainingData:
    """Takes the rows from the object store, and names this rank's place on its node."""
    here = ray.get_runtime_context().get_node_id()
    # not Ray's local rank: it counts by address, which several nodes can share
    nodes = group.gather_objects(here)
    rank, ranks = nodes[: group.rank].count(here), nodes.count(here)
    # they take of shared memory what the blocks then cannot have
    held = task.source.pull()
    folder = folder_for(task.source.block_bytes, ranks, scratch)
    data = task.source.fetch(Node(group, here, rank, ranks, folder, ray.train.torch.get_device()))
    del held
    return data
