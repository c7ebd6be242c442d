"""`smec status`: what of a series is in force, what its last cycles decided, and what is damaged; changes nothing."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipelines.console import context, say, warn
from pipelines.retrain.anchor import find_anchor
from pipelines.retrain.clean import leftovers
from pipelines.retrain.ledger import Ledger, Release
from pipelines.retrain.look import Look, look_at
from pipelines.retrain.settings import StatusSettings
from pipelines.storage.lease import TTL_SECONDS
from pipelines.storage.run_folder import RunFolder, digest
from smec_core.data.dataset import dataset_stamp
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.data.versions import CURRENT
from smec_core.errors import DamagedError, InputError

LAST = 5
"""Cycles that are told of."""


def run(settings: StatusSettings) -> dict[str, Any]:
    """Looks at a series.

    Returns:
        name, in_force, anchor, cycles (the last ones), drift (the last that was measured), is_settled, held_by,
        silent_since (of a holder that may be dead), damages, leftover_bytes (None while a job works), next.

    Raises:
        DamagedError: something is damaged; each is reported first, and the error has the same figures.
        InputError: `gate.anchor` names no release; the same holds.
        SmecError: storage or registry cannot be reached.
    """
    ledger = Ledger(RunFolder(settings.storage, settings.name))
    with context(run=settings.name):
        look = look_at(settings, ledger, settings.deep)
        anchor, error = None, None
        if not look.found.damages:
            try:
                anchor = find_anchor(ledger, settings)
            except DamagedError:
                raise
            except InputError as problem:
                error = problem
        figures = _figures(settings, ledger, look, anchor, error)
        for damage in look.passing:
            say(f"a job is working on the series; check again when it has ended: {damage.path}: {damage.problem}")
        place = public_uri(ledger.folder.uri)
        _tell(settings.name, place, figures)
        if damages := look.found.damages:
            for damage in damages:
                warn(str(damage))
            error = DamagedError(place, f"problems: {len(damages)}, listed above", figures["next"])
        if error is None:
            return figures
        error.figures = figures
        raise error


def _figures(
    settings: StatusSettings, ledger: Ledger, look: Look, anchor: Release | None, problem: InputError | None
) -> dict[str, Any]:
    found, holder = look.found, look.holder
    champion = None if found.releases is None else found.releases.champion
    cycles = [
        {key: one.get(key) for key in ("cycle", "outcome", "reason", "decided", "drift")}
        | {"refused_by": _refused_by(one)}
        for one in found.cycles[-LAST:]
    ]
    measured = [one["drift"] for one in cycles if one["drift"] is not None]
    left = None
    if not look.is_at_work:
        left = leftovers(settings, ledger)[0] if found.is_settled and not found.damages else []
    return {
        "name": settings.name,
        "in_force": None if champion is None else _release(champion) | {"since": _since(champion, settings)},
        "anchor": None if anchor is None else _release(anchor),
        "cycles": cycles,
        "drift": measured[-1] if measured else None,
        "is_settled": found.is_settled,
        "held_by": None if holder is None else f"{holder} since {holder.since}",
        "silent_since": holder.last_sign if holder is not None and look.is_silent else None,
        "damages": [damage._asdict() for damage in found.damages],
        "leftover_bytes": None if left is None else sum(one.bytes for one in left),
        "next": f"fix gate.anchor: {problem}" if problem else _next(settings, look),
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


def _next(settings: StatusSettings, look: Look) -> str:
    """What to do now."""
    found = look.found
    if look.holder is not None and look.is_silent:
        return (
            f"check {look.holder}, which has stopped renewing its lease: end it if it is still running; then run smec "
            f"retrain, which takes over a lease that is not renewed for {TTL_SECONDS:.0f} s"
        )
    if any(not damage.is_mended for damage in found.damages):
        return "fix what smec retrain cannot, then run it"
    if found.damages:
        return "run smec retrain, which fixes this"
    if look.is_at_work:
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


def _tell(name: str, place: str, figures: Mapping[str, Any]) -> None:
    now, anchor, drift = figures["in_force"], figures["anchor"], figures["drift"]
    if now is None:
        say(f"{name}: nothing is in force; looked in {place}")
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
        silence = f", without a sign of life since {figures['silent_since']}" if figures["silent_since"] else ""
        say(f"held by {figures['held_by']}{silence}")
    if figures["leftover_bytes"]:
        say(f"smec clean would remove {figures['leftover_bytes']:,} bytes")
    say(f"next: {figures['next']}")
