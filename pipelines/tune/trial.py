"""What one trial of a study does, in a process on the cluster, which the next trial takes over."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import tune

from pipelines.data.source import Source
from pipelines.runtime.cluster import quiet_data, threads_of
from pipelines.runtime.settings import ClusterSettings
from pipelines.storage.run_folder import RunFolder
from pipelines.storage.study import METRIC, PLACE, PLACED_FILE, Objective, trial_folder
from smec_core.config import TrainConfig
from smec_core.distributed.resident import Node
from smec_core.errors import one_line
from smec_core.temporary import temporary_folder
from smec_core.training.schedule import chain_dims
from smec_core.training.tracker import Record
from smec_core.training.trainer import Hooks, StageReached, train

if TYPE_CHECKING:
    from pipelines.train import Placed


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a study share.

    Attributes:
        config: settings of the method, before those that are searched.
        source: what to learn from; the vectors are in the object store.
        objective: what to report.
        study: the study's run folder.
        settings: workers and devices.
        use_gpu: whether a trial in one process trains on a GPU.
    """

    config: TrainConfig
    source: Source
    objective: Objective
    study: RunFolder
    settings: ClusterSettings
    use_gpu: bool


class _Reporter:
    """Reports to Tune after each stage, with the dev figures of its epochs."""

    def __init__(self, objective: Objective, folder: RunFolder, is_waited_for: bool) -> None:
        """Prepares it.

        Args:
            objective: what to report.
            folder: the trial's own.
            is_waited_for: whether the training stands still while Tune takes a report.
        """
        self._objective, self._folder, self._is_waited_for = objective, folder, is_waited_for
        self._records: list[Record] = []
        self._waited = 0.0
        self._placed: dict[str, Any] = {}

    def log(self, record: Record) -> None:
        """Keeps the figures of epochs, and drops those of steps."""
        if "loss" not in record:
            self._records.append(record)

    def take(self, item: "StageReached | Placed") -> None:
        """Takes where the workers run, which goes with every report, or reports what a stage reached.

        A trial that is cut off before its first report has left a note.
        """
        if isinstance(item, StageReached):
            self.on_stage(item)
        else:
            self._folder.write(PLACED_FILE, {"group": item.group_id})
            self._placed = {"placed": (ray.get_runtime_context().current_actor, item.group_id)}

    def on_stage(self, reached: StageReached) -> None:
        """Reports what a stage reached."""
        records, self._records = self._records, []
        self.report(reached.place, reached.scores, reached.seconds, records=records)

    def report(self, place: int, scores: dict[int, float], seconds: float, **more: Any) -> None:
        """Hands a result to Tune, which may end this process for it."""
        started = time.perf_counter()
        quality = self._objective.quality(scores) if scores else math.nan
        seconds -= self._waited if self._is_waited_for else 0.0
        tune.report({PLACE: place, METRIC: quality, "scores": scores, "seconds": seconds, **self._placed, **more})
        self._waited += time.perf_counter() - started


def run_trial(params: dict[str, Any], task: TrialTask) -> None:
    """Trains with the settings of one trial, and reports after every stage."""
    number, searched = params["number"], {name: value for name, value in params.items() if name != "number"}
    is_here = task.settings.is_one_process
    reporter = _Reporter(task.objective, trial_folder(task.study, number), is_waited_for=is_here)
    try:
        config = TrainConfig.model_validate(task.config.model_dump() | searched)
        metrics = _train_here(config, task, reporter) if is_here else _train_on_workers(config, task, number, reporter)
    except Exception as error:
        if is_here and isinstance(error, ray.exceptions.RayError):
            # a node was lost: Tune tries again
            raise
        # not raised: Tune would try it again, and Ray Train has where that may help
        reporter.report(0, {}, 0.0, error=f"{type(error).__name__}: {one_line(error)}")
        return
    [dev] = metrics["dev"].values()
    scores = {int(dim): score for dim, score in dev.items()}
    place = len(chain_dims(max(scores), config.dims))
    reporter.report(place, scores, metrics["training"]["seconds"], finished=True)


def _train_here(config: TrainConfig, task: TrialTask, reporter: _Reporter) -> dict[str, Any]:
    torch.set_num_threads(threads_of(task.settings))
    node = Node(device=torch.device("cuda" if task.use_gpu else "cpu"))
    return train(task.source.fetch(node), config, reporter, Hooks(on_stage=reporter.on_stage)).metrics


def _train_on_workers(config: TrainConfig, task: TrialTask, number: int, reporter: _Reporter) -> dict[str, Any]:
    # here and not above: a trial in one process begins sooner without Ray Train and Ray Data
    from pipelines.train import RayRun

    quiet_data()
    run_folder = trial_folder(task.study, number)
    run_folder.create()
    with temporary_folder() as made:
        history = made / "history.jsonl"
        run = RayRun(task.settings, config, task.source, run_folder, reporter, listener=reporter)
        trained = run.fit(history)
    return trained.metrics


def resources_of(settings: ClusterSettings, use_gpu: bool, memory: int) -> dict[str, float]:
    """What Tune reserves for a trial itself; workers ask for their own CPUs."""
    if not settings.is_one_process:
        # Tune reserves something or other
        return {"cpu": 0.0, "memory": float(memory)}
    return {"cpu": float(threads_of(settings)), "gpu": float(use_gpu), "memory": float(memory)}
