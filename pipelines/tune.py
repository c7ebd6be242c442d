"""`smec tune`: searches settings of the method on Ray Tune, by dev figures alone."""

import json
import os
import re
import time
import uuid
from _thread import interrupt_main
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.fs as pafs
import ray
import ray.tune
import yaml
from pydantic import Field, field_validator
from ray import tune

from pipelines.cluster import connect, unwrap
from pipelines.cluster_settings import ClusterSettings, JobSettings
from pipelines.confirm import confirm
from pipelines.console import say, show
from pipelines.fit import use_gpus
from pipelines.lease import Lease
from pipelines.publish import new_file
from pipelines.run_folder import RunFolder
from pipelines.search import Asha, StudySearch
from pipelines.source import Source, read_once
from pipelines.study import (
    STATES,
    SUMMARY_FILE,
    Objective,
    Trial,
    best_trials,
    read_trials,
)
from pipelines.study_tables import confirmed_table, trials_table
from pipelines.tracking import MlflowRecorder
from pipelines.train import TrainSettings, digest
from pipelines.train import run as train_model
from pipelines.trial import TrialTask, resources_of, run_trial
from pipelines.watch import Watch
from smec_core.config import TrainConfig
from smec_core.dataset import Dataset
from smec_core.errors import InputError, SmecError
from smec_core.schedule import chain_dims, prefix_dims
from smec_core.train import stage_shapes
from smec_core.uri import public_uri
from tune_spaces.space import Space, describe, read_space

BEST_FILE = "best.yaml"
RAY_FOLDER = "tune"
CONFIRMED_FILE = "confirmed.json"


class TuneSettings(JobSettings):
    """What `smec tune` takes: data, space, budget, and every setting of a training: the defaults of the search."""

    space: str
    """Search space: a YAML file, or one of smec, full, quick."""
    out: str
    """Folder for the results: best.yaml, summary.json, and the model with --refit."""
    trials: int = Field(20, ge=1)
    """Trials of the study, those of earlier starts included."""
    hours: float | None = Field(None, gt=0)
    """End after this time, too; trials that run then are taken up by the next start."""
    objective: str = Field("mean", coerce_numbers_to_str=True)
    """What to search for: mean (the dev score over all dims), one dim, or either with ",seconds" behind it: quality
    against seconds of training, a Pareto front, for which no trial is stopped early."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at once; default: as many as the cluster has CPUs, GPUs and memory for."""
    confirm: int = Field(0, ge=0)
    """Seeds with which the best settings and the defaults are trained again, on train + dev, and compared on test."""
    train_best: bool = False
    """Train the best settings on train + dev, into OUT/model (flag --refit)."""

    @field_validator("workers")
    @classmethod
    def _is_number(cls, workers: str) -> str:
        if ":" in workers:
            raise ValueError("must be one number: a trial whose workers come and go cannot be compared")
        return workers

    @field_validator("objective")
    @classmethod
    def _is_objective(cls, objective: str) -> str:
        if not re.fullmatch(r"(mean|\d+)(, *seconds)?", objective):
            raise ValueError('must be mean, a dim, or either with ",seconds" behind it')
        return objective


def run(settings: TuneSettings) -> dict[str, Any]:
    """Runs a study, or goes on with it.

    Returns:
        What OUT/summary.json holds.

    Raises:
        InputError: bad settings, space or data.
        LeaseError: another process runs this study.
        SmecError: no trial finished.
    """
    dataset = Dataset.open(settings.data)
    labelled = dataset.train_judgements() is not None
    # dev figures are those of the first pass
    config = settings.method().resolved(labelled).model_copy(update={"refit": False})
    space = read_space(settings.space, config)
    if not config.guard:
        raise InputError("guard: trials are compared on dev, which guard=false switches off")
    stage_shapes(dataset.dim, config, labelled, ())
    objective = Objective.parse(settings.objective, config.dims)
    prefixes = prefix_dims(dataset.dim, config.dims)
    if objective.dim is not None and objective.dim not in prefixes:
        raise InputError(f"objective: {objective.dim} is none of the dims {', '.join(map(str, prefixes))}")
    identity = {
        "tune": config.model_dump(mode="json"),
        "space": describe(space),
        "objective": objective.model_dump(mode="json"),
        "data": dataset.fingerprint,
    }
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    name = settings.name or f"study-{digest(identity)}"
    study = RunFolder(settings.storage or str(out.absolute() / ".smec-study"), name)
    study.create()
    with Lease(study, on_lost=interrupt_main) as lease:
        study.claim(identity)
        summary = _Study(settings, config, dataset, space, objective, study, out, lease).run()
    if settings.train_best:
        train_model(_best_settings(settings, out))
    return summary


