"""A training's run in MLflow.

Only the driver imports this module. It works through a client, without an active run and without setting MLflow's
global tracking URI, so nothing of it reaches Ray workers. The training comes first: whatever fails in MLflow is said
once and recorded elsewhere, and neither raises nor holds the training up.
"""

import platform
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, Self
from uuid import uuid4

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

import smec_core
from pipelines import signals
from pipelines.console import warn
from pipelines.runtime.preflight import check_store
from pipelines.storage.run_folder import RunFolder
from pipelines.tracking.about import dataset_inputs, reached_text, source_tags
from pipelines.tracking.files import MOST_METRICS, log_figures, log_files, log_model, metric
from pipelines.tracking.machine import PREFIX, MachineFigures, is_wanted
from pipelines.tracking.server import EXPERIMENT, experiment_of, kept_run, prepare_mlflow, run_of
from smec_core.data.dataset import Dataset
from smec_core.data.uri import public_uri
from smec_core.errors import first_line, one_line
from smec_core.masking import mask
from smec_core.shown import markdown, safe_line, safe_lines
from smec_core.training.tracker import Record

FLUSH_SECONDS = 2.0
STATE_FILE = "mlflow_run.json"
OFFLINE_FOLDER = "mlflow-offline"
# MLflow's limits for one request and one value
MOST_PARAMS, LONGEST_PARAM, LONGEST_TAG = 100, 6000, 5000
NOTE, ERROR_TAG = "mlflow.note.content", "smec.error"


@dataclass
class _OpenRun:
    client: MlflowClient
    run_id: str
    last_step: dict[str, int]
    """Last step by metric name, so that steps trained again after a restart are not logged again."""
    failed: str = ""
    """Why the store was given up."""


