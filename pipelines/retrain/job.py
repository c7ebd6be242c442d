"""`smec retrain`: trains a challenger on the current data, and releases it if it is better than the champion.

Safe to be run by any scheduler, as often as it likes: where nothing is new, it ends at once. Each step can be done
again with the same result, so a killed run is simply run again; what is in force changes in the last step only.
"""

from typing import Any

from pipelines.console import context, say
from pipelines.retrain.cycle import Cycle
from pipelines.retrain.ledger import Ledger, lease_of
from pipelines.retrain.releases import (
    NOTHING_NEW,
    REFUSED,
    REPAIRED,
    UNCHANGED,
    ReleaseManager,
    export_figures,
)
from pipelines.retrain.settings import RetrainSettings
from pipelines.storage.apart import check_apart
from pipelines.storage.publish import check_output
from pipelines.storage.run_folder import RunFolder, check_storage
from smec_core.errors import GateError


def run(settings: RetrainSettings) -> dict[str, Any]:
    """Runs a cycle where data or settings are new.

    Returns:
        The cycle's record: `outcome`, `drift`, `gate`, `release` and others, and what was `repaired`. `outcome` is
        `nothing new` where there was nothing to do, and `repaired` where nothing was new but something was damaged.

    Raises:
        GateError: the challenger, or the data, was refused.
        DamagedError: what is in force is damaged beyond repair; nothing is trained.
        InputError: bad settings or data, or vectors of another embedding model.
        LeaseError: another process retrains this series.
        SmecError: something failed; what was in force stays so, and the next run goes on.
    """
    # before a training whose result could not be published
    check_output(settings.publish.output, "publish.output")
    check_apart({"publish.output": settings.publish.output, "storage": settings.storage}, [settings.data])
    check_storage(settings.storage)
    folder = RunFolder(settings.storage, settings.name)
    folder.create()
    with (
        context(run=settings.name),
        lease_of(folder) as lease,
    ):
        manager = ReleaseManager(settings, Ledger(folder), lease)
        cycle = Cycle(manager)
        repaired = manager.reconcile(cycle.compress)
        was_cut_short = manager.follow_last_decision(cycle.compress)
        record = cycle.unless_nothing_new(repaired, was_cut_short)
        if record is None:
            record = cycle.decide()
            manager.follow_last_decision(cycle.compress)
        record = {**record, "repaired": [str(damage) for damage in repaired]}
        export_figures(settings.name, record)
    if record["outcome"] in (REFUSED, UNCHANGED) and record["champion"] and not settings.publish.refresh:
        say("publish.refresh is false: nothing is published, even where the corpus or publish settings have changed")
    if record["outcome"] == UNCHANGED:
        say(f"{settings.name}: {record['reason']}")
    if record["outcome"] == REFUSED:
        stays = "the champion stays" if record["champion"] else "nothing is released"
        if record["release"] is not None:
            stays += f", with the corpus as it is now in {record['release']['version']}"
        raise GateError(f"{settings.name}: {record['reason']}; {stays}", record)
    if record["outcome"] not in (NOTHING_NEW, REPAIRED) and record["release"] is not None:
        say(f"{settings.name}: {record['release']['version']} is in force")
    return record
