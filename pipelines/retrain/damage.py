"""What of a series is not what its records say: looked for at every start of `smec retrain`, and by `smec status`.

Nothing is changed here. Records and models are read whole, vectors by size and stamp: no start depends on how large the
corpus is. `deep` reads all bytes, those in MLflow's registry among them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from pipelines.console import telling, warn
from pipelines.retrain.ledger import CYCLES, REGISTRY, RELEASES, TRAINING, Ledger, Release, Releases
from pipelines.retrain.registry import ARTIFACTS, Registry
from pipelines.retrain.settings import RetrainSettings
from pipelines.runtime.settings import NAME
from pipelines.storage.audit import ELSEWHERE, Problem, model_problems, strays, version_problems
from pipelines.storage.lease import LEASE, holder_of
from pipelines.storage.publish import checksum_of_version
from pipelines.storage.run_folder import MODEL, RESTORE, RunFolder
from smec_core.data.records import exists, unreadable
from smec_core.data.uri import join_uri, public_uri
from smec_core.data.versions import CURRENT, in_force, manifest_of_version
from smec_core.errors import DamagedError, InputError, SmecError
from smec_core.temporary import temporary_folder

AGAIN = "smec retrain makes the vectors again, from the corpus as it is now"
BACK = "smec retrain puts it back"
FETCHED = "smec retrain takes the model from MLflow's registry"
LOGGED = "smec retrain registers the stored model"
LOGGED_AGAIN = "smec retrain logs its files again"


class Damage(NamedTuple):
    """Something that is not what it was.

    Attributes:
        path: of the file, folder or name in MLflow's registry.
        problem: what it is.
        cure: what helps.
        is_mended: whether the next `smec retrain` tries that.
    """

    path: str
    problem: str
    cure: str
    is_mended: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.cure}"


class Findings(NamedTuple):
    """What a look at a series has found.

    Attributes:
        releases: as recorded; None where that cannot be read.
        cycles: the records of the cycles that can be read, the first one first.
        damages: all that is not what it was.
    """

    releases: Releases | None
    cycles: Sequence[dict[str, Any]]
    damages: Sequence[Damage]

    def kept(self, keep: int) -> Sequence[Release]:
        """The releases that are to be whole: where a job was killed while it removed others, these may be half gone."""
        if self.releases is None:
            return ()
        return (self.releases if self.is_settled else self.releases.kept(keep)).releases

    @property
    def is_settled(self) -> bool:
        """Whether the last decision is in effect; else a job works on it, or was killed and the next one goes on."""
        if self.releases is None:
            return False
        last = self.cycles[-1] if self.cycles else None
        return self.releases.in_effect == self.releases.in_force and not self.releases.lack(last)

    def refuse(self, place: str, some: Iterable[Damage]) -> None:
        """Ends the job where there are damages among `some`, with each of them.

        Raises:
            DamagedError: there are.
        """
        left = list(some)
        if len(left) == 1:
            raise DamagedError(*left[0][:3])
        for damage in left:
            warn(str(damage))
        if left:
            raise DamagedError(place, f"problems: {len(left)}, each with its cure listed above", "fix them all")


@telling("comparing what is stored with the records")
def inspect(settings: RetrainSettings, ledger: Ledger, registry: Registry, deep: bool = False) -> Findings:
    """Compares what is in force, and what is kept for a rollback, with the records.

    Args:
        settings: of the series.
        ledger: its records.
        registry: MLflow's.
        deep: whether all bytes are read.

    Raises:
        InputError: another registry than that of the series.
        SmecError: storage or registry cannot be reached.
    """
    damages: list[Damage] = []
    cycles: Sequence[dict[str, Any]] = ()
    place, output = public_uri(ledger.folder.uri), settings.publish.place
    with _noting(damages, place):
        ledger.check_registry(registry.address, look_only=True)
        cycles = _cycles(ledger, damages)
    if cycles and not exists(ledger.folder.filesystem, f"{ledger.folder.path}/{REGISTRY}"):
        damages.append(Damage(f"{place}/{REGISTRY}", "is missing", "smec retrain writes it anew", True))
    releases: Releases | None = None
    with _noting(damages, place):
        releases = ledger.releases()
    with _noting(damages, place, TRAINING):
        ledger.training()
    found = Findings(releases, cycles, damages)
    kept = found.kept(settings.publish.keep)
    if not any(not damage.is_mended for damage in damages) and releases is not None:
        damages += _records(ledger, releases, kept, cycles)
    with _noting(damages, place):
        holder_of(ledger.folder)
        damages += _strange_files(ledger)
    if releases is not None:
        for release in kept:
            with _noting(damages, public_uri(ledger.folder.sibling(release.run).uri)):
                damages += _model(ledger, registry, release, deep)
        with _noting(damages, output):
            damages += _published(settings, kept, deep)
        if found.is_settled and not any(damage.path.endswith(RELEASES) for damage in damages):
            with _noting(damages, output):
                damages += _pointers(settings, ledger, registry, releases)
    return found


@contextmanager
def _noting(damages: list[Damage], place: str, removed: str = "") -> Iterator[None]:
    """Notes damage instead of raising it, also of a folder that may not be looked into.

    Args:
        damages: where it is noted.
        place: what is looked at.
        removed: the record that is looked at, where it is fixed by doing without.
    """
    try:
        yield
    except DamagedError as error:
        is_mended = bool(removed) and not error.problem.startswith("cannot be read")
        cure = "smec retrain removes it: no release depends on it" if is_mended else error.cure
        damages.append(Damage(error.path, error.problem, cure, is_mended))
    except OSError as error:
        if isinstance(error, SmecError) or error.errno is None:
            # an object store, which may answer the next time
            raise
        damages.append(Damage(*unreadable(place, error).args))


def _cycles(ledger: Ledger, damages: list[Damage]) -> list[dict[str, Any]]:
    """All cycles' records that can be read."""
    numbers = ledger.numbers()

    def read(number: int) -> dict[str, Any] | DamagedError:
        try:
            return ledger.cycle(number)
        except DamagedError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        # those that are missing in between, too
        read_all = list(pool.map(read, range(1, numbers[-1] + 1 if numbers else 1)))
    damages += [Damage(one.path, one.problem, one.cure) for one in read_all if isinstance(one, DamagedError)]
    return [one for one in read_all if isinstance(one, dict)]


