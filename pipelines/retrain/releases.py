"""Puts decisions of `smec retrain` and `smec rollback` in force, and removes what is not needed any more."""

import os
import posixpath
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.console import warn
from pipelines.retrain.damage import Damage, Findings, inspect, vector_problems
from pipelines.retrain.ledger import TRAINING, Ledger, Release, Releases
from pipelines.retrain.registry import Registry
from pipelines.retrain.settings import RetrainSettings
from pipelines.runtime.cluster import connect
from pipelines.runtime.prometheus import report_retrain
from pipelines.storage.audit import Problem, model_problems
from pipelines.storage.files import remove_file
from pipelines.storage.lease import Lease
from pipelines.storage.publish import checksum_of_version, plans, promote, remove_version
from pipelines.storage.run_folder import MODEL, RunFolder
from smec_core.data.records import exists
from smec_core.data.uri import public_uri
from smec_core.data.versions import CURRENT, in_force
from smec_core.errors import DamagedError, InputError, SmecError
from smec_core.evaluation import gate
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
        ledger.check_registry(self.registry.address, look_only=True)

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
        self.ledger.check_registry(self.registry.address)
        last, releases = self.ledger.last_cycle(), self.ledger.releases()
        known, is_lacking = releases.decided, releases.lack(last)
        if last is not None:
            if known < last["cycle"]:
                releases = releases._replace(decided=last["cycle"], anchor=last.get("anchor", releases.anchor))
            if is_lacking:
                self.promote(releases.with_new(Release(**last["release"])), compress)
                return True
        if releases.in_effect != releases.in_force:
            self.promote(releases, compress)
            return last is not None and releases.in_force == last["cycle"]
        if releases.decided != known:
            self.lease.check()
            self.ledger.write_releases(releases)
        return False

    def reconcile(self, compress: Compress) -> list[Damage]:
        """Compares what is in force, or kept for a rollback, with the records, and repairs it.

        Returns:
            What was damaged, and is whole again.

        Raises:
            DamagedError: it cannot be repaired; where that was clear from the start, nothing was changed.
            SmecError: MLflow's registry cannot be reached.
        """
        place = public_uri(self.ledger.folder.uri)
        found = inspect(self.settings, self.ledger, self.registry)
        found.refuse(place, (damage for damage in found.damages if not damage.is_mended))
        self.ledger.check_registry(self.registry.address)
        for damage in found.damages:
            warn(str(damage))
        releases = found.releases or Releases()
        champion = releases.champion
        if champion is None or not found.damages:
            if champion is not None and champion.output == self.settings.publish.place and found.is_settled:
                # earlier versions wrote the name alone
                promote(self.settings.publish.output, champion.version, in_force(self.settings.publish.output))
            return self._forget_training(found)
        failed = []
        try:
            self._check_model(champion)
            releases = self._enforce(releases, compress) if found.is_settled else releases
        except DamagedError as error:
            failed.append(error)
        failed += self._mend_kept(found.kept(self.settings.publish.keep), compress)
        found.refuse(place, (Damage(one.path, one.problem, one.cure) for one in failed))
        self._forget_training(found)
        if found.is_settled:
            left = inspect(self.settings, self.ledger, self.registry)
            left.refuse(place, left.damages)
        return list(found.damages)

    def _forget_training(self, found: Findings) -> list[Damage]:
        """Removes the record of the last training where it is damaged."""
        for damage in found.damages:
            if posixpath.basename(damage.path) == TRAINING:
                remove_file(self.ledger.folder.filesystem, f"{self.ledger.folder.path}/{TRAINING}")
        return list(found.damages)

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
                self._make_whole(releases, champion, None)
        self.lease.check()
        self.ledger.write_releases(releases)
        self._prune(self._enforce(releases, compress))

    def _enforce(self, releases: Releases, compress: Compress | None) -> Releases:
        """Compares registry and published folder with the release in force, and fixes what differs; its model is whole.

        Returns:
            The releases, with the names that the one in force has now.
        """
        champion, is_known = releases.champion, releases.in_effect == releases.in_force
        if champion is None:
            return releases
        releases = self._register(releases, champion)
        if champion.output == self.settings.publish.place:
            releases = self._enforce_vectors(releases, compress, is_known)
        self.lease.check()
        if self.registry.set_alias((releases.champion or champion).registry_version) and is_known:
            warn(f"the alias champion named another version of {self.settings.name}; it is put back")
        return releases

    def _register(self, releases: Releases, release: Release) -> Releases:
        """Registers the model of a release again where the registry has lost it, or its files."""
        run_folder, version = self._run_folder(release), release.registry_version
        if not self.registry.has(version, release.fingerprint):
            version = self.registry.register(run_folder, release.fingerprint, {})
            warn(f"version {release.registry_version} is no longer in MLflow's registry; its model is {version} there")
            releases = self._renamed(releases, release._replace(registry_version=version))
        if lacks := self.registry.lacks(version, run_folder.model_uri):
            now = self.registry.log_again(version, run_folder, release.fingerprint)
            warn(f"version {version} in MLflow's registry {lacks}; its files are logged again, in version {now}")
            if now != version:
                releases = self._renamed(releases, release._replace(registry_version=now))
        return releases

    def _enforce_vectors(self, releases: Releases, compress: Compress | None, is_known: bool) -> Releases:
        champion, output = releases.champion, self.settings.publish.output
        assert champion is not None
        seen, before = in_force(output), champion.version
        releases = self._make_whole(releases, champion, compress)
        champion = releases.champion or champion
        # after `seen` was read: whoever has lost the lease since then finds something else there
        self.lease.check()
        # earlier versions wrote the name alone
        is_plain = seen.name == champion.version and not seen.checksum
        if promote(output, champion.version, seen) and is_known and before == champion.version and not is_plain:
            warn(f"{CURRENT} was not as it was written; {champion.version}, which is in force, is put back")
        if before != champion.version:
            remove_version(output, before)
        return releases

    def _make_whole(self, releases: Releases, release: Release, compress: Compress | None) -> Releases:
        """Makes the vectors of a release again where they are damaged."""
        output = self.settings.publish.output
        problems = sorted(vector_problems(output, release, releases.releases), key=_is_replaceable)
        if not problems:
            return releases
        first = problems[0]
        if compress is None or not first.is_replaceable:
            cure = "run smec retrain, which makes the vectors again" if first.is_replaceable else first.cure
            raise DamagedError(first.path, first.problem, cure)
        warn(f"{first.path}: {first.problem}; the vectors of {release.version} are made again")
        version = compress(self._run_folder(release))
        [now] = (one for one in releases.releases if one.cycle == release.cycle)
        made = now._replace(version=version, manifest=checksum_of_version(output, version))
        return self._renamed(releases, made)

    def _mend_kept(self, kept: Sequence[Release], compress: Compress) -> list[DamagedError]:
        """Fixes the releases that are kept for a rollback; drops those that are beyond use.

        Returns:
            What could not be fixed.
        """
        failed, releases = [], self.ledger.releases()
        for release in kept:
            if release.cycle == releases.in_force:
                continue
            before = release.version
            try:
                self._check_model(release)
                releases = self._register(releases, release)
                if release.output == self.settings.publish.place:
                    releases = self._make_whole(releases, release, compress)
            except DamagedError as error:
                if exists(self.ledger.folder.filesystem, f"{self._run_folder(release).path}/{MODEL}/config.json"):
                    failed.append(error)
                    continue
                warn(f"{error}; {release.version} is no release any more")
                releases = self._without(releases, release)
                continue
            [made] = (one for one in releases.releases if one.cycle == release.cycle)
            others = [one for one in releases.releases if one.cycle != release.cycle]
            if any((one.output, one.version) == (made.output, made.version) for one in others):
                # the vectors that its model makes of the corpus as it is now are another release already
                releases = self._without(releases, made)
            if made.version != before and in_force(self.settings.publish.output).name != before:
                remove_version(self.settings.publish.output, before)
        return failed

    def _without(self, releases: Releases, release: Release) -> Releases:
        left = tuple(one for one in releases.releases if one.cycle != release.cycle)
        self.lease.check()
        self.ledger.write_releases(releases._replace(releases=left))
        return releases._replace(releases=left)

    def _renamed(self, releases: Releases, release: Release) -> Releases:
        renamed = tuple(release if one.cycle == release.cycle else one for one in releases.releases)
        self.lease.check()
        self.ledger.write_releases(releases._replace(releases=renamed))
        return releases._replace(releases=renamed)

    def _check_model(self, release: Release) -> None:
        """Fixes the model of a release from the copy in MLflow's registry where it is not what was trained."""
        folder = self._run_folder(release)
        problems = sorted(model_problems(folder, release.fingerprint), key=_is_replaceable)
        if not problems:
            return
        problem = problems[0]
        if not problem.is_replaceable:
            raise DamagedError(problem.path, problem.problem, problem.cure)
        with temporary_folder() as made:
            stored = self.registry.fetch(release.registry_version, release.fingerprint, made)
            if stored is None:
                cure = "restore it from a copy, or return to an earlier release (smec rollback)"
                if release.cycle != self.ledger.releases().in_force:
                    cure = f"restore it from a copy, or remove {public_uri(folder.uri)}: then it is no release any more"
                raise DamagedError(problem.path, problem.problem, cure)
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
        under_way = self.ledger.under_way(kept.champion)
        versions = {one.version for one in kept.releases if one.output == self.settings.publish.place}
        for version, plan in plans(self.settings.publish.output).items():
            # also those of runs that were killed before they decided on them
            run = run_of(self.settings, plan.get("model"))
            if version not in versions and run is not None and run not in under_way:
                remove_version(self.settings.publish.output, version)
        runs = {one.run for one in kept.releases} | under_way
        for release in releases.releases:
            if release.run not in runs:
                self.ledger.forget_reference(release.trained_in)
                self._run_folder(release).remove()
        self.ledger.write_releases(kept._replace(in_effect=kept.in_force))


