"""What Ray exports to Prometheus about trainings and retrains, each name with `ray_` before it.

Trainings, from their first worker: `run` is the name of the run.

    smec_train_step{run}                                steps done
    smec_train_idle_seconds{run}                        since the last figure, of a step or of an epoch
    smec_train_rows_per_second{run}                     of the last seconds, as the following two
    smec_train_step_seconds{run,part}                   seconds a step by part: data, search, compute
    smec_train_memory_fill{run}                         share of the slots of S-XBM that hold a document
    smec_train_loss{run,pass,stage,projection}          the latest
    smec_train_dev_score{run,pass,stage,projection}     what the guard goes by
    smec_train_dev_ndcg_at_10{...}                      of the stage's dim
    smec_train_dev_neighbour_recall_at_10{...}          the same where documents teach
    smec_train_dev_agreement_at_10{...}                 the same where the full vectors teach

Retrains, from an actor that outlives them: smec_retrain_<figure>{name}, see `RETRAIN_FIGURES`.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.metrics import Gauge

from pipelines.console import warn
from pipelines.runtime.cluster import unwrap
from smec_core.training.tracker import Record

EXPORT_SECONDS = 2.0
REPORT_SECONDS = 30.0
NAMESPACE, ACTOR = "smec", "smec-retrain-figures"
PLACE = ("pass", "stage", "projection")
TRAIN_GAUGES = {
    "smec_train_step": "Steps done.",
    "smec_train_idle_seconds": "Seconds since the last figure.",
    "smec_train_rows_per_second": "Queries and documents a second.",
    "smec_train_step_seconds": "Seconds a step, by part.",
    "smec_train_memory_fill": "Share of the slots of S-XBM that hold a document.",
    "smec_train_loss": "Loss of the last step.",
    "smec_train_dev_score": "Score on dev that the guard goes by.",
    "smec_train_dev_ndcg_at_10": "nDCG@10 on dev at the dim of the stage.",
    "smec_train_dev_neighbour_recall_at_10": "Recall@10 of neighbours at the dim of the stage, without judgements.",
    "smec_train_dev_agreement_at_10": "Agreement with the full vectors at the dim of the stage, without judgements.",
}
RETRAIN_FIGURES = {
    "last_run_timestamp_seconds": "When the last retrain ended, whatever it decided.",
    "last_success_timestamp_seconds": "When a retrain last ended without a failure or a refused gate.",
    "gate_refused": "1 where the last retrain's challenger was refused, else 0.",
    "gate_segments_refused": "How many segments (gate.by) the last retrain's challenger loses more on than it may.",
    "drift_mean": "Distance of the means of the embeddings now and of those that the champion was trained on.",
    "drift_covariance": "Difference of their covariances, as a share of the earlier one's.",
    "drift_neighbours_kept": "Share of nearest neighbours that are the same now.",
    "champion_ndcg": "nDCG@10 of the champion on the gate's queries, mean over the dims.",
    "challenger_ndcg": "nDCG@10 of the challenger on the gate's queries, mean over the dims.",
}
"""What `report_retrain` is known to be given, and what each figure is."""


class Board:
    """Gauges that stay at their last values as long as this process lives.

    Ray itself forgets a gauge that was not set for two of its report intervals, so a thread sets all of them again.
    """

    def __init__(self, descriptions: Mapping[str, str]) -> None:
        self._descriptions = descriptions
        self._gauges: dict[str, Gauge] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the thread, which ends with the process."""
        threading.Thread(target=self._export_on, name="metrics", daemon=True).start()

    def put(self, gauge: str, value: float, **tags: str) -> None:
        """Sets a value."""
        with self._lock:
            self._values[gauge, tuple(tags.items())] = float(value)

    def collect(self) -> None:
        """Puts what is known only when it is exported; for classes that have such values."""

    def _export_on(self) -> None:
        while True:
            self.collect()
            with self._lock:
                values = list(self._values.items())
            for (gauge, tags), value in values:
                if gauge not in self._gauges:
                    description = self._descriptions.get(gauge, gauge)
                    self._gauges[gauge] = Gauge(gauge, description, tuple(key for key, _ in tags))
                self._gauges[gauge].set(value, dict(tags))
            time.sleep(EXPORT_SECONDS)


class TrainMeters(Board):
    """Figures of one training, taken from its records; costs a step a few additions."""

    def __init__(self, run: str) -> None:
        super().__init__(TRAIN_GAUGES)
        self._run = run
        self._last: float | None = None
        self._steps = 0
        self._rows = 0.0
        self._seconds: dict[str, float] = {}

    def take(self, record: Record) -> None:
        """Takes a record of a step or of an epoch."""
        self._last = time.monotonic()
        place = {key: str(record[key]) for key in PLACE}
        if "loss" not in record:
            for name, value in record.items():
                if name.startswith("dev_"):
                    self.put(f"smec_train_{name.replace('@', '_at_')}", float(value), run=self._run, **place)
            return
        self.put("smec_train_loss", float(record["loss"]), run=self._run, **place)
        parts = {name: float(value) for name, value in record.items() if name.startswith("seconds/")}
        with self._lock:
            self._steps += 1
            self._rows += float(record["rows_per_s"]) * sum(parts.values())
            for name, seconds in parts.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self.put("smec_train_step", int(record["step"]), run=self._run)
        if "memory_fill" in record:
            self.put("smec_train_memory_fill", float(record["memory_fill"]), run=self._run)

    def collect(self) -> None:
        """Puts the means since the last time."""
        with self._lock:
            steps, rows, seconds = self._steps, self._rows, self._seconds
            self._steps, self._rows, self._seconds = 0, 0.0, {}
        if self._last is not None:
            self.put("smec_train_idle_seconds", time.monotonic() - self._last, run=self._run)
        if steps:
            self.put("smec_train_rows_per_second", rows / max(sum(seconds.values()), 1e-9), run=self._run)
            for name, total in seconds.items():
                part = name.removeprefix("seconds/")
                self.put("smec_train_step_seconds", total / steps, run=self._run, part=part)


class _RetrainBoard(Board):
    """The actor that goes on exporting the figures of retrains: their drivers end before Prometheus asks."""

    def __init__(self) -> None:
        super().__init__({f"smec_retrain_{name}": text for name, text in RETRAIN_FIGURES.items()})
        self.start()

    def report(self, name: str, figures: Mapping[str, float]) -> None:
        """Takes the figures of a retrain; those that it does not name stay as they are."""
        for figure, value in figures.items():
            self.put(f"smec_retrain_{figure}", value, name=name)


def report_retrain(name: str, figures: Mapping[str, float | None]) -> None:
    """Exports figures of a retrain as gauges smec_retrain_<figure>{name}, on the cluster that this process uses.

    They stay until others replace them or the cluster ends, or the node of the actor that holds them. Without a
    connection to Ray nothing is done; what fails is said and not raised.

    Args:
        name: of what is retrained, the same each time.
        figures: by name, as in `RETRAIN_FIGURES`; those left out or None keep their last values.

    Example:
        >>> report_retrain("products", {"gate_refused": 0, "last_success_timestamp_seconds": time.time()})
    """
    if not ray.is_initialized():
        return
    try:
        numbers = {figure: float(value) for figure, value in figures.items() if value is not None}
        options: dict[str, Any] = {"lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
        board: Any = ray.remote(_RetrainBoard).options(name=ACTOR, namespace=NAMESPACE, **options).remote()
        # this process may end at once
        ray.get(board.report.remote(name, numbers), timeout=REPORT_SECONDS)
    except Exception as error:
        warn(f"the figures of this retrain are not exported to Prometheus: {unwrap(error)}")
