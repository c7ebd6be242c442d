"""One start of a study: the trials that are left to run, on Ray Tune, and what is made of them all."""

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from posixpath import dirname
from typing import Any

import pyarrow.fs as pafs
import ray
import ray.tune
from ray import tune
from ray.tune import TuneError

from pipelines.console import say, show, telling
from pipelines.data.source import Source, scan_data
from pipelines.runtime.cluster import connect, unwrap, use_gpus
from pipelines.storage.files import new_file, write_record
from pipelines.storage.lease import Lease
from pipelines.storage.run_folder import RunFolder
from pipelines.storage.study import STATES, SUMMARY_FILE, Objective, Trial, best_trials, read_trials
from pipelines.tracking.about import data_text
from pipelines.tracking.recorder import MlflowRecorder
from pipelines.tune.callback import TuneCallback
from pipelines.tune.confirm import confirm
from pipelines.tune.search import Asha, StudySearch
from pipelines.tune.settings import TuneSettings
from pipelines.tune.tables import best_text, confirmed_table, outcome_text, overhead, trials_table
from pipelines.tune.trial import TrialTask, resources_of, run_trial
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.records import read_record
from smec_core.data.uri import public_uri
from smec_core.errors import DamagedError, InputError, SmecError
from smec_core.evaluation.dev_set import AGREEMENT
from smec_core.temporary import temporary_folder
from smec_core.training.scanned import ScannedData
from smec_core.training.schedule import chain_dims
from smec_core.training.self_taught import is_self_taught
from tune_spaces.space import Space, describe

BEST_FILE = "best.yaml"
RAY_FOLDER = "tune"
CONFIRMED_FILE = "confirmed.json"


