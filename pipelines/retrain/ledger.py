"""What `smec retrain` keeps of a series of models, in its folder STORAGE/NAME.

    cycles/0001.json            a decided cycle: data, drift, gate, outcome; written once, when all it names is there
    cycles/0001.safetensors     what its data was like, for later cycles to compare theirs with
    cycles/0001.queries.json    nDCG@10 of its challenger on each gate query, by dim
    releases.json               the releases, and which of them is in force
    registry.json               the MLflow registry that its versions are of
    training.json               the run folder of the last challenger, removed before the next one is trained

A release is a model with a published version of the corpus. The decision (the cycle) is written first, then
releases.json, and what others look at (the registry's alias, CURRENT) follows that: whatever a kill leaves undone, the
next start does, without deciding again.
"""

import hashlib
import posixpath
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import pyarrow.fs as pafs
from safetensors import SafetensorError

from pipelines import signals
from pipelines.runtime.settings import NAME
from pipelines.storage.files import new_file, remove_file, swap
from pipelines.storage.lease import Lease
from pipelines.storage.run_folder import RESTORE, RunFolder
from smec_core.data.records import SUM, as_record, read_bytes
from smec_core.data.uri import join_uri, public_uri
from smec_core.data.versions import VERSION
from smec_core.errors import DamagedError, InputError, LeaseError, one_line
from smec_core.evaluation.drift import Reference

RELEASES = "releases.json"
REGISTRY = "registry.json"
TRAINING = "training.json"
CYCLES = "cycles"
CYCLE_KEYS = {"cycle", "identity", "stamp", "data", "gate_fraction", "champion", "outcome", "reason", "release"}

QueryScores = dict[str, dict[str, float]]
"""nDCG@10 by query id and dim."""


class Release(NamedTuple):
    """A model in service, and the vectors that it made."""

    cycle: int
    """The cycle that decided on it."""
    trained_in: int
    """The cycle that trained the model; an earlier one where only the corpus was compressed again."""
    run: str
    """The training's run folder, in which the model is."""
    fingerprint: str
    """Of the model."""
    registry_version: str
    """Of the registered model in MLflow."""
    output: str
    """The published folder."""
    version: str
    """Of that."""
    reason: str
    """Why it came to be."""
    created: str
    """ISO 8601."""
    manifest: str = ""
    """Checksum of the version's manifest; empty in records of earlier versions."""

    @classmethod
    def read(cls, content: Mapping[str, Any], file: str) -> Self:
        """Reads one back.

        Raises:
            DamagedError: what it names is no folder of its own: some day it is removed.
        """
        try:
            release = cls(**content)
        except TypeError as error:
            raise DamagedError(file, f"holds a release that is none ({one_line(error)})") from error
        _check_run(release.run, file)
        if not VERSION.fullmatch(release.version):
            raise DamagedError(file, f"{release.version!r} is no version")
        return release


class Releases(NamedTuple):
    """All releases that are kept, the oldest first. Each is known by the cycle that decided on it."""

    releases: tuple[Release, ...] = ()
    in_force: int | None = None
    """The release that is to be in force."""
    in_effect: int | None = None
    """The one that the registry's alias and CURRENT are known to name."""
    withdrawn: tuple[str, ...] = ()
    """Fingerprints of the models that were rolled back from."""
    anchor: int | None = None
    """The cycle that trained the best model so far, with which challengers are compared, too."""
    decided: int = 0
    """The last cycle whose decision was followed: where its record is gone, or these are older, that is found."""

    def lack(self, last: Mapping[str, Any] | None) -> bool:
        """Whether the last cycle, given its record, has decided on a release that is not taken up yet."""
        if last is None or last["release"] is None:
            return False
        if self.decided:
            # not by the releases: the newest may have been dropped since, beyond repair
            return bool(self.decided < last["cycle"])
        return bool(last["release"]["cycle"] > max((one.cycle for one in self.releases), default=0))

    def with_new(self, release: Release) -> "Releases":
        """These and a new one, which is to be in force."""
        return self._replace(releases=(*self.releases, release), in_force=release.cycle)

    def returned_to(self, back: Release) -> "Releases":
        """These with an earlier one in force; where that has another model, the present one is withdrawn."""
        withdrawn = [model for model in self.withdrawn if model != back.fingerprint]
        if self.champion is not None and self.champion.fingerprint != back.fingerprint:
            withdrawn.append(self.champion.fingerprint)
        anchor = self.anchored
        if anchor is not None and anchor.fingerprint in withdrawn:
            anchor = back
        return self._replace(
            in_force=back.cycle, withdrawn=tuple(withdrawn), anchor=None if anchor is None else anchor.trained_in
        )

    def kept(self, keep: int) -> "Releases":
        """These without what is not to be kept.

        Kept are the one in force, the last `keep`, of each of the last `keep` models that were not withdrawn the last
        release (an earlier model stays at hand however often the corpus was compressed again), and that of the anchor.
        """
        last_of = {one.run: one for one in self.releases if one.fingerprint not in self.withdrawn}
        models = sorted(last_of.values(), key=lambda release: release.cycle)[-keep:]
        anchor = () if self.anchored is None else (self.anchored,)
        wanted = {self.in_force, *(one.cycle for one in (*self.releases[-keep:], *models, *anchor))}
        return self._replace(releases=tuple(one for one in self.releases if one.cycle in wanted))

    @property
    def is_returning(self) -> bool:
        """Whether a rollback is written down but not in effect yet."""
        return self.in_effect is not None and self.in_force is not None and self.in_force < self.in_effect

    @property
    def champion(self) -> Release | None:
        """The release in force."""
        return next((release for release in self.releases if release.cycle == self.in_force), None)

    @property
    def anchored(self) -> Release | None:
        """The last release of the anchor; that in force where there is none, as in records of earlier versions."""
        found = [release for release in self.releases if release.trained_in == self.anchor]
        return found[-1] if found else self.champion


