"""A look at a series from outside: what a job that works on it changes meanwhile is not taken for damage."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import mlflow

from pipelines.retrain.damage import Damage, Findings, inspect
from pipelines.retrain.ledger import RELEASES, Ledger
from pipelines.retrain.registry import Registry
from pipelines.retrain.settings import RetrainSettings
from pipelines.runtime.preflight import missing_database
from pipelines.storage.lease import Holder, find_silent, holder_of
from smec_core.data.records import read_bytes
from smec_core.errors import DamagedError

LOOKS = 5
"""A release changes the records a few times in a row, and then no more for long."""


class Look(NamedTuple):
    """A look at a series.

    Attributes:
        found: what is damaged for sure, and all else.
        passing: what may look damaged only since a job works on the series, or is fixed by that.
        holder: who has the lease.
        is_silent: whether that one is on another machine and gives no sign of life.
        is_at_work: whether a job works on the series.
    """

    found: Findings
    passing: Sequence[Damage]
    holder: Holder | None
    is_silent: bool
    is_at_work: bool


def registry_of(ledger: Ledger) -> Registry:
    """The registry of a series, for jobs that only look: where MLflow has no database yet, they make none.

    Raises:
        DamagedError: that of the series is gone.
        InputError: it cannot be opened.
        SmecError: it does not answer.
    """
    path = missing_database(mlflow.get_registry_uri())
    if path and ledger.numbers():
        raise DamagedError(path, "is missing", "restore it; without it, smec retrain registers the models anew")
    return Registry(ledger.folder.name, is_empty=path is not None)


def look_at(settings: RetrainSettings, ledger: Ledger, deep: bool = False) -> Look:
    """Inspects a series, again where its records or its lease changed meanwhile.

    Records, alias and CURRENT are read one after the other, and a release changes them one after the other: together
    they say something only where nothing was changed between the first and the last.

    Raises:
        DamagedError: MLflow's database is gone.
        InputError: another registry than that of the series.
        SmecError: storage or registry cannot be reached.
    """
    registry = registry_of(ledger)
    for _ in range(LOOKS):
        holder, started, before = _holder(ledger), time.monotonic(), _state(ledger)
        found = inspect(settings, ledger, registry, deep)
        is_steady = _state(ledger) == before
        if is_steady or not found.damages:
            break
    seen = {} if holder is None else {"series": (ledger.folder, holder)}
    silent = bool(find_silent(seen, started))
    is_at_work = (holder is not None and not silent) or not is_steady
    passing = [one for one in found.damages if not is_steady or (is_at_work and one.is_mended)]
    left = [one for one in found.damages if one not in passing]
    return Look(found._replace(damages=left), passing, holder, silent, is_at_work)


def _holder(ledger: Ledger) -> Holder | None:
    # a lease that is damaged is among the findings
    with suppress(DamagedError):
        return holder_of(ledger.folder)
    return None


def _state(ledger: Ledger) -> Any:
    """What a job changes when it starts, decides, releases, and ends."""
    try:
        holder, records = _holder(ledger), read_bytes(ledger.folder.filesystem, f"{ledger.folder.path}/{RELEASES}")
        return records, ledger.numbers(), holder and holder.token
    except (DamagedError, PermissionError) as error:
        return str(error)
