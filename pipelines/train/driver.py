"""The Ray Train run of a training, as the driver sees it: workers on the cluster, their figures and lines back."""

import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import ScalingConfig
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.console import Progress, say, telling, warn
from pipelines.data.source import Source
from pipelines.runtime.cluster import connect, is_own, threads_of, unwrap, use_gpus
from pipelines.runtime.ray_private import lean_trainer, run_id_of, start_coordinator, withdraw_claim
from pipelines.runtime.settings import ClusterSettings
from pipelines.storage.run_folder import RunFolder
from pipelines.train.checkpoints import Start, begin_start, open_checkpoint
from pipelines.train.settings import TrainingSettings
from pipelines.train.worker import (
    HISTORY_FILE,
    KEPT_CHECKPOINTS,
    SEND_SECONDS,
    Placed,
    Resent,
    WorkerTask,
    train_on_worker,
)
from smec_core.config import TrainConfig
from smec_core.errors import SmecError
from smec_core.model.adapter import FrozenStage
from smec_core.training.plan import plan_training
from smec_core.training.tracker import Tracker
from smec_core.training.trained import Trained
from smec_core.training.trainer import StageReached
from smec_core.training.warm import WarmStart

RAY_RUN_FILE, THREADS_FILE = "ray_run.json", "threads.json"
LEAVE_SECONDS = 10.0
# how often Ray Train looks after its workers, and takes in one checkpoint: its 2 s would let them queue up
POLL_SECONDS = 0.25
# how long an elastic run waits for room for its workers: Ray counts on a lost node for up to 20 s, and should then ask
# for fewer
PLACEMENT_SECONDS = 10.0


class Listener(Protocol):
    """Who follows a training more closely than by its figures."""

    def take(self, item: StageReached | Placed) -> None:
        """Takes where the workers run, or what a stage reached."""


def with_threads(settings: TrainingSettings, run_folder: RunFolder) -> TrainingSettings:
    """The settings with the CPUs of each worker that the run began with: another number changes a model's last bits."""
    if settings.cpus_per_worker is not None:
        return settings
    kept = run_folder.read(THREADS_FILE, {"cpus_per_worker"}, "remove it")
    if kept is None:
        kept = {"cpus_per_worker": threads_of(settings)}
        run_folder.write(THREADS_FILE, kept)
    return settings.model_copy(update={"cpus_per_worker": kept["cpus_per_worker"]})