class _Study:
    """One start of a study."""

    def __init__(
        self,
        settings: TuneSettings,
        config: TrainConfig,
        dataset: Dataset,
        space: Space,
        objective: Objective,
        study: RunFolder,
        out: Path,
        lease: Lease,
    ) -> None:
        self.settings, self.config, self.dataset, self.space = settings, config, dataset, space
        self.objective, self.study, self.out, self.lease = objective, study, out, lease
        self.trials = {trial.number: trial for trial in read_trials(study)}
        self.defaults = {name: getattr(config, name) for name in space}
        self.began = time.time()
        self.before = {number for number, trial in self.trials.items() if trial.state != "running"}

    def run(self) -> dict[str, Any]:
        scratch = self.study.local_path or self.out
        recorder = MlflowRecorder.start(
            config=self.settings.model_dump(mode="json"),
            run_folder=self.study,
            scratch=scratch,
            tags={"smec.data": public_uri(self.dataset.uri), "smec.data_fingerprint": self.dataset.fingerprint},
        )
        say(f"study {self.study.name}: {len(self.space)} settings to search; MLflow run {recorder.run_id}")
        try:
            summary = self._search_and_compare(recorder, scratch)
            with TemporaryDirectory() as made:
                for name in (SUMMARY_FILE, BEST_FILE):
                    (Path(made) / name).write_bytes((self.out / name).read_bytes())
                recorder.log_files(Path(made))
            recorder.finish(None)
        except BaseException as error:
            recorder.fail(error, self.lease.lost)
            raise
        return summary

    def _search_and_compare(self, recorder: MlflowRecorder, scratch: Path) -> dict[str, Any]:
        todo = self.settings.trials - len(self.before)
        if self.before:
            say(f"{len(self.before)} trials are done already")
        key = {"seeds": self.settings.confirm, "trials": self.settings.trials}
        confirmed = self.study.read_json(CONFIRMED_FILE)
        confirmed = confirmed["result"] if confirmed and confirmed["key"] == key else None
        concurrent, source, use_gpu = 0, None, False
        if todo > 0 or (self.settings.confirm and confirmed is None):
            connect(self.settings.worker_range[0] * self.settings.cpus_per_worker)
            use_gpu = use_gpus(self.settings, self.settings.worker_range[0])
            concurrent = self._concurrent(use_gpu)
            source = read_once(self.dataset, self.config)
        if todo > 0 and source is not None:
            cluster = _cluster_settings(self.settings)
            task = TrialTask(
                self.config, source, self.objective, self.study, cluster, use_gpu and cluster.is_one_process
            )
            self._search(
                task,
                todo,
                concurrent,
                Watch(self.study, self.trials, self.config, self.objective, self.lease, recorder, scratch),
            )
            self.lease.check()
        best = best_trials(list(self.trials.values()), self.objective)
        if not best:
            failed = next((trial for trial in self.trials.values() if trial.error), None)
            raise SmecError(
                f"no trial finished; {failed.title} failed: {failed.error}"
                if failed
                else "no trial finished in time; start again to go on, or give more hours"
            )
        summary = self._summary(best, concurrent)
        _write(self.out / BEST_FILE, _best_text(self.settings.method(), best[0], self.study.name))
        _write(self.out / SUMMARY_FILE, json.dumps(summary, indent=1))
        show(trials_table(summary))
        if confirmed is None and source is not None and self.settings.confirm:
            confirmed = self._confirm(source, best[0], use_gpu)
            self.study.write_json(CONFIRMED_FILE, {"key": key, "result": confirmed})
        if confirmed is not None:
            summary["confirmed"] = confirmed
            _write(self.out / SUMMARY_FILE, json.dumps(summary, indent=1))
            show(confirmed_table(confirmed))
        say(f"best settings: {self.out / BEST_FILE}   all figures: {self.out / SUMMARY_FILE}")
        return summary

    def _confirm(self, source: Source, best: Trial, use_gpu: bool) -> dict[str, Any] | None:
        if best.params == self.defaults:
            say("the defaults are the best: there is nothing to compare them with on test")
            return None
        seeds, resources = self.settings.confirm, resources_of(self._one_worker(), use_gpu, self.memory)
        return confirm(self.dataset, source, self.settings.method(), best.params, seeds, resources)

    def _one_worker(self) -> ClusterSettings:
        return _cluster_settings(self.settings).model_copy(update={"workers": "1"})

    @property
    def memory(self) -> int:
        """Bytes that a training needs beside the vectors that it shares: the blocks that its stages keep, and dev."""
        rows = self.dataset.corpus.rows + self.dataset.queries.rows
        dev_rows = min(self.dataset.corpus.rows, self.config.dev_corpus)
        return int((1.5 * rows + dev_rows) * self.dataset.dim * 4)

    def _concurrent(self, use_gpu: bool) -> int:
        """How many trials the cluster has room for."""
        workers, resources = self.settings.worker_range[0], ray.cluster_resources()
        needs = {"CPU": workers * self.settings.cpus_per_worker, "GPU": workers * use_gpu, "memory": self.memory}
        rooms = {name: int(resources.get(name, 0) // need) for name, need in needs.items() if need}
        for name, room in rooms.items():
            if not room:
                unit, scale = ("GiB memory", 2**30) if name == "memory" else (f"{name}s", 1)
                raise InputError(
                    f"workers: a trial needs {needs[name] / scale:g} {unit}, the cluster has "
                    f"{resources.get(name, 0) / scale:g}; take a larger one, or let a trial need less"
                )
        return min(*rooms.values(), self.settings.max_concurrent or min(rooms.values()))

    def _search(self, task: TrialTask, todo: int, concurrent: int, watch: Watch) -> None:
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        # the newer output prints tables whatever the verbosity
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        # the study's own folder has all that a restart needs
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
        # interruptions end the study as they end any other command
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
        known = list(self.trials.values())
        scheduler = None
        if not self.objective.with_seconds:
            scheduler = Asha(len(chain_dims(self.dataset.dim, self.config.dims)), known)
            watch.stopped = scheduler.stopped
        say(f"{todo} trials to go, {concurrent} at once")
        # of this start alone: one that lost its lease may still be writing to its own
        folder = f"{RAY_FOLDER}-{uuid.uuid4().hex[:8]}"
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, task=task), resources_of(task.settings, task.use_gpu, self.memory)
            ),
            tune_config=tune.TuneConfig(
                search_alg=StudySearch(self.space, self.defaults, known, self.objective, self.config.seed),
                scheduler=scheduler,
                num_samples=todo,
                max_concurrent_trials=concurrent,
                time_budget_s=None if self.settings.hours is None else self.settings.hours * 3600,
            ),
            run_config=tune.RunConfig(
                name=folder,
                storage_path=self.study.path,
                storage_filesystem=self.study.filesystem,
                failure_config=tune.FailureConfig(max_failures=self.settings.max_failures),
                callbacks=[watch],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except ray.exceptions.RayError as error:
            raise unwrap(error) from error
        finally:
            watch.end()
            with suppress(OSError):
                self.study.filesystem.delete_dir(f"{self.study.path}/{folder}")

    def _summary(self, best: Sequence[Trial], concurrent: int) -> dict[str, Any]:
        trials = [self.trials[number] for number in sorted(self.trials)]
        new = [trial for trial in trials if trial.number not in self.before and trial.ended is not None]
        first = self.trials.get(1)
        return {
            "study": self.study.name,
            "data": public_uri(self.dataset.uri),
            "objective": self.settings.objective,
            "dims": list(self.config.dims),
            "measure": "ndcg@10" if self.dataset.train_judgements() is not None else "neighbour_recall@10",
            "space": describe(self.space),
            "best": [trial.number for trial in best],
            "defaults": first.quality if first and first.state == "finished" else None,
            "states": {state: sum(trial.state == state for trial in trials) for state in STATES},
            "training_seconds": sum(trial.seconds for trial in trials),
            # of the last start that had trials to run
            "last_start": {
                "trials": len(new),
                "seconds": time.time() - self.began,
                "overhead_seconds_per_trial": _overhead(new, self.began, concurrent),
            }
            if new
            else self._last_start(),
            "trials": [trial.model_dump(mode="json") for trial in trials],
        }

    def _last_start(self) -> dict[str, Any] | None:
        """What is known of it from the summary that is there."""
        file = self.out / SUMMARY_FILE
        summary = json.loads(file.read_text()) if file.exists() else {}
        return summary.get("last_start") if summary.get("study") == self.study.name else None


def _cluster_settings(settings: TuneSettings) -> ClusterSettings:
    """Those of its settings that a training takes; also, trials need not import this module for them."""
    return ClusterSettings(**settings.model_dump(include=set(ClusterSettings.model_fields)))


def _overhead(trials: Sequence[Trial], began: float, concurrent: int) -> float | None:
    """Seconds a trial that places for trials did not train: from the start until each place had no trial any more."""
    if not trials:
        return None
    places, last = min(concurrent, len(trials)), max(trial.began for trial in trials)
    held = places * (last - began) + sum(max(0.0, (trial.ended or last) - last) for trial in trials)
    return (held - sum(trial.seconds for trial in trials)) / len(trials)


def _best_text(config: TrainConfig, best: Trial, study: str) -> str:
    """best.yaml: what differs from the defaults of a training, and what was searched."""
    defaults = TrainConfig(dims=config.dims)
    settings: dict[str, Any] = {"dims": list(config.dims)}
    for name, value in config.model_copy(update=best.params).model_dump(mode="json", exclude={"dims"}).items():
        if name in best.params or value != getattr(defaults, name):
            settings[name] = value
    header = (
        f"# trial {best.number} of {study}, dev {best.quality:.4f}: "
        f"smec train --data DATA --config {BEST_FILE} --out MODEL\n"
    )
    return header + yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)


def _write(path: Path, text: str) -> None:
    with new_file(pafs.LocalFileSystem(), str(path)) as sink:
        sink.write(text.encode())


def _best_settings(settings: TuneSettings, out: Path) -> TrainSettings:
    """A training of the best settings on all labels, on the same cluster."""
    method = yaml.safe_load((out / BEST_FILE).read_text())
    cluster = _cluster_settings(settings).model_dump(exclude={"name"})
    return TrainSettings(**(cluster | method), data=settings.data, out=str(out / "model"))
