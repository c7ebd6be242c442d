"""Puts decisions of `smec retrain` and `smec rollback` in force, and removes what is not needed any more."""

import os
import posixpath
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.console import warn
from pipelines.retrain.ledger import Ledger, Release, Releases
from pipelines.retrain.registry import Registry
from pipelines.retrain.settings import RetrainSettings
from pipelines.runtime.cluster import connect
from pipelines.runtime.prometheus import report_retrain
from pipelines.storage.lease import Lease
from pipelines.storage.publish import plans, promote, remove_version
from pipelines.storage.run_folder import MODEL, RunFolder
from smec_core.data.uri import public_uri
from smec_core.errors import InputError, SmecError
from smec_core.evaluation import gate


class ReleaseManager:
    """A series of models as the world sees it: the registry's alias `champion`, and CURRENT of the published folder."""

    def __init__(self, settings: RetrainSettings, ledger: Ledger, lease: Lease) -> None:
        """Opens it.

        Raises:
            InputError: MLFLOW_TRACKING_URI names another registry than that of the series, or none that stays.
        """
        self.settings, self.ledger, self.lease = settings, ledger, lease
        self.registry = Registry(settings.name)
        ledger.check_registry(self.registry.address)

    def follow_last_decision(self) -> bool:
        """Does what the last cycle has decided, or what a killed run has left undone of it.

        Returns:
            Whether a release of that cycle came into force only now.

        Raises:
            InputError: that is about another published folder than the settings name.
            SmecError: MLflow's registry cannot be reached.
        """
        last, releases = self.ledger.last_cycle(), self.ledger.releases()
        if last is not None and last["release"] is not None:
            release = Release(**last["release"])
            if release.cycle > max((other.cycle for other in releases.releases), default=0):
                self.promote(releases.with_new(release))
                return True
        if releases.in_effect != releases.in_force:
            self.promote(releases)
            return last is not None and releases.in_force == last["cycle"]
        return False

    def promote(self, releases: Releases) -> None:
        """Writes the releases down, then lets alias and CURRENT follow; again with the same result after a kill."""
        champion, output = releases.champion, self.settings.publish.output
        if champion is not None and champion.output != self.settings.publish.place:
            raise InputError(
                f"publish.output: {champion.version} of {champion.output} was about to be put in force when a run was "
                "killed; run once with that folder, then change it"
            )
        self.lease.check()
        self.ledger.write_releases(releases)
        if champion is not None:
            self.registry.set_alias(champion.registry_version)
            # the registry may have taken its time
            self.lease.check()
            promote(output, champion.version)
        self._prune(releases._replace(in_effect=releases.in_force))

    def _prune(self, releases: Releases) -> None:
        kept = releases.kept(self.settings.publish.keep)
        versions = {one.version for one in kept.releases if one.output == self.settings.publish.place}
        for version, plan in plans(self.settings.publish.output).items():
            # also those of runs that were killed before they decided on them
            if self._is_of_series(plan.get("model")) and version not in versions:
                remove_version(self.settings.publish.output, version)
        runs = {one.run for one in kept.releases}
        for release in releases.releases:
            if release.run not in runs:
                self.ledger.forget_reference(release.trained_in)
                RunFolder(self.settings.storage, release.run).remove()
        self.ledger.write_releases(kept)

    def _is_of_series(self, model: object) -> bool:
        """Whether a model is one that a training of this series has left in the storage."""
        ours = posixpath.join(public_uri(self.settings.storage), self.settings.name)
        return isinstance(model, str) and bool(re.fullmatch(rf"{re.escape(ours)}-[0-9a-f]+/{MODEL}", model))


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