@dataclass
class StudyStart:
    """One start of a study, which takes up what earlier starts have left.

    Attributes:
        settings: of the command.
        config: the settings of a trial, before those that are searched.
        dataset: what to learn from.
        scanned: its rows.
        space: what to search.
        objective: what to search for.
        study: the study's run folder.
        out: folder of the results.
        lease: of the study.
    """

    settings: TuneSettings
    config: TrainConfig
    dataset: Dataset
    scanned: ScannedData
    space: Space
    objective: Objective
    study: RunFolder
    out: Path
    lease: Lease

    def __post_init__(self) -> None:
        self.trials = {trial.number: trial for trial in read_trials(self.study)}
        self.defaults = {name: getattr(self.config, name) for name in self.space}
        self.began = time.time()
        self.before = {number for number, trial in self.trials.items() if trial.state != "running"}

    def run(self) -> dict[str, Any]:
        """Searches what is left to search; gives what OUT/summary.json holds.

        Raises:
            SmecError: no trial finished, or the study could not go on.
        """
        scratch = self.study.local_path or self.out
        dims = ", ".join(map(str, self.config.dims))
        recorder = MlflowRecorder.start(
            config=self.settings.model_dump(mode="json"),
            run_folder=self.study,
            scratch=scratch,
            about=f"Study of {', '.join(self.space)} for a SMEC model of {dims} dims. {data_text(self.dataset)}",
            data=self.dataset,
        )
        say(f"study {self.study.name}: {len(self.space)} settings to search; MLflow run {recorder.run_id}")
        try:
            summary = self._search_and_compare(recorder, scratch)
            with temporary_folder() as made:
                for name in (SUMMARY_FILE, BEST_FILE):
                    (made / name).write_bytes((self.out / name).read_bytes())
                recorder.log_files(made)
            recorder.finish(None, outcome=outcome_text(summary))
        except BaseException as error:
            recorder.fail(error, self.lease.lost)
            raise
        return summary

    def _search_and_compare(self, recorder: MlflowRecorder, scratch: Path) -> dict[str, Any]:
        todo = self.settings.trials - len(self.before)
        if self.before:
            say(f"{len(self.before)} trials are done already")
        concurrent = 0
        if todo > 0:
            concurrent = self._concurrent()
            watch = TuneCallback(
                self.study,
                self.trials,
                self.config,
                self._source,
                self._measure,
                self.objective,
                self.lease,
                recorder,
                scratch,
            )
            self._search(todo, concurrent, watch)
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
        _write(self.out / BEST_FILE, best_text(self.settings.method(), best[0], self.study.name, BEST_FILE))
        write_record(pafs.LocalFileSystem(), str(self.out / SUMMARY_FILE), summary)
        show(trials_table(summary))
        if (confirmed := self._confirmed(best[0])) is not None:
            summary["confirmed"] = confirmed
            write_record(pafs.LocalFileSystem(), str(self.out / SUMMARY_FILE), summary)
            show(confirmed_table(confirmed))
        say(f"best settings: {self.out / BEST_FILE}   all figures: {self.out / SUMMARY_FILE}")
        return summary

    def _connect(self) -> None:
        connect(self.settings.worker_range[0] * self.settings.cpus_per_worker)

    @cached_property
    def _use_gpu(self) -> bool:
        self._connect()
        return use_gpus(self.settings, self.settings.worker_range[0])

    @cached_property
    def _source(self) -> Source:
        self._connect()
        return Source.of(self.scanned, self.config)

    @property
    def _measure(self) -> str:
        if is_self_taught(self.dataset, self.config):
            return AGREEMENT
        return "ndcg@10" if self.dataset.train_judgements() is not None else "neighbour_recall@10"

    def _confirmed(self, best: Trial) -> dict[str, Any] | None:
        """The best settings beside the defaults on test: what is known already, or found where that is asked for."""
        key = {"params": best.params, "config": self.settings.method().model_dump(mode="json")}
        kept = self.study.read(CONFIRMED_FILE, {"key", "result"}, "remove it to compare again")
        seeds = self.settings.confirm
        if kept is not None and kept["key"] == key and seeds in (0, kept["result"]["seeds"]):
            result: dict[str, Any] = kept["result"]
            return result
        if not seeds:
            return None
        if best.params == self.defaults:
            say("the defaults are the best: there is nothing to compare them with on test")
            return None
        source = self._source
        if not self.scanned.has_all_rows(self.dataset):
            # test is scored among all documents
            source = Source.of(scan_data(self.dataset, self.config, storage=dirname(self.study.uri)), self.config)
        one_worker = self.settings.cluster().model_copy(update={"workers": "1"})
        resources = resources_of(one_worker, self._use_gpu, source.block_bytes)
        result = confirm(self.dataset, source, self.settings.method(), best.params, seeds, resources)
        self.study.write(CONFIRMED_FILE, {"key": key, "result": result})
        return result

    def _concurrent(self) -> int:
        """How many trials the nodes that are up have room for."""
        workers = self.settings.worker_range[0]
        memory = self._source.block_bytes / workers
        need = {"CPU": self.settings.cpus_per_worker, "GPU": int(self._use_gpu), "memory": memory}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(min(int(node.get(name, 0) // one) for name, one in need.items() if one) for node in nodes)
        if room < workers:
            raise InputError(
                f"workers: a trial needs {_resources_text(need)} on a node for each of its {workers} worker(s); the "
                f"nodes that are up have {'; '.join(map(_resources_text, nodes))}. Start more or larger ones, or let a "
                "trial need less"
            )
        return min(room // workers, self.settings.max_concurrent or room)

    def _search(self, todo: int, concurrent: int, watch: TuneCallback) -> None:
        cluster = self.settings.cluster()
        use_gpu = self._use_gpu and cluster.is_one_process
        task = TrialTask(self.config, self._source, self.objective, self.study, cluster, use_gpu)
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        # the newer output prints tables whatever the verbosity
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        # the study's own folder has all that a restart needs
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
        # interruptions end the study as they end any other command
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
        # a failed trial is reported in one line
        os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
        known = list(self.trials.values())
        scheduler = None
        if not self.objective.with_seconds:
            scheduler = Asha(len(chain_dims(self.dataset.dim, self.config.dims)), known)
            watch.stopped = scheduler.stopped
        say(f"{todo} trials to go, {concurrent} at once")
        watch.begin(todo)
        # of this start alone: one that lost its lease may still be writing to its own
        self._remove_ray_folders()
        folder = f"{RAY_FOLDER}-{uuid.uuid4().hex[:8]}"
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, task=task), resources_of(cluster, use_gpu, self._source.block_bytes)
            ),
            tune_config=tune.TuneConfig(
                search_alg=StudySearch(self.space, self.defaults, known, self.objective, self.config.seed),
                scheduler=scheduler,
                num_samples=todo,
                max_concurrent_trials=concurrent,
                # a process takes seconds to start; of several workers, what they hold is given back when it ends
                reuse_actors=cluster.is_one_process,
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
            with telling("trials under way"):
                tuner.fit()
        except (ray.exceptions.RayError, TuneError) as error:
            # what Tune makes of an error in a callback is a traceback in words
            raise watch.failure or unwrap(error) from error
        finally:
            watch.end()
            self._remove_ray_folders()
        # Tune takes one at a trial's end for the trial's own
        if watch.failure is not None:
            raise watch.failure

    def _remove_ray_folders(self) -> None:
        """Removes what Tune kept in this start or in those that were killed; nothing goes on from there."""
        with suppress(OSError):
            for info in self.study.filesystem.get_file_info(pafs.FileSelector(self.study.path)):
                if info.base_name.startswith(f"{RAY_FOLDER}-"):
                    self.study.filesystem.delete_dir(info.path)

    def _summary(self, best: Sequence[Trial], concurrent: int) -> dict[str, Any]:
        trials = [self.trials[number] for number in sorted(self.trials)]
        new = [trial for trial in trials if trial.number not in self.before and trial.ended is not None]
        first = self.trials.get(1)
        return {
            "study": self.study.name,
            "data": public_uri(self.dataset.uri),
            "objective": self.settings.objective,
            "dims": list(self.config.dims),
            "measure": self._measure,
            "space": describe(self.space),
            "best": [trial.number for trial in best],
            "defaults": first.quality if first and first.state == "finished" else None,
            "states": {state: sum(trial.state == state for trial in trials) for state in STATES},
            "training_seconds": sum(trial.seconds for trial in trials),
            # of the last start that had trials to run
            "last_start": {
                "trials": len(new),
                "seconds": time.time() - self.began,
                "overhead_seconds_per_trial": overhead(new, self.began, concurrent),
            }
            if new
            else self._last_start(),
            "trials": [trial.model_dump(mode="json") for trial in trials],
        }

    def _last_start(self) -> dict[str, Any] | None:
        """What the existing summary says of it."""
        summary: dict[str, Any] = {}
        # one that is damaged is written again
        with suppress(DamagedError):
            summary = read_record(pafs.LocalFileSystem(), str(self.out / SUMMARY_FILE)) or {}
        return summary.get("last_start") if summary.get("study") == self.study.name else None


def _resources_text(resources: Mapping[str, float]) -> str:
    named = [f"{resources[name]:g} {name}s" for name in ("CPU", "GPU") if resources.get(name)]
    return ", ".join([*named, f"{resources.get('memory', 0) / 2**30:.1f} GiB of memory"])


def _write(path: Path, text: str) -> None:
    with new_file(pafs.LocalFileSystem(), str(path)) as sink:
        sink.write(text.encode())
