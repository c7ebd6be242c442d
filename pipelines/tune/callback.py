"""What happens to the trials of a study, written down: in its folder, in MLflow, and for who watches."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from pipelines.console import Pace, say
from pipelines.data.source import Source
from pipelines.runtime.cluster import release_after
from pipelines.storage.lease import Lease
from pipelines.storage.run_folder import RunFolder
from pipelines.storage.study import (
    METRIC,
    PLACE,
    PLACED_FILE,
    TRIAL_FILE,
    Objective,
    State,
    Step,
    Trial,
    best_trials,
    trial_folder,
)
from pipelines.tracking.recorder import MlflowRecorder
from pipelines.train import remove_checkpoints
from smec_core.config import TrainConfig
from smec_core.errors import LONGEST_REASON, DamagedError, SmecError, one_line
from smec_core.shown import safe_line

RELEASE_SECONDS = 60.0
"""How long the end of a study waits for what its trials still hold."""


def _noted(hook: Callable[..., None]) -> Callable[..., None]:
    """Keeps the first error of any hook, and has the next ones end the study, too: Tune itself may go on."""

    @wraps(hook)
    def noted(watch: "TuneCallback", *args: Any, **info: Any) -> None:
        if watch.failure is not None:
            raise watch.failure
        try:
            hook(watch, *args, **info)
        except Exception as error:
            watch.failure = error
            if isinstance(error, OSError):
                watch.failure = SmecError(f"storage: what a trial reached cannot be written ({one_line(error)})")
            raise watch.failure from error

    return noted


class TuneCallback(tune.Callback):
    """Writes down what happens to the trials: in the study's folder, in MLflow, and for who watches."""

    def __init__(
        self,
        study: RunFolder,
        trials: dict[int, Trial],
        config: TrainConfig,
        source: Source,
        measure: str,
        objective: Objective,
        lease: Lease,
        recorder: MlflowRecorder,
        scratch: Path,
    ) -> None:
        """Prepares it.

        Args:
            study: the study's run folder.
            trials: all trials by number; kept up to date.
            config: the settings of a trial, before those that are searched.
            source: what a trial learns from.
            measure: name of the dev score.
            objective: what trials are compared by.
            lease: of the study; where it is lost, nothing more is written.
            recorder: of the study's own run in MLflow.
            scratch: local folder for what MLflow cannot take.
        """
        self._study, self._trials, self._config, self._objective = study, trials, config, objective
        self._source, self._measure = source, measure
        self._lease, self._recorder, self._scratch = lease, recorder, scratch
        self._recorders: dict[int, MlflowRecorder] = {}
        self._placed: dict[int, tuple[Any, str]] = {}
        self._releases: list[threading.Thread] = []
        self.begin(0)
        self.failure: Exception | None = None
        """The first error met here."""
        self.stopped: set[int] = set()
        """Numbers of the trials that the scheduler has stopped; it adds to them."""

    def begin(self, todo: int) -> None:
        """Takes how many trials are to be run now."""
        self._left, self._pace = todo, Pace()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks, for a restart that is not by Tune here
        return {}

    @_noted
    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Opens its record and its run in MLflow."""
        number = trial.config["number"]
        params = {name: value for name, value in trial.config.items() if name != "number"}
        record = Trial(number=number, params=params, began=time.time())
        self._trials[number] = record
        folder = trial_folder(self._study, number)
        folder.create()
        # one that Tune tries again, or that was killed with an earlier driver
        self._release(number)
        self._write(record)
        if number not in self._recorders:
            config = self._config.model_copy(update=params)
            self._recorders[number] = MlflowRecorder.start(
                config=config.model_dump(mode="json") | self._source.used(config),
                run_folder=folder,
                scratch=self._scratch,
                tags={"smec.trial": str(number)},
                parent=self._recorder,
                about=f"{record.title[0].upper()}{record.title[1:]}, of study {self._study.name}.",
            )
        say(f"{record.title}: begins")

    @_noted
    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Writes down what it reached."""
        record = self._trials[trial.config["number"]]
        if "placed" in result:
            self._placed[record.number] = result["placed"]
        record.seconds = max(record.seconds, result["seconds"])
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
            # a step that is not above the one before would be taken for one that is known
            for dim, score in sorted(step.scores.items()):
                recorder.log({"step": dim, f"quality/dev/{self._measure}": score})
        else:
            self._write(record)
            say(f"trial {record.number}: {step.quality:.4f} after stage {step.place}, {step.seconds:.0f} s")

    @_noted
    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Closes it as finished, stopped or failed; one that was only cut off stays open."""
        record = self._trials[trial.config["number"]]
        if record.error is not None:
            self._close(record, "failed")
        elif (trial.last_result or {}).get("finished"):
            self._close(record, "finished")
        elif record.number in self.stopped:
            self._close(record, "stopped")

    @_noted
    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Closes it as failed."""
        number = trial.config["number"]
        if number not in self._recorders:
            # its process did not even start
            self.on_trial_start(iteration, trials, trial)
        record = self._trials[number]
        record.error = _cause(trial)
        self._close(record, "failed")

    def _close(self, record: Trial, state: State) -> None:
        self._lease.check()
        # before the record: a kill in between has the trial run again, in the same run of MLflow
        how = f"failed: {record.error}" if record.error else f"{state} at {record.quality:.4f}"
        status: Literal["FAILED", "FINISHED"] = "FAILED" if record.error else "FINISHED"
        self._recorders.pop(record.number).finish(None, status, record.error, f"{how.capitalize()} on dev.")
        record.state, record.ended = state, time.time()
        self._write(record)
        self._left = max(self._left - 1, 0)
        say(f"trial {record.number}: {how}; {self._pace.done(self._left)}")
        remove_checkpoints(trial_folder(self._study, record.number))
        self._release(record.number)
        if record.quality is not None:
            best = best_trials(list(self._trials.values()), self._objective)
            figures = {"quality": record.quality} | ({"best_quality": best[0].quality or 0.0} if best else {})
            ended = sum(trial.state != "running" for trial in self._trials.values())
            self._recorder.log({"step": ended, "trial": record.number, "seconds": record.seconds, **figures})

    def _release(self, number: int) -> None:
        """Gives back, some seconds from now, what a trial with workers of its own has left."""
        folder = trial_folder(self._study, number)
        actor, group = self._placed.pop(number, (None, None))
        if group is None:
            # one that cannot be read names no group; Ray frees it when the cluster's job ends
            with suppress(DamagedError):
                group = (folder.read(PLACED_FILE) or {}).get("group")
        if group is None:
            return
        is_closed = self._trials[number].state != "running"

        def release() -> None:
            release_after(actor, group)
            if is_closed:
                # its workers may have been storing one when it was stopped
                remove_checkpoints(folder)

        self._releases.append(threading.Thread(target=release, name="release", daemon=True))
        self._releases[-1].start()

    def end(self) -> None:
        """Ends the MLflow runs of trials that have not ended, and has all trials give back what they hold."""
        for number in self._recorders:
            self._release(number)
        until = time.monotonic() + RELEASE_SECONDS
        for thread in self._releases:
            thread.join(max(0.0, until - time.monotonic()))
        for recorder in self._recorders.values():
            if self._lease.lost:
                recorder.abandon()
            else:
                recorder.finish(None, "KILLED", "interrupted")
        self._recorders.clear()

    def _write(self, record: Trial) -> None:
        self._lease.check()
        trial_folder(self._study, record.number).write(TRIAL_FILE, record.model_dump(mode="json"))


def _cause(trial: TuneTrial) -> str:
    """Why a trial's process failed, in a line, from what Tune noted on this machine."""
    file = Path(trial.error_file) if trial.error_file else None
    text = file.read_text() if file is not None and file.exists() else ""
    lines = [line.strip() for line in text.split("Failure # ")[-1].splitlines()[1:] if line.strip()]
    if not lines:
        return "its process was lost"
    # of a traceback the last line says what; of a lost process the first
    return safe_line(lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0], LONGEST_REASON)
