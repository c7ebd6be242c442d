"""Puts decisions of `smec retrain` and `smec rollback` in force, and removes what is not needed any more."""

import os
import posixpath
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipelines.console import warn
from pipelines.retrain.ledger import Ledger, Release, Releases
from pipelines.retrain.registry import Registry
from pipelines.retrain.settings import RetrainSettings
from pipelines.runtime.cluster import connect
from pipelines.runtime.prometheus import report_retrain
from pipelines.storage.lease import Lease
from pipelines.storage.publish import CURRENT, check_version, in_force, plans, promote, remove_version
from pipelines.storage.run_folder import MODEL, RunFolder
from smec_core.data.uri import public_uri
from smec_core.errors import DamagedError, InputError, SmecError, StoreError
from smec_core.evaluation import gate
from smec_core.model.files import load
from smec_core.temporary import temporary_folder

Compress = Callable[[RunFolder], str]
"""Compresses the corpus with the model of a run; gives the version, which is not in force yet."""


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

    def follow_last_decision(self, compress: Compress | None = None) -> bool:
        """Does what the last cycle has decided, or what a killed run has left undone of it.

        Args:
            compress: makes the vectors of a release again where they are damaged; None where there is no corpus.

        Returns:
            Whether a release of that cycle came into force only now.

        Raises:
            DamagedError: what is in force is not what the records say, and cannot be repaired.
            InputError: the decision is about another published folder than the settings name.
            SmecError: MLflow's registry cannot be reached.
        """
        last, releases = self.ledger.last_cycle(), self.ledger.releases()
        if last is not None and last["release"] is not None:
            release = Release(**last["release"])
            if release.cycle > max((other.cycle for other in releases.releases), default=0):
                self.promote(releases.with_new(release), compress)
                return True
        if releases.in_effect != releases.in_force:
            self.promote(releases, compress)
            return last is not None and releases.in_force == last["cycle"]
        return False

    def reconcile(self, compress: Compress) -> None:
        """Compares what is in force with its record, and repairs it.

        Raises:
            DamagedError: it cannot be repaired.
            SmecError: MLflow's registry cannot be reached.
        """
        releases = self.ledger.releases()
        if releases.champion is not None:
            self._check_model(releases.champion)
            self._enforce(releases, compress)

    def promote(self, releases: Releases, compress: Compress | None = None) -> None:
        """Writes the releases down, then lets alias and CURRENT follow; again with the same result after a kill.

        Args:
            releases: what is to be in force.
            compress: makes damaged vectors again; None where there is no corpus.

        Raises:
            DamagedError: model or vectors of the release are damaged beyond repair; what is in force stays so.
            InputError: it is of another published folder than the settings name.
            LeaseError: another process has taken the series over.
            SmecError: MLflow's registry cannot be reached.
        """
        champion = releases.champion
        if champion is not None and champion.output != self.settings.publish.place:
            raise InputError(
                f"publish.output: {champion.version} of {champion.output} was about to be put in force when a run was "
                "killed; run once with that folder, then change it"
            )
        if champion is not None:
            # before it is written down: what cannot be put in force must not stand in the way of what can
            self._check_model(champion)
            if compress is None:
                check_version(self.settings.publish.output, champion.version)
        self.lease.check()
        self.ledger.write_releases(releases)
        self._prune(self._enforce(releases, compress))

    def _enforce(self, releases: Releases, compress: Compress | None) -> Releases:
        """Compares registry and published folder with the release in force, and mends what differs; its model is whole.

        Returns:
            The releases, with the names that the one in force has now.
        """
        champion, is_known = releases.champion, releases.in_effect == releases.in_force
        if champion is None:
            return releases
        if not self.registry.has(champion.registry_version, champion.fingerprint):
            version = self.registry.register(self._run_folder(champion), champion.fingerprint, {})
            warn(f"version {champion.registry_version} is no longer in MLflow's registry; its model is {version} there")
            releases = self._renamed(releases, champion._replace(registry_version=version))
        if champion.output == self.settings.publish.place:
            releases = self._enforce_vectors(releases, compress, is_known)
        self.lease.check()
        if self.registry.set_alias((releases.champion or champion).registry_version) and is_known:
            warn(f"the alias champion named another version of {self.settings.name}; it is put back")
        return releases

    def _enforce_vectors(self, releases: Releases, compress: Compress | None, is_known: bool) -> Releases:
        champion, output = releases.champion, self.settings.publish.output
        assert champion is not None
        seen, damaged = in_force(output), ""
        try:
            check_version(output, champion.version)
        except DamagedError as error:
            if compress is None:
                raise DamagedError(
                    error.path, error.problem, "run smec retrain, which makes the vectors again"
                ) from error
            warn(f"{error.path}: {error.problem}; the vectors in force are made again")
            damaged, version = champion.version, compress(self._run_folder(champion))
            releases = self._renamed(releases, champion._replace(version=version))
            champion = champion._replace(version=version)
        # after `seen` was read: whoever has lost the lease since then finds something else there
        self.lease.check()
        # earlier versions wrote the name alone
        is_plain = seen.name == champion.version and not seen.checksum
        if promote(output, champion.version, seen) and is_known and not damaged and not is_plain:
            warn(f"{CURRENT} was not as it was written; {champion.version}, which is in force, is put back")
        if damaged and damaged != champion.version:
            remove_version(output, damaged)
        return releases

    def _renamed(self, releases: Releases, release: Release) -> Releases:
        releases = releases._replace(
            releases=tuple(release if one.cycle == release.cycle else one for one in releases.releases)
        )
        self.lease.check()
        self.ledger.write_releases(releases)
        return releases

    def _check_model(self, champion: Release) -> None:
        """Mends the model in force from the copy in MLflow's registry where it is not what was trained."""
        folder = self._run_folder(champion)
        try:
            if load(folder.model_uri).fingerprint == champion.fingerprint:
                return
            problem = DamagedError(public_uri(folder.model_uri), "is another model than the one that was released")
        except StoreError:
            raise
        except InputError as error:
            problem = (
                error if isinstance(error, DamagedError) else DamagedError(public_uri(folder.model_uri), str(error))
            )
        with temporary_folder() as made:
            stored = self.registry.fetch(champion.registry_version, made)
            try:
                whole = stored is not None and load(stored).fingerprint == champion.fingerprint
            except InputError:
                whole = False
            if stored is None or not whole:
                cure = "restore it from a copy, or return to an earlier release (smec rollback)"
                raise DamagedError(problem.path, problem.problem, cure) from problem
            warn(f"{problem.path}: {problem.problem}; it is taken from MLflow's registry")
            self.lease.check()
            folder.create()
            folder.store_model(stored)

    def _run_folder(self, release: Release) -> RunFolder:
        return RunFolder(self.settings.storage, release.run)

    def _prune(self, releases: Releases) -> None:
        """Removes what is no longer kept; the releases are in effect once that is done, so that a kill undoes no part.

        A run that is killed before leaves them to the next one, for which a rollback is then still under way.
        """
        # fails where another process has taken the series over: then nothing is removed
        self.ledger.write_releases(releases)
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
                self._run_folder(release).remove()
        self.ledger.write_releases(kept._replace(in_effect=kept.in_force))

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