class MlflowRecorder:
    """Records one training as one MLflow run; a `smec_core.training.tracker.Tracker`.

    A restarted training goes on in the run whose id is kept in the run's folder, on whatever machine. When the tracking
    server fails, at any time, what it misses from then on goes to a second MLflow store, `scratch`/mlflow-offline.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        run_folder: RunFolder,
        scratch: Path,
        experiment: str,
        tags: Mapping[str, str],
        about: str,
        data: Dataset | None,
    ) -> None:
        self._config, self._run_folder, self._experiment = config, run_folder, experiment
        self._about, self._inputs = about, [] if data is None else dataset_inputs(data)
        self._tags = source_tags() | {
            NOTE: about,
            "smec.version": smec_core.__version__,
            "smec.python": platform.python_version(),
        }
        self._tags |= {f"smec.{package}": version(package) for package in ("mlflow", "ray", "torch")}
        if data is not None:
            self._tags |= {"smec.data": public_uri(data.uri), "smec.data_fingerprint": data.fingerprint}
        self._tags |= tags
        self._offline_folder = scratch / OFFLINE_FOLDER
        self._offline = f"sqlite:///{self._offline_folder / 'mlflow.db'}"
        self._server = mlflow.get_tracking_uri()
        self._stores = [self._server, self._offline]
        self._run: _OpenRun | None = None
        self._left: list[_OpenRun] = []
        # whoever trains sends files while the thread sends figures
        self._sending = threading.Lock()
        self._waiting: deque[tuple[int, Record]] = deque()
        self._has_machine = "mlflow.parentRunId" not in tags and is_wanted()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._flush_until_stopped, name="mlflow", daemon=True)

    @classmethod
    def start(
        cls,
        config: Mapping[str, Any],
        run_folder: RunFolder,
        scratch: Path,
        experiment: str = EXPERIMENT,
        tags: Mapping[str, str] | None = None,
        parent: "MlflowRecorder | None" = None,
        about: str = "",
        data: Dataset | None = None,
    ) -> Self:
        """Opens the training's run, and a thread that sends it what `log` takes.

        Args:
            config: flat settings, logged as params; what is None is not.
            run_folder: the training's folder; gives the run its name and holds its id.
            scratch: local folder; holds the offline store when there is one.
            experiment: MLflow experiment, made where it is missing; the environment's MLFLOW_EXPERIMENT_NAME and
                MLFLOW_EXPERIMENT_ID win.
            tags: more tags for the run.
            parent: the recorder of the run that this one is a part of; stores that it has given up are not tried again.
            about: what the run is, in a sentence or two; its description begins with it.
            data: the dataset that it learns from and is evaluated on.
        """
        prepare_mlflow()
        parent_tag = {"mlflow.parentRunId": parent.run_id} if parent else {}
        recorder = cls(config, run_folder, scratch.absolute(), experiment, {**(tags or {}), **parent_tag}, about, data)
        if parent is not None:
            recorder._stores = list(parent._stores)
        recorder._send(lambda run: None)
        recorder._thread.start()
        return recorder

    @property
    def uri(self) -> str:
        """The store that is written to now, credentials masked; empty when none can be."""
        return mask(self._stores[0]) if self._stores else ""

    @property
    def run_id(self) -> str:
        """Id of the run in that store; empty when none can be written."""
        return self._run.run_id if self._run else ""

    def log(self, record: Record) -> None:
        """Takes one record of history.jsonl; another thread sends it within seconds."""
        self._waiting.append((int(time.time() * 1000), record))

    def finish(
        self,
        model_folder: str | Path | None,
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED",
        error: str | None = None,
        outcome: str = "",
    ) -> None:
        """Sends what is left, the final figures, the files and the model, and ends the run.

        A run that a store could not take whole is FAILED there, and says so.

        Args:
            model_folder: the stored model; None when there is none.
            status: how the training ended.
            error: why it failed.
            outcome: what it reached, for the description; of a model, that is what metrics.json holds.

        Raises:
            InputError: the model cannot be read; nothing was said of the run's end.
        """
        model = None if model_folder is None else smec_core.load(model_folder)
        self._stop.set()
        self._thread.join()
        self._flush()
        if error is not None:
            text = safe_line(error, LONGEST_TAG)
            self._send(lambda run: run.client.set_tag(run.run_id, ERROR_TAG, text))
            outcome = f"{'Failed' if status == 'FAILED' else 'Ended'}: {markdown(error)}"
        if model is not None:
            folder = Path(str(model_folder)).absolute()
            outcome = reached_text(model.metrics)
            for log in (log_figures, log_files):
                self._send(lambda run, log=log: log(run.client, run.run_id, folder))  # type: ignore[misc]
            self._send(lambda run: log_model(run.client, run.run_id, folder, model))
        self._tags[NOTE] = "\n\n".join(filter(None, (self._about, outcome)))
        self._send(lambda run: run.client.set_tag(run.run_id, NOTE, _tag(self._tags[NOTE])))
        self._send(lambda run: run.client.set_terminated(run.run_id, status))
        for left in self._left:
            # often only the artifact store fails: the run must look neither still running nor complete
            with suppress(Exception):
                if status == "FINISHED":
                    left.client.set_tag(left.run_id, ERROR_TAG, f"incomplete: {left.failed}"[:LONGEST_TAG])
                left.client.set_terminated(left.run_id, "FAILED" if status == "FINISHED" else status)

    def log_files(self, folder: Path) -> None:
        """Sends the files of a folder."""
        self._send(lambda run: run.client.log_artifacts(run.run_id, str(folder)))

    def fail(self, error: BaseException, lost: bool) -> None:
        """Ends the run as failed or killed; leaves it alone where another process goes on in it (`lost`)."""
        if lost:
            self.abandon()
        elif isinstance(error, Exception) and not signals.came():
            self.finish(None, "FAILED", str(error))
        else:
            self.finish(None, "KILLED", str(error) or "interrupted")

    def abandon(self) -> None:
        """Stops without another word to MLflow: another process goes on in the run."""
        self._waiting.clear()
        self._stop.set()
        self._thread.join()

    def _flush_until_stopped(self) -> None:
        machine = None
        while not self._stop.wait(FLUSH_SECONDS):
            self._flush()
            if self._has_machine:
                try:
                    machine = machine or MachineFigures()
                    if figures := machine.sample():
                        self._send(lambda run, figures=figures: _log_machine(run, figures))  # type: ignore[misc]
                except Exception as error:
                    self._has_machine = False
                    warn(f"MLflow gets no figures of this machine: {one_line(error)}")

    def _flush(self) -> None:
        metrics: list[Metric] = []
        for _ in range(len(self._waiting)):
            metrics += _metrics_of(*self._waiting.popleft())
        for start in range(0, len(metrics), MOST_METRICS):
            part = metrics[start : start + MOST_METRICS]
            self._send(lambda run, part=part: _log_new(run, part))  # type: ignore[misc]

    def _send(self, action: Callable[[_OpenRun], object]) -> None:
        """Does `action` on the run; if that fails, on the next store's run, which takes everything from then on."""
        with self._sending:
            while self._stores:
                try:
                    if self._run is None:
                        self._run = self._open(self._stores[0])
                    action(self._run)
                    return
                except Exception as error:
                    self._give_up_store(error)

    def _give_up_store(self, error: Exception) -> None:
        failed, run, self._run = self._stores.pop(0), self._run, None
        reason = re.sub(r"^API request to \S+ failed with (timeout )?exception ", "", first_line(error))
        why = reason.split("Caused by ")[-1]
        if self._stores:
            then = f"Training goes on; what MLflow misses from here is recorded in {self._offline_folder}"
            then += f" (see it with: mlflow ui --backend-store-uri {self._offline})."
        else:
            then = "Training goes on without MLflow; the model folder has all figures."
        why = shorten(safe_line(why), 300, placeholder=" ...")
        if run is not None:
            run.failed = f"{why}. {then}"
            self._left.append(run)
        warn(f"MLflow at {mask(failed)} fails: {why}. {then}")

    def _open(self, store: str) -> _OpenRun:
        """The run of this training that a store holds already, or a new one."""
        state = self._run_folder.read(STATE_FILE) or {}
        key, artifacts, tags = "run_id", None, dict(self._tags)
        if store == self._offline:
            key, artifacts = "offline_run_id", (self._offline_folder / "artifacts").as_uri()
            tags["smec.continues"] = f"run {state.get('run_id', '(none)')} at {self._server}"
            self._offline_folder.mkdir(parents=True, exist_ok=True)
        check_store(store)
        client = MlflowClient(store)
        run = kept_run(client, state.get(key))
        if run is None:
            experiment_id = experiment_of(client, self._experiment, artifacts).experiment_id
            if "training" not in state:
                # first: a kill after the run is made and before its id is written leaves a run that can be found
                state["training"] = uuid4().hex
                self._run_folder.write(STATE_FILE, state)
            made = {k: _tag(v) for k, v in tags.items()}
            run = run_of(client, experiment_id, state["training"], self._run_folder.name, made)
            self._run_folder.write(STATE_FILE, {**state, key: run.info.run_id})
        else:
            client.update_run(run.info.run_id, status="RUNNING")
            if ERROR_TAG in run.data.tags:
                client.delete_tag(run.info.run_id, ERROR_TAG)
            client.log_batch(run.info.run_id, tags=[RunTag(k, _tag(v)) for k, v in tags.items()])
        # A param cannot change, so a restart adds only those that a kill kept from being logged.
        params = [
            # a long one is cut at its end
            Param(k, safe_line(str(v), 2 * LONGEST_PARAM)[:LONGEST_PARAM])
            for k, v in self._config.items()
            if v is not None and k not in run.data.params
        ]
        for start in range(0, len(params), MOST_PARAMS):
            client.log_batch(run.info.run_id, params=params[start : start + MOST_PARAMS])
        if self._inputs:
            client.log_inputs(run.info.run_id, self._inputs)
        last_step = {latest.key: latest.step for latest in run.data.to_proto().metrics}
        return _OpenRun(client, run.info.run_id, last_step)


