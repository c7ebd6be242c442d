"""The Ray Train run of a training: resident shards, the loop of smec_core on every worker, figures to the driver."""

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from ray.util.queue import Empty, Queue
from safetensors.torch import load_file, save_file

from pipelines.cluster import connect, unwrap
from pipelines.console import Progress, say, warn
from pipelines.run_folder import RunFolder
from pipelines.stream import RowShards, fill, rows_dataset
from smec_core.adapter import FrozenStage
from smec_core.config import TrainConfig
from smec_core.dataset import Dataset
from smec_core.errors import InputError, SmecError
from smec_core.group import Group
from smec_core.tracker import NullTracker, Record, Tracker
from smec_core.train import Trained, TrainingData, train

if TYPE_CHECKING:
    from pipelines.train import TrainSettings

SEND_SECONDS = 0.5
DATA_CPUS = 1


class History:
    """Where the figures of a run go on the driver: history.jsonl, a tracker, and the person who waits."""

    def __init__(self, file: TextIO, tracker: Tracker) -> None:
        self._file, self._tracker = file, tracker

    def log(self, record: Record) -> None:
        """Takes one record."""
        self._file.write(json.dumps(record) + "\n")
        self._tracker.log(record)


class _Sender:
    """Tracker of rank 0: sends records and lines of progress to the driver, some at a time."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: list[Record | str] = []
        self._sent = time.monotonic()

    def log(self, record: Record) -> None:
        self._add(record)

    def say(self, line: str) -> None:
        self._add(line)

    def _add(self, item: Record | str) -> None:
        self._waiting.append(item)
        if time.monotonic() - self._sent > SEND_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._queue.put(self._waiting)
            self._waiting = []
        self._sent = time.monotonic()


def fit(
    settings: "TrainSettings",
    config: TrainConfig,
    dataset: Dataset,
    name: str,
    run_folder: RunFolder,
    history: History,
) -> Trained:
    """Runs the training on the cluster.

    Args:
        settings: workers and devices.
        config: settings of the method.
        dataset: what to train on.
        name: run name.
        run_folder: the run's folder, which Ray keeps its state in, too.
        history: takes the figures while the run goes on.

    Raises:
        InputError: gpu is "on" and the cluster has too few.
        SmecError: a worker failed.
    """
    cpus = settings.workers * settings.cpus_per_worker + DATA_CPUS
    connect(cpus)
    resources = ray.cluster_resources()
    has_gpus = resources.get("GPU", 0) >= settings.workers
    if settings.gpu == "on" and not has_gpus:
        raise InputError(f"gpu: {settings.workers} GPUs wanted, but the cluster has {resources.get('GPU', 0):g}")
    use_gpu = has_gpus and settings.gpu != "off"
    if resources.get("CPU", 0) < cpus:
        warn(
            f"the run needs {cpus} CPUs, the cluster has {resources.get('CPU', 0):g} now; it waits until there are more"
        )
    say(f"{settings.workers} worker(s) on {'GPU' if use_gpu else 'CPU'}, {settings.cpus_per_worker} CPU(s) each")

    tables = {"corpus": dataset.corpus, "queries": dataset.queries}
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = ray.train.torch.TorchTrainer(
        _train_on_worker,
        train_loop_config={
            "config": config,
            "rows": {name: table.rows for name, table in tables.items()},
            "dim": dataset.dim,
            "labels": dataset.training_split(config),
            "queue": queue,
            "threads": settings.cpus_per_worker,
        },
        # resident rows and their reductions stay on the CPU, gradients on the GPU
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(name=name, storage_path=run_folder.storage_path, storage_filesystem=run_folder.filesystem),
        datasets={name: rows_dataset(table, 0, table.rows) for name, table in tables.items()},
        dataset_config=RowShards(tables),
    )
    checkpoint = _follow(trainer, queue, history)
    with checkpoint.as_directory() as stored:
        return _read_trained(Path(stored))


def _follow(trainer: ray.train.torch.TorchTrainer, queue: Queue, history: History) -> Checkpoint:
    """Runs the trainer in a thread and hands on what the workers send until it ends."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, name="trainer", daemon=True)
    thread.start()
    with Progress() as progress:
        while True:
            ended = not thread.is_alive()
            try:
                items = queue.get(timeout=SEND_SECONDS)
            except Empty:
                if ended:
                    break
                continue
            for item in items:
                if isinstance(item, str):
                    say(item)
                else:
                    history.log(item)
                    progress.update(item)
    queue.shutdown()
    if "error" in outcome:
        raise unwrap(outcome["error"]) from outcome["error"]
    checkpoint = outcome["result"].checkpoint
    if checkpoint is None:
        raise SmecError("the workers ended without a trained model")
    return checkpoint


def _train_on_worker(loop: dict[str, Any]) -> None:
    """What every Ray Train worker does."""
    torch.set_num_threads(loop["threads"])
    group = Group()
    sender = _Sender(loop["queue"])
    shards = {
        name: fill(ray.train.get_dataset_shard(name), rows, loop["dim"], group) for name, rows in loop["rows"].items()
    }
    is_first = group.rank == 0
    trained = train(
        TrainingData(shards["corpus"], shards["queries"], *loop["labels"]),
        loop["config"],
        sender if is_first else NullTracker(),
        ray.train.torch.get_device(),
        sender.say if is_first else lambda line: None,
    )
    if not is_first:
        ray.train.report({})
        return
    sender.flush()
    with tempfile.TemporaryDirectory() as folder:
        _write_trained(trained, Path(folder))
        ray.train.report({}, checkpoint=Checkpoint.from_directory(folder))


def _write_trained(trained: Trained, folder: Path) -> None:
    stages = [{"dim": stage.dim, "projection": stage.projection} for stage in trained.stages]
    (folder / "trained.json").write_text(json.dumps({"stages": stages, "metrics": trained.metrics}))
    for number, stage in enumerate(trained.stages):
        tensors = {name: tensor.cpu().contiguous() for name, tensor in stage.tensors.items()}
        save_file(tensors, folder / f"stage{number}.safetensors")


def _read_trained(folder: Path) -> Trained:
    record = json.loads((folder / "trained.json").read_text())
    stages = [
        FrozenStage(stage["dim"], stage["projection"], load_file(folder / f"stage{number}.safetensors"))
        for number, stage in enumerate(record["stages"])
    ]
    return Trained(stages, record["metrics"])