def _records(
    ledger: Ledger, releases: Releases, kept: Sequence[Release], cycles: Sequence[dict[str, Any]]
) -> Iterator[Damage]:
    """What does not fit together of records that are each whole."""
    public, last = public_uri(ledger.folder.uri), len(cycles)
    if releases.decided > last:
        yield Damage(f"{public}/{CYCLES}/{releases.decided:04d}.json", "is missing", RESTORE)
    released = [cycle["cycle"] for cycle in cycles if cycle["release"] is not None]
    if not releases.releases and released and released[0] < last:
        yield Damage(f"{public}/{RELEASES}", "is missing, or names no release", RESTORE)
    elif not releases.releases and released:
        # or a job was killed, or is about to write it
        cure = f"smec retrain writes it anew, from the record of cycle {last}"
        yield Damage(f"{public}/{RELEASES}", "is missing", cure, True)
    elif releases.decided and releases.decided < last - 1:
        yield Damage(f"{public}/{RELEASES}", f"is older than cycle {last - 1}, which it does not know", RESTORE)
    for release in kept:
        made = cycles[release.cycle - 1] if release.cycle <= last else None
        if made is None:
            yield Damage(f"{public}/{CYCLES}/{release.cycle:04d}.json", "is missing", RESTORE)
        elif made["release"] is None or made["release"]["fingerprint"] != release.fingerprint:
            name = f"{CYCLES}/{release.cycle:04d}.json"
            yield Damage(f"{public}/{RELEASES}", f"names another release of cycle {release.cycle} than {name}", RESTORE)
        try:
            ledger.reference(release.trained_in)
        except DamagedError as error:
            yield Damage(error.path, error.problem, error.cure)


def _strange_files(ledger: Ledger) -> Iterator[Damage]:
    known = {LEASE, RELEASES, TRAINING, REGISTRY}
    for name in strays(ledger.folder.filesystem, ledger.folder.path, known):
        folder, _, file = name.rpartition("/")
        number, _, kind = file.partition(".")
        if folder != CYCLES or not number.isdigit() or kind not in ("json", "safetensors", "queries.json"):
            yield Damage(f"{public_uri(ledger.folder.uri)}/{name}", "is no record of smec", ELSEWHERE)


def _of(problem: Problem, cure: str) -> Damage:
    return Damage(*problem[:2], cure if problem.is_replaceable else problem.cure, problem.is_replaceable)


def _model(ledger: Ledger, registry: Registry, release: Release, deep: bool) -> Iterator[Damage]:
    """What is wrong with the model of a release, in the storage and in the registry."""
    run_folder = ledger.folder.sibling(release.run)
    problems = list(model_problems(run_folder, release.fingerprint))
    yield from (_of(problem, FETCHED) for problem in problems)
    name = f"models:/{ledger.folder.name}/{release.registry_version}"
    if not registry.has(release.registry_version, release.fingerprint):
        yield Damage(name, f"MLflow's registry has no such version of model {release.fingerprint[:12]}", LOGGED, True)
        return
    if problems:
        # what the registry has is all there is
        return
    lacks = registry.lacks(release.registry_version, run_folder.model_uri)
    if deep and lacks is None:
        with temporary_folder() as made:
            stored = registry.fetch(release.registry_version, release.fingerprint, made)
        if stored is None:
            cure = f"remove {ARTIFACTS}/adapter.safetensors of its logged model: then {LOGGED_AGAIN}"
            yield Damage(name, "is not the model that was registered", cure)
    if lacks:
        yield Damage(name, lacks, LOGGED_AGAIN, True)


