"""What every Ray Train worker of a training does: resident rows, the loop of smec_core, checkpoints and figures."""

import json
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode
from ray.util.queue import Queue

from pipelines.data.source import Source
from pipelines.data.stream import stream_of
from pipelines.runtime.cluster import RayFailure, quiet_data
from pipelines.runtime.prometheus import TrainMeters
from pipelines.train.checkpoints import open_checkpoint, write_file_list
from smec_core.config import TrainConfig
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node, Residency, ResidentRows, Rows, StreamedRows, Tier, choose_residency
from smec_core.errors import SmecError
from smec_core.model.adapter import FrozenStage
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
# of the memory that Ray leaves to tasks and actors on a node
BUDGET_SHARE = 0.4
BUDGET_BYTES = 4 << 30


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
        memory_budget: bytes of a node's memory for resident rows; None for a share of it.
        scratch: folder on a local disk of each node.
        tier: where rows are kept, if the user insists.
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
    memory_budget: int | None
    scratch: str | None
    tier: Tier | None
    reports_stages: bool

    def local_folder(self) -> Path:
        """A folder on a local disk of this node."""
        folder = Path(self.scratch or tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
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
        """Takes a line of progress."""
        self._add(line)

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

    def __init__(self, every: int, group: Group, sender: Sender, number: int, folder: Path) -> None:
        """Prepares them.

        Args:
            every: steps from one to the next.
            group: all ranks of the run.
            sender: has the figures so far.
            number: that of the last one of the run.
            folder: local folder in which a checkpoint waits until it is stored.
        """
        self.every = every
        self._group, self._sender, self._number, self._folder = group, sender, number, folder

    def save(self, write: Callable[[Path], None]) -> None:
        """Collective: every rank writes its part of one checkpoint."""
        self._report(write, CheckpointUploadMode.ASYNC)

    def save_last(self, write: Callable[[Path], None]) -> None:
        """Saves a checkpoint, and returns when it is stored. Collective."""
        self._report(write, CheckpointUploadMode.SYNC)

    def remove_left_behind(self) -> None:
        """Removes what killed workers of this run had not stored yet; before the first checkpoint, by one of a node."""
        for folder in self._folder.glob(f"{_checkpoint_prefix()}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _report(self, write: Callable[[Path], None], mode: CheckpointUploadMode) -> None:
        folder = Path(tempfile.mkdtemp(prefix=_checkpoint_prefix(), dir=self._folder))
        write(folder)
        if self._group.rank == 0:
            (folder / HISTORY_FILE).write_text("".join(f"{line}\n" for line in self._sender.history))
        self._number += 1
        write_file_list(folder, self._group.rank, self._group.size, self._number)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({}, checkpoint, checkpoint_upload_mode=mode, delete_local_checkpoint_after_upload=True)


def _checkpoint_prefix() -> str:
    """Begins the names of the local checkpoint folders of a run, whichever start made them."""
    return f"smec-checkpoint-{_run_name()}-"


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
    checkpoints = RayCheckpoints(task.checkpoint_every, group, sender, number, task.local_folder())
    if ray.train.get_context().get_local_rank() == 0:
        checkpoints.remove_left_behind()
    data = _load(task, group, sender)
    if data is None:
        return
    is_first = group.rank == 0
    on_stage = (sender.report if is_first else lambda reached: None) if task.reports_stages else None
    try:
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


def _load(task: WorkerTask, group: Group, sender: Sender) -> TrainingData | None:
    """Reads the rows of this node with its other ranks; None where one of the run's ranks met a bad row."""
    here = ray.get_runtime_context().get_node_id()
    # not Ray's local rank: it counts by address, which several nodes can share
    nodes = group.gather_objects(here)
    rank, ranks = nodes[: group.rank].count(here), nodes.count(here)
    # one for all nodes: how many rows are streamed at a time must be the same on all ranks
    budget = min(group.gather_objects(_budget(task, here)))
    residency = _agree(task, group, ranks, budget)
    node = Node(group, here, rank, ranks, residency.folder, ray.train.torch.get_device())
    if task.source.vectors is not None:
        return task.source.fetch(node)
    if group.rank == 0:
        sender.say(f"{group.size} worker(s); rows are kept in tier {residency.tier!r}: {residency.reason}")
    rows: list[Rows] = []
    for table in (task.source.corpus, task.source.queries):
        failure: SmecError | None = None
        try:
            if residency.tier == "streamed" and table is task.source.corpus:
                # old and new rows are held at once while others are prepared
                most = max(budget // (2 * 4 * table.dim), 1)
                rows.append(StreamedRows(stream_of(table), table.rows, table.dim, node, most))
            else:
                rows.append(ResidentRows.filled(stream_of(table), table.rows, table.dim, node))
        except RayFailure:
            raise
        except SmecError as error:
            failure = error
        failure = next((error for error in group.gather_objects(failure) if error is not None), None)
        if failure is not None:
            if group.rank == 0:
                sender.fail(failure)
            return None
    return TrainingData(rows[0], rows[1], *task.source.labels, node)


def _agree(task: WorkerTask, group: Group, ranks: int, budget: int) -> Residency:
    """Where this node keeps its rows; streamed on all nodes where one of them has no room for them."""
    rows = task.source.corpus.rows + task.source.queries.rows
    dev_rows = task.config.copied_docs(task.source.corpus.rows)
    choose = partial(choose_residency, rows, dev_rows, task.source.corpus.dim, budget, ranks, task.local_folder())
    residency = choose(task.tier)
    is_streamed = "streamed" in group.gather_objects(residency.tier)
    return choose("streamed") if is_streamed and residency.tier != "streamed" else residency


def _budget(task: WorkerTask, node: str) -> int:
    if task.memory_budget is not None:
        return task.memory_budget
    resources: dict[str, float] = next((found["Resources"] for found in ray.nodes() if found["NodeID"] == node), {})
    return int(BUDGET_SHARE * resources["memory"]) if "memory" in resources else BUDGET_BYTES