def lease_of(folder: RunFolder) -> Lease:
    """The lease of a series, which retrain, rollback and clean hold; its folder must be made."""
    return Lease(folder, signals.interrupt, f"series {folder.name}", "worked on", "name")


class Ledger:
    """The records of a series; only for who holds the lease of its folder.

    What decides what is in force is written only where it still is what this process has seen: one that was held up,
    and whose lease another has taken over, changes nothing any more.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._seen: bytes | None = None

    def releases(self) -> Releases:
        """The releases.

        Raises:
            DamagedError: they are not what was written.
        """
        self._seen = read_bytes(self.folder.filesystem, f"{self.folder.path}/{RELEASES}")
        content = self.folder.read(RELEASES, {"releases", "in_force", "in_effect"})
        if content is None:
            return Releases()
        releases = tuple(Release.read(release, self._public(RELEASES)) for release in content["releases"])
        withdrawn = tuple(content.get("withdrawn", ()))
        rest = content.get("anchor"), content.get("decided", 0)
        found = Releases(releases, content["in_force"], content["in_effect"], withdrawn, *rest)
        if found.champion is None and (releases or found.in_force is not None):
            raise DamagedError(self._public(RELEASES), f"has no release {found.in_force}, which it says to be in force")
        return found

    def write_releases(self, releases: Releases) -> None:
        """Replaces them, in one piece.

        Raises:
            LeaseError: another process has changed them since they were read here.
        """
        plain = [release._asdict() for release in releases.releases]
        content = as_record({**releases._asdict(), "releases": plain})
        if not swap(join_uri(self.folder.uri, RELEASES), self._seen, content):
            raise self._taken_over(RELEASES)
        self._seen = content

    def numbers(self) -> list[int]:
        """The cycles of which there are records, the first one first."""
        selector = pafs.FileSelector(f"{self.folder.path}/{CYCLES}", allow_not_found=True)
        names = [info.base_name for info in self.folder.filesystem.get_file_info(selector)]
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def last_cycle(self) -> dict[str, Any] | None:
        """The record of the last decided cycle."""
        numbers = self.numbers()
        return self.cycle(numbers[-1]) if numbers else None

    def cycle(self, number: int) -> dict[str, Any]:
        """The record of a cycle.

        Raises:
            DamagedError: it is missing, or is not what was written.
        """
        name = _name(number, "json")
        record: dict[str, Any] | None = self.folder.read(name, CYCLE_KEYS)
        if record is None:
            raise self._missing(name)
        if record["cycle"] != number:
            raise DamagedError(self._public(name), f"is the record of cycle {record['cycle']}", RESTORE)
        if record["release"] is not None:
            Release.read(record["release"], self._public(name))
        return record

    def write_cycle(self, record: dict[str, Any]) -> None:
        """Writes the record of a cycle, by its `cycle`; once.

        Raises:
            LeaseError: another process has decided on that cycle meanwhile.
        """
        name = _name(record["cycle"], "json")
        if not swap(join_uri(self.folder.uri, name), None, as_record(record)):
            raise self._taken_over(name)

    def _taken_over(self, name: str) -> LeaseError:
        return LeaseError(f"{self._public(name)}: another process has written it meanwhile; this process stops")

    def _public(self, name: str) -> str:
        return public_uri(join_uri(self.folder.uri, name))

    def check_registry(self, address: str, look_only: bool = False) -> None:
        """Ties the series to the registry that its first start has used.

        Args:
            address: of the registry.
            look_only: write nothing.

        Raises:
            InputError: it is another one, whose versions are not those that the records name.
        """
        known = self.folder.read(REGISTRY, {"address"})
        if known is None:
            if not look_only:
                self.folder.write(REGISTRY, {"address": address})
        elif known["address"] != address:
            file = self._public(REGISTRY)
            raise InputError(
                f"MLFLOW_TRACKING_URI: names the registry {address}, but the versions of {self.folder.name} are in "
                f"{known['address']}; set it to that, or, if the same server has moved, change {file}"
            )

    def training(self) -> tuple[str, int | None] | None:
        """The run that has trained the last challenger, or was about to, and in which cycle, where that is known.

        Raises:
            DamagedError: its record is not what was written.
        """
        content = self.folder.read(TRAINING, {"run"}, "remove it: no release depends on it")
        if content is None:
            return None
        _check_run(content["run"], self._public(TRAINING))
        return content["run"], content.get("cycle")

    def begin_training(self, run_folder: RunFolder, number: int) -> None:
        """Notes which run trains the challenger of a cycle; removes that of the last one, where it was not released."""
        before = self.training()
        if before and before[0] not in {run_folder.name, *(release.run for release in self.releases().releases)}:
            run_folder.sibling(before[0]).remove()
        self.folder.write(TRAINING, {"run": run_folder.name, "cycle": number})

    def under_way(self, champion: Release | None) -> set[str]:
        """Runs whose models an interrupted cycle compresses with: its challenger's, or that in force; else none."""
        try:
            training, last = self.training(), self.last_cycle()
        except DamagedError:
            # a rollback goes on all the same
            return set()
        if training is None:
            return set()
        run, number = training
        # one run can be that of two cycles: settings of the gate do not change what is trained
        is_decided = last is not None and (last["run"] == run if number is None else last["cycle"] >= number)
        return set() if is_decided else {run, run if champion is None else champion.run}

    def keep_reference(self, number: int, reference: Reference, query_scores: QueryScores) -> None:
        """Keeps what a cycle's data was like, and what its challenger reached on it."""
        path = f"{self.folder.path}/{_name(number, 'safetensors')}"
        content = reference.to_bytes()
        with new_file(self.folder.filesystem, path) as sink:
            sink.write(content)
        files = {posixpath.basename(path): {SUM: hashlib.sha256(content).hexdigest()}}
        kept = {"format": 2, "files": files, "scores": query_scores}
        self.folder.write(_name(number, "queries.json"), kept)

    def reference(self, number: int) -> tuple[Reference, QueryScores]:
        """What was kept of a cycle's data.

        Raises:
            DamagedError: it is missing, or is not what was written.
        """
        name = _name(number, "safetensors")
        kept = self.folder.read(_name(number, "queries.json"))
        content = read_bytes(self.folder.filesystem, f"{self.folder.path}/{name}")
        if kept is None or content is None:
            raise self._missing(name if kept else _name(number, "queries.json"))
        found = hashlib.sha256(content).hexdigest()
        if kept.get("format") != 2:
            # of earlier versions: the scores alone
            kept = {"files": {}, "scores": kept}
        if kept["files"].get(posixpath.basename(name), {SUM: found})[SUM] != found:
            raise DamagedError(self._public(name), "is not as it was written", RESTORE)
        try:
            return Reference.from_bytes(content), kept["scores"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise DamagedError(self._public(name), f"is damaged ({one_line(error)})", RESTORE) from error

    def _missing(self, name: str) -> DamagedError:
        return DamagedError(self._public(name), "is missing", RESTORE)

    def forget_reference(self, number: int) -> None:
        """Removes it; the cycle's record stays."""
        for kind in ("safetensors", "queries.json"):
            remove_file(self.folder.filesystem, f"{self.folder.path}/{_name(number, kind)}")


def _check_run(run: object, file: str) -> None:
    if not isinstance(run, str) or not re.fullmatch(NAME, run):
        raise DamagedError(file, f"{run!r} is no name of a run")


def _name(number: int, kind: str) -> str:
    return f"{CYCLES}/{number:04d}.{kind}"
