"""`smec tune`: searches settings of the method on Ray Tune, by dev figures alone."""

import json
import os
import time
from _thread import interrupt_main
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.fs as pafs
import ray
import ray.tune
import yaml
from pydantic import Field, field_validator
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from rich.table import Table

from pipelines.cluster import connect, unwrap
from pipelines.cluster_settings import ClusterSettings
from pipelines.confirm import confirm
from pipelines.console import say, show
from pipelines.fit import use_gpus
from pipelines.lease import Lease
from pipelines.publish import new_file
from pipelines.run_folder import RunFolder
from pipelines.search import METRIC, PLACE, Asha, StudySearch
from pipelines.source import read_once
from pipelines.study import SUMMARY_FILE, TRIAL_FILE, Objective, Step, Trial, best_trials, read_trials, trial_folder
from pipelines.tracking import MlflowRecorder
from pipelines.train import IDENTITY_FILE, TrainSettings, digest
from pipelines.train import run as train_model
from pipelines.trial import TrialTask, resources_of, run_trial
from smec_core.config import TrainConfig
from smec_core.dataset import Dataset
from smec_core.errors import InputError, SmecError
from smec_core.schedule import chain_dims
from smec_core.train import stage_shapes
from smec_core.uri import public_uri
from tune_spaces.space import Space, describe, read_space

BEST_FILE = "best.yaml"
RAY_FOLDER = "tune"
MOST_SHOWN = 10