def _tag(text: str) -> str:
    """A tag as MLflow takes it; descriptions have several lines."""
    return "\n".join(safe_lines(text))[:LONGEST_TAG]


def _metrics_of(timestamp: int, record: Record) -> list[Metric]:
    """A record's figures, named by where they were reached: stages/first/384/linear/loss."""
    places = [f"{record[key]}/" for key in ("pass", "stage", "projection") if key in record]
    place = "".join(["stages/", *places] if places else [])
    return [
        metric(f"{place}{name}", value, int(record["step"]), timestamp)
        for name, value in record.items()
        if not isinstance(value, str) and name not in ("stage", "epoch", "step")
    ]


def _log_machine(run: _OpenRun, figures: Mapping[str, float]) -> None:
    """Logs figures of the machine as the step after the last one that the run has of them."""
    step = 1 + max((step for name, step in run.last_step.items() if name.startswith(PREFIX)), default=-1)
    _log_new(run, [metric(name, value, step) for name, value in figures.items()])


def _log_new(run: _OpenRun, metrics: list[Metric]) -> None:
    new = []
    for candidate in metrics:
        if candidate.step > run.last_step.get(candidate.key, -1):
            run.last_step[candidate.key] = candidate.step
            new.append(candidate)
    if new:
        run.client.log_batch(run.run_id, metrics=new)
