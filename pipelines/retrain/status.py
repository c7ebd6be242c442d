"""`smec status`: what of a series is in force, what its last cycles decided, and what is damaged; changes nothing."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from sqlalchemy import make_url

from pipelines.console import context, say, warn
from pipelines.retrain.anchor import find_anchor
from pipelines.retrain.clean import leftovers
from pipelines.retrain.damage import Findings, inspect
from pipelines.retrain.ledger import Ledger, Release
from pipelines.retrain.registry import Registry
from pipelines.retrain.settings import StatusSettings
from pipelines.storage.lease import holder_of
from pipelines.storage.publish import CURRENT
from pipelines.storage.run_folder import RunFolder, digest
from smec_core.data.dataset import dataset_stamp
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.errors import DamagedError, InputError

LAST = 5
"""Cycles that are told of."""


def run(settings: StatusSettings) -> dict[str, Any]:
    """Looks at a series.

    Returns:
        name, in_force, anchor, cycles (the last ones), drift (the last that was measured), is_settled, held_by,
        damages, leftover_bytes, next.

    Raises:
        DamagedError: something is damaged; each is reported first, and the error has the same figures.
        SmecError: storage or registry cannot be reached.
    """
    ledger = Ledger(RunFolder(settings.storage, settings.name))
    with context(run=settings.name):
        _check_database(ledger)
        found = inspect(settings, ledger, Registry(settings.name), settings.deep)
        figures = _figures(settings, ledger, found)
        _tell(settings.name, figures)
        if not found.damages:
            return figures
        for damage in found.damages:
            warn(str(damage))
        place = public_uri(ledger.folder.uri)
        error = DamagedError(place, f"problems: {len(found.damages)}, listed above", figures["next"])
        error.figures = figures
        raise error


def _check_database(ledger: Ledger) -> None:
    """Refuses to look where MLflow would first make an empty database.

    Raises:
        DamagedError: that of the series is gone.
    """
    uri = mlflow.get_registry_uri()
    path = make_url(uri).database if uri.startswith("sqlite:") else None
    if path and not Path(path).exists() and ledger.numbers():
        raise DamagedError(path, "is missing", "restore it; without it, smec retrain registers the models anew")


def _figures(settings: StatusSettings, ledger: Ledger, found: Findings) -> dict[str, Any]:
    champion, anchor, held = None, None, None
    if found.releases is not None:
        champion = found.releases.champion
    if not found.damages:
        anchor = find_anchor(ledger, settings)
        held = holder_of(ledger.folder)
    cycles = [
        {key: one.get(key) for key in ("cycle", "outcome", "reason", "decided", "drift")}
        | {"refused_by": _refused_by(one)}
        for one in found.cycles[-LAST:]
    ]
    measured = [one["drift"] for one in cycles if one["drift"] is not None]
    left = [] if found.damages or not found.is_settled else leftovers(settings, ledger)[0]
    return {
        "name": settings.name,
        "in_force": None if champion is None else _release(champion) | {"since": _since(champion, settings)},
        "anchor": None if anchor is None else _release(anchor),
        "cycles": cycles,
        "drift": measured[-1] if measured else None,
        "is_settled": found.is_settled,
        "held_by": None if held is None else f"{held} since {held.since}",
        "damages": [damage._asdict() for damage in found.damages],
        "leftover_bytes": sum(one.bytes for one in left),
        "next": _next(settings, found, held is not None),
    }


def _refused_by(cycle: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The segments that a challenger has lost on; None where the gate did not look at any."""
    segments = cycle.get("gate", {}).get("segments")
    if segments is None:
        return None
    kept = ("value", "queries")
    return [{key: one[key] for key in kept} for one in segments["held"] if not one["holds"]]


def _release(release: Release) -> dict[str, Any]:
    return {
        "version": release.version,
        "output": release.output,
        "model": release.fingerprint,
        "run": release.run,
        "registry_version": release.registry_version,
        "cycle": release.cycle,
        "trained_in": release.trained_in,
        "reason": release.reason,
        "decided": release.created,
    }


def _since(champion: Release, settings: StatusSettings) -> str | None:
    """When CURRENT was written, by the clock of where it lies."""
    if champion.output != settings.publish.place:
        return None
    filesystem, root = open_filesystem(settings.publish.output)
    written = None
    # a folder that may not be looked into is told of as damage
    with suppress(PermissionError):
        written = filesystem.get_file_info(f"{root.rstrip('/')}/{CURRENT}").mtime
    return None if written is None else written.isoformat(timespec="seconds")


def _next(settings: StatusSettings, found: Findings, is_held: bool) -> str:
    """What to do now."""
    if any(not damage.is_mended for damage in found.damages):
        return "mend what smec retrain cannot, then run it"
    if found.damages:
        return "run smec retrain, which mends this"
    if is_held:
        return "wait: a job works on the series"
    if not found.is_settled:
        return "run smec retrain: the last decision is not in effect yet"
    if not found.cycles:
        return "run smec retrain, which trains the first model"
    last = found.cycles[-1]
    try:
        is_new = dataset_stamp(settings.data) != last["stamp"]
    except InputError as error:
        return f"see to the data: {error}"
    if is_new or digest(settings.identity()) != last["identity"]:
        return (
            f"run smec retrain: {'files of the data' if is_new else 'settings'} are not those of cycle {last['cycle']}"
        )
    return "nothing, until data or settings are new"


def _tell(name: str, figures: Mapping[str, Any]) -> None:
    now, anchor, drift = figures["in_force"], figures["anchor"], figures["drift"]
    if now is None:
        say(f"{name}: nothing is in force")
    else:
        since = f" since {now['since']}" if now["since"] else ""
        say(
            f"{name}: {now['output']}/{now['version']} with model {now['model'][:12]} is in force{since}, version "
            f"{now['registry_version']} in MLflow's registry, trained in cycle {now['trained_in']}"
        )
    if anchor is not None:
        say(f"anchor: {anchor['version']} with model {anchor['model'][:12]}, trained in cycle {anchor['trained_in']}")
    for cycle in figures["cycles"]:
        say(f"cycle {cycle['cycle']}, {cycle['decided']}: {cycle['outcome']}; {cycle['reason']}")
    if drift is not None:
        kept = "-" if drift["neighbours_kept"] is None else f"{drift['neighbours_kept']:.3f}"
        shift = f"mean {drift['mean_shift']:.4f}, covariance {drift['covariance_shift']:.4f}"
        say(f"drift when last measured: {shift}, neighbours kept {kept}")
    if figures["held_by"]:
        say(f"held by {figures['held_by']}")
    if figures["leftover_bytes"]:
        say(f"smec clean would remove {figures['leftover_bytes']:,} bytes")
    say(f"next: {figures['next']}")