def run_of(settings: RetrainSettings, model: object) -> str | None:
    """The training of this series that has left a model in the storage; None where it is another's."""
    ours = re.escape(f"{public_uri(settings.storage).rstrip('/')}/")
    run = re.fullmatch(rf"{ours}({re.escape(settings.name)}-[0-9a-f]{{10}})/{MODEL}", str(model))
    return run[1] if run else None


def _is_replaceable(problem: Problem) -> bool:
    return problem.is_replaceable


PROMOTED, REFUSED, UNCHANGED, NOTHING_NEW, REPAIRED = "promoted", "refused", "unchanged", "nothing new", "repaired"
"""Outcomes. Unchanged: the new data gave the champion again, or only files were new. Repaired: nothing was new, but
something was damaged."""


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
    if record["outcome"] not in (NOTHING_NEW, REPAIRED) and record.get("trained", True):
        drift, verdict = record["drift"] or {}, record.get("gate", {"ndcg@10": {}})
        mean = {system: float(np.mean(list(by_dim.values()))) for system, by_dim in verdict["ndcg@10"].items()}
        figures |= {"gate_refused": float(refused), "champion_ndcg": mean.get(gate.CHAMPION)}
        if "gate" in record:
            held = (verdict.get("segments") or {"held": []})["held"]
            figures["gate_segments_refused"] = float(sum(not one["holds"] for one in held))
        figures |= {"challenger_ndcg": mean.get(gate.CHALLENGER), "drift_mean": drift.get("mean_shift")}
        figures |= {"drift_covariance": drift.get("covariance_shift")}
        figures |= {"drift_neighbours_kept": drift.get("neighbours_kept")}
    report_retrain(name, figures)
