"""Puts decisions of `smec retrain` and `smec rollback` in force, and removes what is not needed any more."""

from pipelines.lease import Lease
from pipelines.ledger import Ledger, Release, Releases
from pipelines.publish import put_in_force, remove_version
from pipelines.registry import Registry
from pipelines.retrain_settings import RetrainSettings
from pipelines.run_folder import RunFolder


class Service:
    """A series of models as the world sees it: the registry's alias `champion`, and CURRENT of the published folder."""

    def __init__(self, settings: RetrainSettings, ledger: Ledger, lease: Lease) -> None:
        self.settings, self.ledger, self.lease = settings, ledger, lease
        self.registry = Registry(settings.name)

    def follow_last_decision(self) -> None:
        """Does what the last cycle has decided, or what a killed run has left undone of it.

        Raises:
            SmecError: MLflow's registry cannot be reached.
        """
        last, releases = self.ledger.last_cycle(), self.ledger.releases()
        if last is not None and last["release"] is not None:
            release = Release(**last["release"])
            if release.cycle > max((other.cycle for other in releases.releases), default=0):
                self.put_in_force(releases.with_new(release))
                return
        if releases.in_effect != releases.in_force:
            self.put_in_force(releases)

    def put_in_force(self, releases: Releases) -> None:
        """Writes the releases down, then lets alias and CURRENT follow; again with the same result after a kill."""
        self.lease.check()
        self.ledger.write_releases(releases)
        champion = releases.champion
        if champion is not None:
            self.registry.crown(champion.registry_version)
            put_in_force(self.settings.publish.output, champion.version)
        self._prune(releases._replace(in_effect=releases.in_force))

    def _prune(self, releases: Releases) -> None:
        newest = releases.releases[-self.settings.publish.keep :]
        kept = tuple(one for one in releases.releases if one in newest or one.cycle == releases.in_force)
        for release in releases.releases:
            if release in kept:
                continue
            if release.output == self.settings.publish.place and release.version not in {one.version for one in kept}:
                remove_version(self.settings.publish.output, release.version)
            if release.run not in {one.run for one in kept}:
                RunFolder(self.settings.storage, release.run).remove()
                self.ledger.forget_reference(release.trained_in)
        self.ledger.write_releases(releases._replace(releases=kept))
