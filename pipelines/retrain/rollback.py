"""`smec rollback`: puts an earlier release of `smec retrain` in force again, model and vectors together."""

from contextlib import suppress
from typing import Any

from pipelines.console import context, say, warn
from pipelines.retrain.ledger import Ledger, lease_of
from pipelines.retrain.look import registry_of
from pipelines.retrain.releases import ReleaseManager
from pipelines.retrain.settings import RollbackSettings
from pipelines.storage.run_folder import RunFolder
from smec_core.data.uri import public_uri
from smec_core.errors import DamagedError, InputError


def run(settings: RollbackSettings) -> dict[str, Any]:
    """Puts an earlier release in force.

    The next `smec retrain` compares with that one, and does nothing before there are new data or settings.

    Returns:
        The release.

    Raises:
        InputError: there is no such release any more.
        LeaseError: another job works on the series.
        SmecError: MLflow's registry cannot be reached; the same command goes on.
    """
    folder = RunFolder(settings.storage, settings.name)
    ledger = Ledger(folder)
    if not ledger.numbers() and ledger.releases().champion is None:
        # neither its folder nor MLflow's database is made
        registry_of(ledger)
        raise _nothing_released(folder)
    with context(run=settings.name), lease_of(folder) as lease:
        manager = ReleaseManager(settings, ledger, lease)
        was_cut_short = settings.to is None and ledger.releases().is_returning
        try:
            manager.follow_last_decision()
        except DamagedError as error:
            # one that cannot be put in force any more is what somebody may want to leave
            if settings.to is None:
                raise DamagedError(error.path, error.problem, "name a release with --to") from error
            warn(str(error))
        releases = ledger.releases()
        champion = releases.champion
        # of a record that is damaged there is no decision to follow
        with suppress(DamagedError):
            if (last := ledger.last_cycle()) is not None and releases.lack(last):
                # what could not be put in force is left for good, or the next smec retrain would try again
                withdrawn = (*releases.withdrawn, last["release"]["fingerprint"])
                releases = releases._replace(decided=last["cycle"], withdrawn=withdrawn)
        if champion is None:
            raise _nothing_released(folder)
        if was_cut_short:
            say(f"{settings.name}: {champion.version} is in force; an earlier rollback was killed before that")
            return champion._asdict()
        # vectors in another folder than that of the settings are not theirs to switch
        here = [release for release in releases.releases if release.output == settings.publish.place]
        if settings.to is None:
            passed = {*releases.withdrawn, champion.fingerprint}
            others = [release for release in here if release.fingerprint not in passed]
            earlier = [release for release in others if release.cycle < champion.cycle]
        else:
            earlier = [release for release in here if release.version == settings.to]
        if not earlier:
            kept = ", ".join(release.version for release in here)
            wanted = f"to: no release has version {settings.to}" if settings.to else "no earlier model is kept"
            raise InputError(
                f"{wanted}; releases in {settings.publish.place}: {kept or 'none'}; in force: {champion.version} "
                f"in {champion.output}"
            )
        back = earlier[-1]
        manager.promote(releases.returned_to(back))
        is_new = (back.output, back.version) != (champion.output, champion.version)
        since = f"again, {champion.version} no more" if is_new else "as before"
        say(f"{settings.name}: {back.version} with model {back.fingerprint[:12]} is in force {since}")
        return back._asdict()


def _nothing_released(folder: RunFolder) -> InputError:
    return InputError(f"{public_uri(folder.uri)}: nothing was released yet, so there is nothing to return to")
