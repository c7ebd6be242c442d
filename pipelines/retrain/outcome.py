"""How a retrain ends, and what Prometheus is told of it."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.console import warn
from pipelines.runtime.cluster import connect
from pipelines.runtime.prometheus import report_retrain
from smec_core.errors import SmecError
from smec_core.evaluation import gate

PROMOTED, REFUSED, UNCHANGED, NOTHING_NEW = "promoted", "refused", "unchanged", "nothing new"
"""Outcomes. Unchanged: the new data gave the champion itself again."""


def export_figures(name: str, record: Mapping[str, Any]) -> None:
    """Exports the figures to Prometheus, where there is a cluster that goes on after this process."""
    if not os.environ.get("RAY_ADDRESS"):
        return
    try:
        connect(0)
    except SmecError as error:
        warn(f"the figures of this retrain are not exported to Prometheus: {error}")
        return
    now, refused = time.time(), record["outcome"] == REFUSED
    figures = {"last_run_timestamp_seconds": now, "last_success_timestamp_seconds": None if refused else now}
    if record["outcome"] != NOTHING_NEW:
        drift, verdict = record["drift"] or {}, record.get("gate", {"ndcg@10": {}})
        mean = {system: float(np.mean(list(by_dim.values()))) for system, by_dim in verdict["ndcg@10"].items()}
        figures |= {"gate_refused": float(refused), "champion_ndcg": mean.get(gate.CHAMPION)}
        figures |= {"challenger_ndcg": mean.get(gate.CHALLENGER), "drift_mean": drift.get("mean_shift")}
        figures |= {"drift_covariance": drift.get("covariance_shift")}
        figures |= {"drift_neighbours_kept": drift.get("neighbours_kept")}
    report_retrain(name, figures)