class TuneSettings(ClusterSettings, TrainConfig):
    """What `smec tune` takes: data, space, budget, and every setting of a training: the defaults of the search."""

    data: str
    """Dataset folder or URI: corpus, queries and qrels in Parquet."""
    space: str
    """Search space: a YAML file, or one of smec, full, quick."""
    out: str
    """Folder for the results: best.yaml, summary.json, and the model with --refit."""
    trials: int = Field(20, ge=1)
    """Trials of the study, those of earlier starts included."""
    hours: float | None = Field(None, gt=0)
    """End after this time, too; trials that run then are taken up by the next start."""
    objective: str = Field("mean", pattern=r"^(mean|\d+)(, *seconds)?$", coerce_numbers_to_str=True)
    """What to search for: mean (the dev score over all dims), one dim, or either with ",seconds" behind it: quality
    against seconds of training, a Pareto front, for which no trial is stopped early."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at once; default: as many as the cluster has CPUs (and GPUs) for."""
    confirm: int = Field(0, ge=0)
    """Seeds with which the best settings and the defaults are trained again, on train + dev, and compared on test."""
    train_best: bool = False
    """Train the best settings on train + dev, into OUT/model (flag --refit)."""

    @field_validator("out")
    @classmethod
    def _is_path(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("must be a path, not a URI; state goes to --storage")
        return value

    def method(self) -> TrainConfig:
        """The settings of a training."""
        return TrainConfig(**{name: getattr(self, name) for name in TrainConfig.model_fields})


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
    if objective.dim is not None and objective.dim not in (*config.dims, dataset.dim):
        raise InputError(f"objective: {objective.dim} is none of the dims {', '.join(map(str, config.dims))}")
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
        if study.read_json(IDENTITY_FILE) is None:
            study.write_json(IDENTITY_FILE, identity)
        if study.read_json(IDENTITY_FILE) != identity:
            raise InputError(
                f"name: {public_uri(study.uri)} holds a study of another space, settings or data; choose another --name"
            )
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
            interrupted = not isinstance(error, Exception)
            if self.lease.lost:
                recorder.abandon()
            else:
                recorder.finish(
                    None, "KILLED" if interrupted else "FAILED", "interrupted" if interrupted else str(error)
                )
            raise
        return summary

    def _search_and_compare(self, recorder: MlflowRecorder, scratch: Path) -> dict[str, Any]:
        todo = self.settings.trials - len(self.before)
        if self.before:
            say(f"{len(self.before)} trials are done already")
        least = self.settings.worker_range[0]
        is_nested = self.settings.worker_range != (1, 1)
        concurrent, source = 0, None
        if todo > 0 or self.settings.confirm:
            connect(least * self.settings.cpus_per_worker, dashboard=is_nested)
            use_gpu = use_gpus(self.settings, least)
            concurrent = self._concurrent(use_gpu)
            source = read_once(self.dataset, self.config)
        if todo > 0 and source is not None:
            task = TrialTask(
                self.config,
                source,
                self.objective,
                self.study,
                self.settings,
                use_gpu and not is_nested,
            )
            self._search(task, todo, concurrent, _Watch(self, recorder, scratch))
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
        _write_best(self.out / BEST_FILE, self.config, best[0], self.study.name)
        if self.settings.confirm and source is not None:
            config = self.settings.method()
            summary["confirmed"] = confirm(
                self.dataset, source, config, best[0].params, self.settings, self.settings.confirm
            )
        with new_file(pafs.LocalFileSystem(), str(self.out / SUMMARY_FILE)) as sink:
            sink.write(json.dumps(summary, indent=1).encode())
        show(_trials_table(summary))
        if summary.get("confirmed"):
            show(_confirmed_table(summary["confirmed"]))
        say(f"best settings: {self.out / BEST_FILE}   all figures: {self.out / SUMMARY_FILE}")
        return summary

    def _concurrent(self, use_gpu: bool) -> int:
        """How many trials the cluster has room for."""
        least, resources = self.settings.worker_range[0], ray.cluster_resources()
        room = int(resources.get("CPU", 0) // (least * self.settings.cpus_per_worker))
        if use_gpu:
            room = min(room, int(resources["GPU"] // least))
        if not room:
            raise InputError(
                f"workers: a trial needs {least * self.settings.cpus_per_worker} CPUs, the cluster has "
                f"{resources.get('CPU', 0):g}"
            )
        return min(room, self.settings.max_concurrent or room)

    def _search(self, task: TrialTask, todo: int, concurrent: int, watch: "_Watch") -> None:
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
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, task=task), resources_of(self.settings, task.use_gpu)),
            tune_config=tune.TuneConfig(
                search_alg=StudySearch(self.space, self.defaults, known, self.objective, self.config.seed),
                scheduler=scheduler,
                num_samples=todo,
                max_concurrent_trials=concurrent,
                time_budget_s=None if self.settings.hours is None else self.settings.hours * 3600,
            ),
            run_config=tune.RunConfig(
                name=RAY_FOLDER,
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
            self.study.filesystem.delete_dir(f"{self.study.path}/{RAY_FOLDER}")

    def _summary(self, best: Sequence[Trial], concurrent: int) -> dict[str, Any]:
        trials = [self.trials[number] for number in sorted(self.trials)]
        new = [trial for trial in trials if trial.number not in self.before and trial.ended is not None]
        return {
            "study": self.study.name,
            "data": public_uri(self.dataset.uri),
            "objective": self.settings.objective,
            "dims": list(self.config.dims),
            "measure": "ndcg@10" if self.dataset.train_judgements() is not None else "neighbour_recall@10",
            "space": describe(self.space),
            "best": [trial.number for trial in best],
            "defaults": trials[0].quality,
            "states": {state: sum(t.state == state for t in trials) for state in ("finished", "stopped", "failed")},
            "seconds": time.time() - self.began,
            "training_seconds": sum(trial.seconds for trial in new),
            "overhead_seconds_per_trial": _overhead(new, self.began, concurrent),
            "trials": [trial.model_dump(mode="json") for trial in trials],
        }


class _Watch(tune.Callback):
    """Writes down what happens to the trials: in the study's folder, in MLflow, and for who watches."""

    def __init__(self, study: _Study, recorder: MlflowRecorder, scratch: Path) -> None:
        self._study, self._recorder, self._scratch = study, recorder, scratch
        self._recorders: dict[int, MlflowRecorder] = {}
        self.stopped: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks, for a restart that is not by Tune here
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        number = trial.config["number"]
        params = {name: value for name, value in trial.config.items() if name != "number"}
        record = Trial(number=number, params=params, began=time.time())
        self._study.trials[number] = record
        folder = trial_folder(self._study.study, number)
        folder.create()
        self._write(record)
        if number not in self._recorders:
            self._recorders[number] = MlflowRecorder.start(
                config=self._study.config.model_copy(update=params).model_dump(mode="json"),
                run_folder=folder,
                scratch=self._scratch,
                tags={"mlflow.parentRunId": self._recorder.run_id, "smec.trial": str(number)},
            )
        say(f"{record.title}: begins")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._study.trials[trial.config["number"]]
        record.seconds = result["seconds"]
        if "error" in result:
            record.error = result["error"]
            return
        step = Step(place=result[PLACE], quality=result[METRIC], scores=result["scores"], seconds=result["seconds"])
        record.steps = [one for one in record.steps if one.place < step.place] + [step]
        recorder = self._recorders[record.number]
        for one in result.pop("records", ()):
            recorder.log(one)
        recorder.log({"step": step.place, "quality": step.quality, "seconds": step.seconds})
        if result.get("finished"):
            recorder.log({"step": 0, **{f"dev/{dim}": score for dim, score in step.scores.items()}})
        else:
            self._write(record)
            say(f"trial {record.number}: {step.quality:.4f} after stage {step.place}, {step.seconds:.0f} s")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        record = self._study.trials[trial.config["number"]]
        if record.error is not None:
            self._close(record, "failed")
        elif (trial.last_result or {}).get("finished"):
            self._close(record, "finished")
        elif record.number in self.stopped:
            self._close(record, "stopped")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        record = self._study.trials[trial.config["number"]]
        error = trial.get_error()
        record.error = str(unwrap(error)) if error is not None else "its process was lost"
        self._close(record, "failed")

    def _close(self, record: Trial, state: Any) -> None:
        record.state, record.ended = state, time.time()
        self._write(record)
        how = f"failed: {record.error}" if record.error else f"{state} at {record.quality:.4f}"
        say(f"trial {record.number}: {how}")
        recorder = self._recorders.pop(record.number)
        recorder.finish(None, "FAILED" if record.error else "FINISHED", record.error)
        if record.quality is not None:
            best = best_trials(list(self._study.trials.values()), self._study.objective)
            figures = {"quality": record.quality} | ({"best_quality": best[0].quality or 0.0} if best else {})
            self._recorder.log({"step": record.number, "seconds": record.seconds, **figures})

    def end(self) -> None:
        """Ends the MLflow runs of trials that have not ended."""
        for recorder in self._recorders.values():
            recorder.finish(None, "KILLED", "interrupted")
        self._recorders.clear()

    def _write(self, record: Trial) -> None:
        trial_folder(self._study.study, record.number).write_json(TRIAL_FILE, record.model_dump(mode="json"))


def _overhead(trials: Sequence[Trial], began: float, concurrent: int) -> float | None:
    """Seconds a trial that places for trials did not train: from the start until each place had no trial any more."""
    if not trials:
        return None
    last = max(trial.began for trial in trials)
    held = concurrent * (last - began) + sum(max(0.0, (trial.ended or last) - last) for trial in trials)
    return (held - sum(trial.seconds for trial in trials)) / len(trials)


def _write_best(path: Path, config: TrainConfig, best: Trial, study: str) -> None:
    defaults = TrainConfig(dims=config.dims)
    chosen = config.model_copy(update=best.params).model_dump(mode="json", exclude={"refit"})
    changed = {key: value for key, value in chosen.items() if value != getattr(defaults, key)}
    settings = {"dims": list(config.dims)} | {key: value for key, value in changed.items() if key != "dims"}
    header = f"# trial {best.number} of {study}: dev {best.quality:.4f}; smec train --config {path.name} --data DATA\n"
    path.write_text(header + yaml.safe_dump(settings, sort_keys=False))


def _best_settings(settings: TuneSettings, out: Path) -> TrainSettings:
    """A training of the best settings on all labels, on the same cluster."""
    method = yaml.safe_load((out / BEST_FILE).read_text())
    cluster = settings.model_dump(include=set(ClusterSettings.model_fields) - {"name"})
    return TrainSettings(**(cluster | method), data=settings.data, out=str(out / "model"))


def _trials_table(summary: dict[str, Any]) -> Table:
    """The best trials and the defaults."""
    trials = sorted(summary["trials"], key=lambda one: (one["state"] != "finished", -_last(one)))
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items() if count)
    names = list(summary["space"])
    table = Table(title=f"dev {summary['measure']}, {summary['objective']}: {states}")
    for name in ["trial", "state", "quality", "seconds", *names]:
        table.add_column(name, justify="right")
    for trial in [one for number, one in enumerate(trials) if number < MOST_SHOWN or one["number"] == 1]:
        values = [Trial.model_validate(trial).value_of(name) for name in names]
        quality = f"{_last(trial):.4f}" if trial["steps"] else ""
        table.add_row(str(trial["number"]), trial["state"], quality, f"{trial['seconds']:.0f}", *values)
    overhead = summary["overhead_seconds_per_trial"]
    if overhead is not None:
        table.caption = f"{summary['seconds']:.0f} s in all, {overhead:.1f} s a trial beside training"
    return table


def _last(trial: dict[str, Any]) -> float:
    return float(trial["steps"][-1]["quality"]) if trial["steps"] else 0.0


def _confirmed_table(confirmed: dict[str, Any]) -> Table:
    table = Table(title=f"nDCG@10 on test, {confirmed['queries']} queries, {confirmed['seeds']} seeds")
    for name in ("dims", "best settings", "defaults", "gain", "95 % interval"):
        table.add_column(name, justify="right")
    for dim, one in confirmed["dims"].items():
        best, defaults = (sum(one[name]) / len(one[name]) for name in ("best", "defaults"))
        low, high = one["interval"]
        table.add_row(dim, f"{best:.4f}", f"{defaults:.4f}", f"{one['gain']:+.4f}", f"{low:+.4f} to {high:+.4f}")
    return table
