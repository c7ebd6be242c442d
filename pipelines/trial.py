"""What one trial of a study does, in a process of its own on the cluster."""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from pipelines.checkpoints import remove_checkpoints
from pipelines.cluster import RayFailure, quiet_data
from pipelines.cluster_settings import ClusterSettings
from pipelines.fit import fit
from pipelines.run_folder import RunFolder
from pipelines.search import METRIC, PLACE
from pipelines.source import Source
from pipelines.study import Objective, trial_folder
from smec_core.config import TrainConfig
from smec_core.errors import one_line
from smec_core.resident import Node
from smec_core.schedule import chain_dims
from smec_core.tracker import Record
from smec_core.train import train


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

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._records: list[Record] = []
        self._began = time.perf_counter()
        self.waited = 0.0
        """Seconds that the training stood still for Tune."""

    @property
    def seconds(self) -> float:
        """Seconds that the training has taken so far, without those."""
        return time.perf_counter() - self._began - self.waited

    def log(self, record: Record) -> None:
        """Keeps the figures of epochs, and drops those of steps."""
        if "loss" not in record:
            self._records.append(record)

    def on_stage(self, place: int, scores: dict[int, float]) -> None:
        """Reports what a stage reached."""
        records, self._records = self._records, []
        quality = self._objective.quality(scores)
        self.report({PLACE: place, METRIC: quality, "scores": scores, "seconds": self.seconds, "records": records})

    def report(self, result: dict[str, Any]) -> None:
        """Hands a result to Tune, which may end this process for it."""
        started = time.perf_counter()
        tune.report(result)
        self.waited += time.perf_counter() - started


def run_trial(params: dict[str, Any], task: TrialTask) -> None:
    """Trains with the settings of one trial, and reports after every stage."""
    number, searched = params["number"], {name: value for name, value in params.items() if name != "number"}
    reporter = _Reporter(task.objective)
    try:
        config = TrainConfig.model_validate(task.config.model_dump() | searched)
        if task.settings.worker_range == (1, 1):
            metrics = _train_here(config, task, reporter)
        else:
            metrics = _train_on_workers(config, task, number, reporter)
    except RayFailure:
        raise
    except Exception as error:
        # not raised: Tune would try it again, as it does where a process is lost
        text = f"{type(error).__name__}: {one_line(error)}"
        reporter.report({PLACE: 0, METRIC: math.nan, "error": text, "seconds": reporter.seconds})
        return
    [dev] = metrics["dev"].values()
    scores = {int(dim): score for dim, score in dev.items()}
    quality = task.objective.quality(scores)
    seconds = metrics["training"]["seconds"] - reporter.waited
    place = len(chain_dims(max(scores), config.dims))
    reporter.report({PLACE: place, METRIC: quality, "scores": scores, "seconds": seconds, "finished": True})


def _train_here(config: TrainConfig, task: TrialTask, reporter: _Reporter) -> dict[str, Any]:
    torch.set_num_threads(task.settings.cpus_per_worker)
    node = Node(device=torch.device("cuda" if task.use_gpu else "cpu"))
    return train(task.source.fetch(node), config, reporter, on_stage=reporter.on_stage).metrics


def _train_on_workers(config: TrainConfig, task: TrialTask, number: int, reporter: _Reporter) -> dict[str, Any]:
    quiet_data()
    run_folder = trial_folder(task.study, number)
    run_folder.create()
    with tempfile.TemporaryDirectory() as made:
        history = Path(made) / "history.jsonl"
        trained = fit(
            task.settings, config, task.source, run_folder, reporter, history, (), lambda: None, reporter.on_stage
        )
    remove_checkpoints(run_folder)
    return trained.metrics


def resources_of(settings: ClusterSettings, use_gpu: bool) -> dict[str, float]:
    """What Tune reserves for a trial itself; workers ask for their own."""
    if settings.worker_range != (1, 1):
        return {"cpu": 0.01}
    return {"cpu": float(settings.cpus_per_worker), "gpu": float(use_gpu)}