@dataclass(frozen=True)
class RayRun:
    """A training on the cluster, from the run's newest whole checkpoint where there is one.

    Attributes:
        settings: workers and devices.
        config: settings of the method.
        source: what to learn from.
        run_folder: the run's folder, in which Ray keeps the checkpoints, too; no other process trains it now.
        tracker: takes the figures while the run goes on; after a resume some of them again.
        base: stages that are trained already.
        warm_start: the champion that the stages start from.
        check: called all the while; raises where the training must stop.
        listener: hears where the workers run and what each stage of the first pass reached, also after a resume.
    """

    settings: ClusterSettings
    config: TrainConfig
    source: Source
    run_folder: RunFolder
    tracker: Tracker
    base: Sequence[FrozenStage] = ()
    warm_start: WarmStart | None = None
    check: Callable[[], None] = lambda: None
    listener: Listener | None = None

    def fit(self, history: Path) -> Trained:
        """Trains.

        Args:
            history: file to write all figures to, each once.

        Raises:
            InputError: gpu is "on" and the cluster has too few.
            SmecError: the workers failed more often than settings allow.
        """
        start = begin_start(self.run_folder)
        checkpoint = start.checkpoint
        if checkpoint is None or not start.is_trained:
            checkpoint = self._train(start)
        with checkpoint.as_directory() as stored:
            open_checkpoint(Path(stored), checkpoint.path)
            shutil.copy(Path(stored) / HISTORY_FILE, history)
            trained = Trained.read(Path(stored))
        if start.is_trained:
            say("trained to the end already; the last checkpoint is taken")
            for line in history.read_text().splitlines():
                self.tracker.log(json.loads(line))
        return trained

    def _train(self, start: Start) -> Checkpoint:
        """The last checkpoint of the training."""
        use_gpu = self._connect()
        start_coordinator()
        # beside the driver: a node that is lost must not take it along
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        trainer = self._trainer(start, queue, use_gpu)
        before = self.run_folder.read(RAY_RUN_FILE, {"id"}, "remove it")
        if before is not None:
            withdraw_claim(before["id"])
        self.run_folder.write(RAY_RUN_FILE, {"id": run_id_of(trainer)})
        return self._follow(trainer, queue)

    def _connect(self) -> bool:
        """Connects to the cluster; gives whether the workers train on GPUs."""
        settings = self.settings
        least, most = settings.worker_range
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
        if least < most:
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACEMENT_SECONDS))
        connect(most * threads_of(settings))
        if is_own():
            # a process that looks out for nodes that are to be taken away; this machine is none
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        use_gpu = use_gpus(settings, least)
        found, needed = ray.cluster_resources().get("CPU", 0), least * threads_of(settings)
        if found < needed:
            warn(f"{least} worker(s) need {needed} CPUs, the cluster has {found:g} now; waiting")
        count = str(least) if least == most else f"{least} to {most}"
        say(f"{count} worker(s) on {'GPU' if use_gpu else 'CPU'}, {threads_of(settings)} CPU(s) each")
        return use_gpu

    def _trainer(self, start: Start, queue: Queue, use_gpu: bool) -> ray.train.torch.TorchTrainer:
        settings = self.settings
        least, most = settings.worker_range
        task = WorkerTask(
            config=self.config,
            source=self.source,
            base=list(self.base),
            warm_start=self.warm_start,
            checkpoint=start.checkpoint,
            queue=queue,
            threads=threads_of(settings),
            checkpoint_every=settings.checkpoint_every,
            scratch=settings.scratch,
            reports_stages=self.listener is not None,
        )
        return lean_trainer(
            train_on_worker,
            # the rows are in the object store; a cluster of this process's own ends with it, placement groups and all
            needless={"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if is_own() else set()),
            train_loop_config={"task": task},
            # resident rows and their reductions stay on the CPU, gradients on the GPU
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=least if least == most else (least, most),
                use_gpu=use_gpu,
                resources_per_worker={"CPU": threads_of(settings)} | ({"GPU": 1} if use_gpu else {}),
                elastic_resize_monitor_interval_s=settings.resize_seconds,
            ),
            run_config=RunConfig(
                name=start.name,
                storage_path=self.run_folder.path,
                storage_filesystem=self.run_folder.filesystem,
                failure_config=FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            ),
        )

    def _follow(self, trainer: ray.train.torch.TorchTrainer, queue: Queue) -> Checkpoint:
        """Runs the trainer in a thread and hands on what the workers send until it ends."""
        outcome: dict[str, Any] = {}

        def work() -> None:
            try:
                outcome["result"] = trainer.fit()
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=work, name="trainer", daemon=True)
        thread.start()
        refused: SmecError | None = None
        plan = plan_training(self.source.shape(self.config), self.config, self.base, self.warm_start)
        stages = [(stage.pass_name, stage.dim, stage.rhythm.most_steps) for stage in plan]
        with _ending(queue), Progress(stages) as progress, telling("training"):
            while True:
                self.check()
                ended = not thread.is_alive()
                try:
                    items = pickle.loads(queue.get(timeout=SEND_SECONDS))
                except Empty:
                    if ended:
                        break
                    continue
                except ray.exceptions.RayError as error:
                    # with the process of the queue goes what the workers send
                    raise unwrap(error) from error
                for item in items:
                    if isinstance(item, str):
                        say(item)
                    elif isinstance(item, SmecError):
                        refused = item
                    elif isinstance(item, StageReached | Placed):
                        if self.listener is not None:
                            self.listener.take(item)
                    elif isinstance(item, Resent):
                        for record in item.records:
                            self.tracker.log(record)
                    else:
                        self.tracker.log(item)
                        progress.update(item)
                if refused is not None:
                    # the workers end by themselves, or with this process
                    thread.join(LEAVE_SECONDS)
                    break
        if refused is not None:
            raise refused
        if "error" in outcome:
            raise unwrap(outcome["error"]) from outcome["error"]
        checkpoint = outcome["result"].checkpoint
        if checkpoint is None:
            raise SmecError("the workers ended without a trained model")
        return checkpoint


@contextmanager
def _ending(queue: Queue) -> Iterator[None]:
    """Ends the process of a queue with the block; nothing is left in it to wait for."""
    try:
        yield
    finally:
        with suppress(ray.exceptions.RayError):
            queue.shutdown(force=True)
