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

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import pyarrow.fs as pafs

from pipelines.runtime.settings import NAME
from pipelines.storage.files import new_file
from pipelines.storage.publish import VERSION
from pipelines.storage.run_folder import RunFolder
from smec_core.data.uri import join_uri, public_uri
from smec_core.errors import InputError
from smec_core.evaluation.drift import Reference

RELEASES = "releases.json"
REGISTRY = "registry.json"
TRAINING = "training.json"
CYCLES = "cycles"

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

    @classmethod
    def read(cls, content: Mapping[str, Any], file: str) -> Self:
        """Reads one back.

        Raises:
            InputError: what it names is no folder of its own: some day it is removed.
        """
        release = cls(**content)
        _check_run(release.run, file)
        if not VERSION.fullmatch(release.version):
            raise InputError(f"{file}: {release.version!r} is no version; restore the file")
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

    def with_new(self, release: Release) -> "Releases":
        """These and a new one, which is to be in force."""
        return self._replace(releases=(*self.releases, release), in_force=release.cycle)

    def returned_to(self, back: Release) -> "Releases":
        """These with an earlier one in force; where that has another model, the present one is withdrawn."""
        withdrawn = [model for model in self.withdrawn if model != back.fingerprint]
        if self.champion is not None and self.champion.fingerprint != back.fingerprint:
            withdrawn.append(self.champion.fingerprint)
        return self._replace(in_force=back.cycle, withdrawn=tuple(withdrawn))

    def kept(self, keep: int) -> "Releases":
        """These without what is not to be kept.

        Kept are the one in force, the last `keep`, and of each of the last `keep` models that were not withdrawn the
        last release: an earlier model stays at hand however often the corpus was compressed again.
        """
        last_of = {one.run: one for one in self.releases if one.fingerprint not in self.withdrawn}
        models = sorted(last_of.values(), key=lambda release: release.cycle)[-keep:]
        wanted = {self.in_force, *(one.cycle for one in (*self.releases[-keep:], *models))}
        return self._replace(releases=tuple(one for one in self.releases if one.cycle in wanted))

    @property
    def is_returning(self) -> bool:
        """Whether a rollback is written down but not in effect yet."""
        return self.in_effect is not None and self.in_force is not None and self.in_force < self.in_effect

    @property
    def champion(self) -> Release | None:
        """The release in force."""
        return next((release for release in self.releases if release.cycle == self.in_force), None)


class Ledger:
    """The records of a series; only for who holds the lease of its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def releases(self) -> Releases:
        """The releases."""
        content = self.folder.read_json(RELEASES)
        if content is None:
            return Releases()
        file = public_uri(join_uri(self.folder.uri, RELEASES))
        releases = tuple(Release.read(release, file) for release in content["releases"])
        return Releases(**{**content, "releases": releases, "withdrawn": tuple(content.get("withdrawn", ()))})

    def write_releases(self, releases: Releases) -> None:
        """Replaces them, in one piece."""
        plain = [release._asdict() for release in releases.releases]
        self.folder.write_json(RELEASES, {**releases._asdict(), "releases": plain})

    def last_cycle(self) -> dict[str, Any] | None:
        """The record of the last decided cycle."""
        selector = pafs.FileSelector(f"{self.folder.path}/{CYCLES}", allow_not_found=True)
        names = [info.base_name for info in self.folder.filesystem.get_file_info(selector)]
        numbers = [int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()]
        return self.cycle(max(numbers)) if numbers else None

    def cycle(self, number: int) -> dict[str, Any]:
        """The record of a cycle."""
        content = self.folder.read_json(_name(number, "json"))
        if content is None:
            raise self._missing(_name(number, "json"))
        record: dict[str, Any] = content
        if record["release"] is not None:
            Release.read(record["release"], public_uri(join_uri(self.folder.uri, _name(number, "json"))))
        return record

    def write_cycle(self, record: dict[str, Any]) -> None:
        """Writes the record of a cycle, by its `cycle`."""
        self.folder.write_json(_name(record["cycle"], "json"), record)

    def check_registry(self, address: str) -> None:
        """Ties the series to the registry that its first start has used.

        Raises:
            InputError: it is another one, whose versions are not those that the records name.
        """
        known = self.folder.read_json(REGISTRY)
        if known is None:
            self.folder.write_json(REGISTRY, {"address": address})
        elif known["address"] != address:
            file = public_uri(join_uri(self.folder.uri, REGISTRY))
            raise InputError(
                f"MLFLOW_TRACKING_URI: names the registry {address}, but the versions of {self.folder.name} are in "
                f"{known['address']}; set it to that, or, if the same server has moved, change {file}"
            )

    def begin_training(self, run_folder: RunFolder) -> None:
        """Notes which run trains the challenger; removes that of the last one, where it was not released."""
        content = self.folder.read_json(TRAINING)
        before = content["run"] if content else run_folder.name
        _check_run(before, public_uri(join_uri(self.folder.uri, TRAINING)))
        if before not in {run_folder.name, *(release.run for release in self.releases().releases)}:
            run_folder.sibling(before).remove()
        self.folder.write_json(TRAINING, {"run": run_folder.name})

    def keep_reference(self, number: int, reference: Reference, query_scores: QueryScores) -> None:
        """Keeps what a cycle's data was like, and what its challenger reached on it."""
        path = f"{self.folder.path}/{_name(number, 'safetensors')}"
        with new_file(self.folder.filesystem, path) as sink:
            sink.write(reference.to_bytes())
        self.folder.write_json(_name(number, "queries.json"), query_scores)

    def reference(self, number: int) -> tuple[Reference, QueryScores]:
        """What was kept of a cycle's data.

        Raises:
            InputError: it is not there.
        """
        path = f"{self.folder.path}/{_name(number, 'safetensors')}"
        query_scores = self.folder.read_json(_name(number, "queries.json"))
        try:
            with self.folder.filesystem.open_input_stream(path, compression=None) as source:
                reference = Reference.from_bytes(source.read())
        except FileNotFoundError:
            query_scores = None
        if query_scores is None:
            raise self._missing(_name(number, "safetensors"))
        return reference, query_scores

    def _missing(self, name: str) -> InputError:
        file = public_uri(join_uri(self.folder.uri, name))
        return InputError(f"{file}: is missing; restore it, or take another `name` for a new series")

    def forget_reference(self, number: int) -> None:
        """Removes it; the cycle's record stays."""
        for kind in ("safetensors", "queries.json"):
            path = f"{self.folder.path}/{_name(number, kind)}"
            if self.folder.filesystem.get_file_info(path).type == pafs.FileType.File:
                self.folder.filesystem.delete_file(path)


def _check_run(run: str, file: str) -> None:
    if not re.fullmatch(NAME, run):
        raise InputError(f"{file}: {run!r} is no name of a run; restore the file")


def _name(number: int, kind: str) -> str:
    return f"{CYCLES}/{number:04d}.{kind}"