def vector_problems(out: str, release: Release, releases: Sequence[Release], deep: bool = False) -> list[Problem]:
    """What is wrong with the vectors of a release in a published folder.

    Where the whole folder was gone, versions have begun again, and another of the `releases` may have its name.
    """
    place = release.output, release.version
    others = {one.manifest for one in releases if (one.output, one.version) == place} - {release.manifest}
    if others and checksum_of_version(out, release.version) in others:
        return [Problem(public_uri(join_uri(out, release.version)), "is another release's now", AGAIN, True)]
    return list(version_problems(out, release.version, release.manifest, deep))


def _published(settings: RetrainSettings, kept: Sequence[Release], deep: bool) -> Iterator[Damage]:
    """What is wrong with the vectors of the releases that are in the published folder of the settings."""
    here = [release for release in kept if release.output == settings.publish.place]
    for release in {(release.version, release.manifest): release for release in here}.values():
        seen = {problem.path: problem for problem in vector_problems(settings.publish.output, release, here)}
        yield from (_of(problem, AGAIN) for problem in seen.values())
        for problem in vector_problems(settings.publish.output, release, here, True) if deep else ():
            if problem.path not in seen:
                # size and stamp are as they were
                yield Damage(*problem[:2], f"restore it from a copy, or remove it: then {AGAIN}")


def _of_another_series(settings: RetrainSettings, version: str) -> Iterator[Damage]:
    """Where another series has published the version in force: the two would put back their own for ever."""
    with suppress(InputError, OSError):
        model = manifest_of_version(settings.publish.output, version)["model"] if version else ""
        run = re.fullmatch(rf"(.+)/({NAME})-[0-9a-f]{{10}}/{MODEL}", model)
        if run is None or run[2] == settings.name:
            return
        # a manifest does not say how its storage is reached
        storage = settings.storage if run[1] == public_uri(settings.storage).rstrip("/") else run[1]
        if RunFolder(storage, run[2]).read(RELEASES) is not None:
            problem = f"names {version}, which the series {run[2]} in {run[1]} has published"
            cure = "give each series a publish.output of its own, then run smec retrain of both"
            yield Damage(f"{settings.publish.place}/{CURRENT}", problem, cure)


def _pointers(settings: RetrainSettings, ledger: Ledger, registry: Registry, releases: Releases) -> Iterator[Damage]:
    """What is wrong with the two names of the release in force: the registry's alias, and CURRENT."""
    champion, alias = releases.champion, registry.champion
    if champion is None:
        if alias is not None and not ledger.numbers():
            problem = f"has no records, but MLflow's registry has version {alias} of this name as the champion"
            cure = "restore the folder from a copy, or take another name for a new series"
            yield Damage(public_uri(ledger.folder.uri), problem, cure)
        with suppress(DamagedError):
            yield from _of_another_series(settings, in_force(settings.publish.output).name)
        return
    if alias != champion.registry_version:
        problem = f"names {f'version {alias}' if alias else 'nothing'} instead of version {champion.registry_version}"
        yield Damage(f"models:/{ledger.folder.name}@champion", problem, BACK, True)
    if champion.output != settings.publish.place:
        with suppress(DamagedError):
            yield from _of_another_series(settings, in_force(settings.publish.output).name)
        return
    path = f"{settings.publish.place}/{CURRENT}"
    try:
        said = in_force(settings.publish.output)
    except DamagedError as error:
        yield Damage(path, error.problem, error.cure)
        return
    if said.name != champion.version:
        others = list(_of_another_series(settings, said.name))
        yield from others
        if others:
            return
        problem = f"names {said.name} instead of" if said.name else "does not name"
        problem = "is missing" if said.content is None else f"{problem} {champion.version}, which is in force"
        yield Damage(path, problem, BACK, True)
        return
    try:
        checksum = champion.manifest or checksum_of_version(settings.publish.output, champion.version)
    except InputError:
        # that is told of the version
        return
    # earlier versions wrote the name alone
    if said.checksum != checksum and (said.checksum or champion.manifest):
        yield Damage(path, f"is not what was written for {champion.version}", BACK, True)
