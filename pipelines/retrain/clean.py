"""`smec clean`: removes what a series does not need any more, by rule, and reports what and how much."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from pipelines.console import context, say
from pipelines.retrain.damage import Findings, inspect
from pipelines.retrain.ledger import CYCLES, Ledger, Releases, lease_of
from pipelines.retrain.look import look_at, registry_of
from pipelines.retrain.releases import run_of
from pipelines.retrain.settings import CleanSettings, RetrainSettings
from pipelines.storage.files import TEMPORARY, remove_file, remove_folder, sizes_of
from pipelines.storage.lease import LEFTOVER_SECONDS as TEMPORARY_SECONDS
from pipelines.storage.lease import Holder, Lease, find_silent, holder_of
from pipelines.storage.publish import plans, remove_version
from pipelines.storage.run_folder import IDENTITY_FILE, RunFolder, digest
from smec_core.data.uri import join_uri, open_filesystem, public_uri, without_slash
from smec_core.data.versions import in_force
from smec_core.errors import DamagedError, LeaseError, SmecError
from smec_core.folders import NEW
from smec_core.temporary import is_left_behind

_NEW = re.compile(rf"\.(.+\.)?\w{{8}}{re.escape(NEW)}")
_TEMPORARY = re.compile(rf"\.[0-9a-f]{{8}}{re.escape(TEMPORARY)}$")
"""Names that no other program gives."""


class Leftover(NamedTuple):
    """Something that is not needed any more.

    Attributes:
        path: of it, as it is shown.
        bytes: that it takes.
        why: it is not needed.
        remove: removes it; again with the same result after a kill.
    """

    path: str
    bytes: int
    why: str
    remove: Callable[[], object]


class Left(NamedTuple):
    """Something that looks like a leftover and stays."""

    path: str
    why: str


def run(settings: CleanSettings) -> dict[str, Any]:
    """Removes it.

    Returns:
        removed (each with path, bytes and why), left (path and why), bytes, dry_run.

    Raises:
        DamagedError: the series is damaged: then nothing is removed.
        LeaseError: another job works on it.
        SmecError: a decision is not in effect yet, or storage or registry cannot be reached.
    """
    folder = RunFolder(settings.storage, settings.name)
    held: AbstractContextManager[Lease | None] = nullcontext()
    # of a name that is none no folder is made
    if not settings.dry_run and folder.filesystem.get_file_info(folder.path).type != pafs.FileType.NotFound:
        held = lease_of(folder)
    with context(run=settings.name), held as lease:
        ledger = Ledger(folder)
        found = inspect(settings, ledger, registry_of(ledger)) if lease else _seen_beside(settings, ledger)
        found.refuse(public_uri(folder.uri), found.damages)
        if not found.is_settled:
            raise SmecError(
                f"{settings.name}: a decision is not in effect yet, so nothing is removed; run smec retrain"
            )
        removed, left = leftovers(settings, ledger)
        if removed and not ledger.numbers():
            raise DamagedError(
                public_uri(folder.uri),
                f"has no records of {settings.name}, but {removed[0].path} is there",
                "restore the folder from a copy, or remove by hand what is not needed",
            )
        if lease is not None:
            lease.check()
            # first: the records never name what is gone
            releases = ledger.releases()
            if (kept := releases.kept(settings.publish.keep)) != releases:
                ledger.write_releases(kept)
        for one in removed:
            if lease is not None:
                lease.check()
                one.remove()
            say(f"{'would remove' if settings.dry_run else 'removed'} {one.path}: {one.bytes:,} bytes, {one.why}")
        for stays in left:
            say(f"left alone {stays.path}: {stays.why}")
    total, gone = sum(one.bytes for one in removed), "would go" if settings.dry_run else "are gone"
    say(
        f"{public_uri(folder.uri)}: {total:,} bytes in {len(removed)} places {gone}; "
        "versions and runs in MLflow are left alone"
    )
    return {
        "removed": [{"path": one.path, "bytes": one.bytes, "why": one.why} for one in removed],
        "left": [one._asdict() for one in left],
        "bytes": total,
        "dry_run": settings.dry_run,
    }


def _seen_beside(settings: CleanSettings, ledger: Ledger) -> Findings:
    """What a dry run sees, which keeps nobody from working on the series.

    Raises:
        LeaseError: somebody does.
    """
    look = look_at(settings, ledger)
    if look.is_at_work:
        raise LeaseError(
            f"series {settings.name} is being worked on by {look.holder or 'another process'}; wait for it: what it "
            "goes on with is not known before"
        )
    return look.found


def leftovers(settings: RetrainSettings, ledger: Ledger) -> tuple[list[Leftover], list[Left]]:
    """What a series does not need, and what looks so and stays; of a series that is whole and settled."""
    kept = ledger.releases().kept(settings.publish.keep)
    last, under_way = ledger.last_cycle(), ledger.under_way(kept.champion)
    found = [
        *_versions(settings, kept, under_way),
        *_runs(settings, ledger, kept, under_way),
        *_references(ledger, kept, 0 if last is None else last["cycle"]),
        *_half_written(settings, ledger),
    ]
    return [one for one in found if isinstance(one, Leftover)], [one for one in found if isinstance(one, Left)]


def _versions(settings: RetrainSettings, kept: Releases, under_way: set[str]) -> Iterator[Leftover | Left]:
    out = settings.publish.output
    filesystem, root = open_filesystem(out)
    wanted = {one.version for one in kept.releases if one.output == settings.publish.place} | {in_force(out).name}
    for version, plan in plans(out).items():
        path, model = public_uri(join_uri(out, version)), plan.get("model")
        if version in wanted:
            continue
        if run_of(settings, model) is None:
            yield Left(path, "is not of this series, or cannot be told")
        elif run_of(settings, model) in under_way:
            yield Left(path, "an interrupted cycle goes on with it")
        else:
            size = sum(sizes_of(filesystem, f"{root.rstrip('/')}/{version}").values())
            yield Leftover(path, size, "a version that is not kept", _removal(remove_version, out, version))


def _removal(remove: Callable[..., object], *what: Any) -> Callable[[], object]:
    return lambda: remove(*what)


def _runs(settings: RetrainSettings, ledger: Ledger, kept: Releases, under_way: set[str]) -> Iterator[Leftover | Left]:
    filesystem, wanted = ledger.folder.filesystem, {one.run for one in kept.releases}
    infos = filesystem.get_file_info(pafs.FileSelector(ledger.folder.storage_path, allow_not_found=True))
    found: dict[str, tuple[RunFolder, Holder | None]] = {}
    for name in sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory):
        if not re.fullmatch(rf"{re.escape(settings.name)}-[0-9a-f]{{10}}", name):
            continue
        folder = ledger.folder.sibling(name)
        path = public_uri(folder.uri)
        try:
            identity, holder = folder.read(IDENTITY_FILE), holder_of(folder)
        except DamagedError as error:
            yield Left(path, f"what it is cannot be told: {error}")
            continue
        if identity is None or name != f"{settings.name}-{digest(identity)}" or "hold_out" not in identity:
            # of `smec train` in the same storage, or a series that is called so
            if name not in wanted:
                yield Left(path, "is no training of this series, or cannot be told")
        elif name in under_way - wanted:
            yield Left(path, "an interrupted cycle goes on with it")
        else:
            found[name] = folder, holder
    # together: each dead holder would be waited for by itself
    held = {name: (folder, holder) for name, (folder, holder) in found.items() if holder is not None}
    silent = find_silent(held, time.monotonic())
    for name, (folder, holder) in found.items():
        path = public_uri(folder.uri)
        if holder is not None and name not in silent:
            yield Left(path, f"is held by {holder} since {holder.since}")
        elif name not in wanted:
            size = sum(sizes_of(filesystem, folder.path).values())
            yield Leftover(path, size, "a training that no release is of", folder.remove)
        elif folder.is_finished:
            yield from _checkpoints(folder)


def _checkpoints(folder: RunFolder) -> Iterator[Leftover]:
    """Checkpoints of a finished run, which a kill at its end has left."""
    for info in folder.filesystem.get_file_info(pafs.FileSelector(folder.path)):
        if info.type == pafs.FileType.Directory and info.base_name.startswith(f"{folder.name}.start-"):
            size = sum(sizes_of(folder.filesystem, info.path).values())
            path = public_uri(join_uri(folder.uri, info.base_name))
            removal = _removal(remove_folder, folder.filesystem, info.path)
            yield Leftover(path, size, "checkpoints of a finished training", removal)


def _references(ledger: Ledger, kept: Releases, last: int) -> Iterator[Leftover]:
    """What was kept of the data of cycles whose models are gone; not of one that has not decided yet."""
    wanted = {one.trained_in for one in kept.releases}
    folder, filesystem = f"{ledger.folder.path}/{CYCLES}", ledger.folder.filesystem
    sizes = {name: size for name, size in sizes_of(filesystem, folder).items() if name.partition(".")[0].isdigit()}
    for number in sorted({int(name.partition(".")[0]) for name in sizes} - wanted):
        names = [f"{number:04d}.safetensors", f"{number:04d}.queries.json"]
        size = sum(sizes.get(name, 0) for name in names)
        if size and number <= last:
            path = public_uri(join_uri(ledger.folder.uri, f"{CYCLES}/{names[0]}"))
            yield Leftover(path, size, "data of a model that is gone", _removal(ledger.forget_reference, number))


def _half_written(settings: RetrainSettings, ledger: Ledger) -> Iterator[Leftover]:
    """What dead processes were writing, on local disks: folders that none holds, files of an age at which none does."""
    out, root = open_filesystem(settings.publish.output)
    for filesystem, folder in ((out, without_slash(root)), (ledger.folder.filesystem, ledger.folder.path)):
        if not isinstance(filesystem, pafs.LocalFileSystem):
            continue
        for info in filesystem.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True)):
            age = time.time() - (info.mtime_ns or 0) / 1e9
            is_folder = info.type == pafs.FileType.Directory
            if is_folder and _NEW.fullmatch(info.base_name) and is_left_behind(Path(info.path)):
                size = sum(sizes_of(filesystem, info.path).values())
                removal = _removal(remove_folder, filesystem, info.path)
                yield Leftover(info.path, size, "half written", removal)
            elif not is_folder and _TEMPORARY.search(info.base_name) and age > TEMPORARY_SECONDS:
                yield Leftover(info.path, info.size, "half written", _removal(remove_file, filesystem, info.path))
