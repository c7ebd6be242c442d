"""CPU, memory, disk, network and GPUs of this machine, as MLflow's own monitors measure them."""

import os
import time
from contextlib import suppress

from mlflow.environment_variables import (
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING,
    MLFLOW_SYSTEM_METRICS_NODE_ID,
    MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING,
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL,
)
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

PREFIX = "system/"
"""Under which MLflow's pages look for such figures."""
SECONDS = 10.0


def is_wanted() -> bool:
    """Whether the user has not switched them off by MLflow's own variable."""
    wanted = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    return wanted.name not in os.environ or bool(wanted.get())


class MachineFigures:
    """Samples of this machine, with MLflow's settings (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL and the like).

    Not by MLflow's SystemMetricsMonitor: its thread would go on asking a dead server, keep the process from ending
    meanwhile, and know nothing of the store that takes over.
    """

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        # raises whatever it likes where there is no such GPU
        with suppress(Exception):
            self._monitors.append(GPUMonitor())
        self._interval = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or SECONDS
        self._enough = MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING.get() or 1
        node = MLFLOW_SYSTEM_METRICS_NODE_ID.get()
        self._prefix = f"{PREFIX}{node}/" if node else PREFIX
        self._samples = 0
        # the load of the CPU is that since the last sample, so this first one has none
        self._collect()
        self._clear()

    def sample(self) -> dict[str, float]:
        """Takes a sample where one is due; gives their means where there are enough for that, else nothing."""
        if time.monotonic() < self._due:
            return {}
        self._collect()
        if self._samples < self._enough:
            return {}
        means = {name: value for monitor in self._monitors for name, value in monitor.aggregate_metrics().items()}
        self._clear()
        return {self._prefix + name: float(value) for name, value in means.items()}

    def _collect(self) -> None:
        self._due = time.monotonic() + self._interval
        for monitor in self._monitors:
            monitor.collect_metrics()
        self._samples += 1

    def _clear(self) -> None:
        self._samples = 0
        for monitor in self._monitors:
            monitor.clear_metrics()
