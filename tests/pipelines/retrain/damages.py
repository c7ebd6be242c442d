"""Kinds of damage to a series that has released twice: what a bad disk, a wrong copy or a careless hand does.

Each kind changes files, or MLflow's registry, as they lie on disk or on S3; none goes through what it is found by.
"""

import json
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient

from pipelines.retrain.ledger import Ledger, Release
from pipelines.storage.run_folder import RunFolder
from smec_core.data.records import as_record
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.data.versions import CURRENT
from tests.pipelines.retrain.series import Series
from tests.pipelines.storage.test_damage import snapshot, write

Change = Callable[[bytes], bytes]
REPAIRED, REFUSED = "repaired", "refused"


class Kind(NamedTuple):
    """A kind of damage.

    Attributes:
        damage: does it.
        told: what the report on it says somewhere.
        end: what the next retrain makes of it.
        is_quick: whether it is among those of every run; then its repair needs no cluster.
        on_disk_only: whether there is no such thing on an object store.
    """

    damage: Callable[[Series], object]
    told: str
    end: str
    is_quick: bool = False
    on_disk_only: bool = False


def release(series: Series, number: int = -1) -> Release:
    """One of the releases; the last is in force."""
    return Ledger(RunFolder(series.stored, series.name)).releases().releases[number]


def vectors(series: Series, number: int = -1) -> str:
    return join_uri(series.published, release(series, number).version)


def run(series: Series, number: int = -1) -> str:
    return RunFolder(series.stored, release(series, number).run).uri


def model(series: Series, number: int = -1) -> str:
    return join_uri(run(series, number), "model")


def records(series: Series) -> str:
    return join_uri(series.stored, series.name)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    spoilt = bytearray(content)
    spoilt[len(spoilt) // 2] ^= 1
    return bytes(spoilt)


def empty(content: bytes) -> bytes:
    return b""


def longer(content: bytes) -> bytes:
    return content + b"\n"


def spoil(folder: str, ending: str, change: Change) -> dict[str, bytes]:
    """Changes the first file of a folder whose name ends so; gives what it held."""
    path, content = min(file for file in snapshot(folder).items() if file[0].endswith(ending))
    write(folder, {path: change(content)})
    return {path: content}


def remove(uri: str) -> None:
    filesystem, path = open_filesystem(uri)
    (filesystem.delete_file if filesystem.get_file_info(path).is_file else filesystem.delete_dir)(path)


def add(uri: str, name: str) -> None:
    _, path = open_filesystem(uri)
    write(uri, {f"{path}/{name}": b"not of smec"})


def folder_instead(uri: str) -> None:
    filesystem, path = open_filesystem(uri)
    filesystem.delete_file(path)
    filesystem.create_dir(path)


def link_to_itself(uri: str) -> None:
    Path(uri).unlink()
    Path(uri).symlink_to(uri)


def parquet(uri: str) -> str:
    """Name of the first Parquet file of a folder."""
    return min(posixpath.basename(path) for path in snapshot(uri) if path.endswith(".parquet"))


def swap_files(one: str, other: str) -> None:
    (path, content), (there, theirs) = (*snapshot_of(one).items(), *snapshot_of(other).items())
    write(one, {path: theirs})
    write(other, {there: content})


def snapshot_of(uri: str) -> dict[str, bytes]:
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_stream(path, compression=None) as source:
        return {path: source.read()}


def copy_over(source: str, target: str) -> None:
    """Puts a copy of a folder in the place of another."""
    (_, path), (_, place) = open_filesystem(source), open_filesystem(target)
    files = {name.replace(path, place, 1): content for name, content in snapshot(source).items()}
    write(target, files)


def swap_models(series: Series) -> None:
    """Puts the model folder of the release before in the place of that in force."""
    copy_over(model(series, 0), model(series))


def edit(uri: str, **changes: Any) -> None:
    """Edits a record, with a checksum to match."""
    [(path, content)] = snapshot_of(uri).items()
    record = json.loads(content) | changes
    record.pop("sha256")
    write(uri, {path: as_record(record)})


def point(series: Series, content: Change) -> None:
    spoil(series.published, f"/{CURRENT}", content)


def another_version(series: Series) -> None:
    """A copy of a version is in force."""
    version = release(series).version
    for path, content in snapshot(vectors(series)).items():
        write(series.published, {path.replace(f"/{version}/", "/v0099/"): content})
    spoil(series.published, f"/{CURRENT}", lambda _: b"v0099\n")


def older_manifest(series: Series) -> None:
    [older], [path] = (
        snapshot_of(f"{join_uri(vectors(series, 0), '_manifest.json')}").values(),
        snapshot_of(join_uri(vectors(series), "_manifest.json")),
    )
    write(vectors(series), {path: older})


def registered(series: Series, number: int = -1) -> str:
    return release(series, number).registry_version


def artifact(series: Series) -> Path:
    """The registered model's weights, as the store of the tests has them: on a local disk."""
    client = MlflowClient()
    source = client.get_model_version(series.name, registered(series)).source
    location = client.get_logged_model(str(source).removeprefix("models:/")).artifact_location
    return Path(location.removeprefix("file://"), "artifacts/model/adapter.safetensors")


def _vectors(change: Change) -> Callable[[Series], object]:
    return lambda series: spoil(vectors(series), ".parquet", change)


def _manifest(change: Change) -> Callable[[Series], object]:
    return lambda series: spoil(vectors(series), "/_manifest.json", change)


def _model(name: str, change: Change, number: int = -1) -> Callable[[Series], object]:
    return lambda series: spoil(model(series, number), f"/{name}", change)


def _record(name: str, change: Change) -> Callable[[Series], object]:
    return lambda series: spoil(records(series), f"/{name}", change)


def _gone(of: Callable[[Series], str], name: str = "") -> Callable[[Series], object]:
    return lambda series: remove(join_uri(of(series), name) if name else of(series))


KINDS: dict[str, Kind] = {
    # CURRENT
    "CURRENT emptied": Kind(lambda one: spoil(one.published, "/CURRENT", empty), "CURRENT", REPAIRED, True),
    "CURRENT removed": Kind(lambda one: remove(join_uri(one.published, "CURRENT")), "CURRENT", REPAIRED, True),
    "CURRENT flipped": Kind(lambda one: spoil(one.published, "/CURRENT", flip), "CURRENT", REPAIRED),
    "CURRENT cut": Kind(lambda one: spoil(one.published, "/CURRENT", cut), "CURRENT", REPAIRED),
    "CURRENT without checksum": Kind(
        lambda one: point(one, lambda _: f"{release(one).version}\n".encode()), "CURRENT", REPAIRED
    ),
    "CURRENT of an older version": Kind(
        lambda one: point(one, lambda _: f"{release(one, 0).version}\n{release(one, 0).manifest}\n".encode()),
        "CURRENT: names v",
        REPAIRED,
        True,
    ),
    "CURRENT with another's checksum": Kind(
        lambda one: point(one, lambda _: f"{release(one).version}\n{release(one, 0).manifest}\n".encode()),
        "CURRENT",
        REPAIRED,
    ),
    "CURRENT of no version": Kind(lambda one: point(one, lambda _: b"v0077\n"), "CURRENT: names v0077", REPAIRED, True),
    "CURRENT of a copy": Kind(another_version, "CURRENT: names v0099", REPAIRED),
    "CURRENT garbage": Kind(lambda one: point(one, lambda _: bytes(range(256))), "CURRENT", REPAIRED),
    "CURRENT a folder": Kind(
        lambda one: folder_instead(join_uri(one.published, "CURRENT")), "CURRENT: cannot be read", REFUSED, True, True
    ),
    # the version in force
    "manifest removed": Kind(_gone(vectors, "_manifest.json"), "is no finished version", REPAIRED),
    "manifest cut": Kind(_manifest(cut), "_manifest.json", REPAIRED),
    "manifest emptied": Kind(_manifest(empty), "_manifest.json", REPAIRED),
    "manifest flipped": Kind(_manifest(flip), "_manifest.json", REPAIRED),
    "manifest edited": Kind(
        lambda one: edit(join_uri(vectors(one), "_manifest.json"), rows=1), "_manifest.json", REFUSED, True
    ),
    "manifest of an older version": Kind(older_manifest, "is no finished version", REPAIRED),
    "vectors removed": Kind(lambda one: remove(join_uri(vectors(one), parquet(vectors(one)))), "is missing", REPAIRED),
    "vectors cut": Kind(_vectors(cut), ".parquet: has ", REPAIRED),
    "vectors emptied": Kind(_vectors(empty), ".parquet: has 0 bytes", REPAIRED),
    "vectors flipped": Kind(_vectors(flip), ".parquet: is not as it was written", REPAIRED),
    "vectors longer": Kind(_vectors(longer), ".parquet: has ", REPAIRED),
    "vectors swapped": Kind(
        lambda one: swap_files(*(join_uri(vectors(one, number), parquet(vectors(one, number))) for number in (0, -1))),
        ".parquet: ",
        REPAIRED,
    ),
    "vectors a folder": Kind(
        lambda one: folder_instead(join_uri(vectors(one), parquet(vectors(one)))), "is missing", REPAIRED, False, True
    ),
    "vectors a link to itself": Kind(
        lambda one: link_to_itself(join_uri(vectors(one), parquet(vectors(one)))), ".parquet: ", REPAIRED, False, True
    ),
    "vectors added": Kind(lambda one: add(vectors(one), "more.parquet"), "but would be read", REFUSED, True),
    "a file added": Kind(lambda one: add(vectors(one), "notes.txt"), "notes.txt", REFUSED),
    "version removed": Kind(_gone(vectors), "is missing", REPAIRED),
    "version an older one": Kind(lambda one: copy_over(vectors(one, 0), vectors(one)), "no finished version", REPAIRED),
    "published folder removed": Kind(lambda one: remove(one.published), "is missing", REPAIRED),
    # a version that is kept for a rollback
    "older version removed": Kind(lambda one: remove(vectors(one, 0)), "is missing", REPAIRED),
    "older vectors flipped": Kind(lambda one: spoil(vectors(one, 0), ".parquet", flip), ".parquet: is not", REPAIRED),
    "older manifest cut": Kind(lambda one: spoil(vectors(one, 0), "/_manifest.json", cut), "_manifest", REPAIRED),
    "older vectors added": Kind(lambda one: add(vectors(one, 0), "more.parquet"), "more.parquet", REFUSED),
    # models
    "model flipped": Kind(_model("adapter.safetensors", flip), "adapter.safetensors", REPAIRED, True),
    "model removed": Kind(_gone(model, "adapter.safetensors"), "adapter.safetensors: is missing", REPAIRED),
    "model emptied": Kind(_model("adapter.safetensors", empty), "adapter.safetensors: has 0 bytes", REPAIRED),
    "model of another release": Kind(
        lambda one: swap_files(*(join_uri(model(one, number), "adapter.safetensors") for number in (0, -1))),
        "adapter.safetensors",
        REPAIRED,
        True,
    ),
    "model folder of another release": Kind(swap_models, "/model", REPAIRED),
    "model's config edited": Kind(_model("config.json", longer), "config.json", REPAIRED),
    "model's checksums removed": Kind(_gone(model, "SHA256SUMS"), "SHA256SUMS", REPAIRED),
    "model's card changed": Kind(_model("README.md", longer), "README.md", REPAIRED),
    "model folder removed": Kind(_gone(model), "is missing", REPAIRED),
    "model a link to itself": Kind(
        lambda one: link_to_itself(join_uri(model(one), "adapter.safetensors")), "adapter", REPAIRED, False, True
    ),
    "list of the model removed": Kind(_gone(run, "finished.json"), "finished.json", REPAIRED),
    "list of the model cut": Kind(lambda one: spoil(run(one), "/finished.json", cut), "finished.json", REPAIRED),
    "run folder removed": Kind(_gone(run), "is missing", REPAIRED),
    "a file added to the model": Kind(lambda one: add(model(one), "weights.bin"), "weights.bin", REFUSED),
    "older model flipped": Kind(_model("adapter.safetensors", flip, 0), "adapter.safetensors", REPAIRED),
    "older model's seen documents removed": Kind(
        lambda one: remove(join_uri(model(one, 0), "seen.safetensors")), "seen.safetensors", REPAIRED
    ),
    "older run folder removed": Kind(lambda one: remove(run(one, 0)), "is missing", REPAIRED),
    # records
    "releases cut": Kind(_record("releases.json", cut), "releases.json", REFUSED, True),
    "releases flipped": Kind(_record("releases.json", flip), "releases.json", REFUSED),
    "releases emptied": Kind(_record("releases.json", empty), "releases.json", REFUSED),
    "releases removed": Kind(_gone(records, "releases.json"), "releases.json: is missing", REFUSED, True),
    "releases edited": Kind(
        lambda one: edit(join_uri(records(one), "releases.json"), in_force=99), "has no release 99", REFUSED, True
    ),
    "releases a folder": Kind(
        lambda one: folder_instead(join_uri(records(one), "releases.json")), "cannot be read", REFUSED, False, True
    ),
    "last cycle removed": Kind(_gone(records, "cycles/0002.json"), "cycles/0002.json: is missing", REFUSED, True),
    "first cycle removed": Kind(_gone(records, "cycles/0001.json"), "cycles/0001.json: is missing", REFUSED),
    "last cycle cut": Kind(_record("cycles/0002.json", cut), "cycles/0002.json", REFUSED),
    "first cycle flipped": Kind(_record("cycles/0001.json", flip), "cycles/0001.json", REFUSED),
    "cycles swapped": Kind(
        lambda one: swap_files(*(join_uri(records(one), f"cycles/000{number}.json") for number in (1, 2))),
        "is the record of cycle",
        REFUSED,
        True,
    ),
    "cycles removed": Kind(_gone(records, "cycles"), "is missing", REFUSED, True),
    "reference flipped": Kind(_record("cycles/0002.safetensors", flip), "0002.safetensors", REFUSED),
    "reference removed": Kind(_gone(records, "cycles/0001.safetensors"), "0001.safetensors: is missing", REFUSED),
    "scores removed": Kind(_gone(records, "cycles/0002.queries.json"), "0002.queries.json: is missing", REFUSED),
    "registry's name cut": Kind(_record("registry.json", cut), "registry.json", REFUSED),
    "registry's name removed": Kind(_gone(records, "registry.json"), "registry.json: is missing", REPAIRED, True),
    "training cut": Kind(_record("training.json", cut), "training.json", REPAIRED, True),
    "a file added to the records": Kind(lambda one: add(records(one), "copy of releases.json"), "copy of", REFUSED),
    "lease garbage": Kind(lambda one: add(records(one), "lease.json"), "lease.json: is no lease", REFUSED),
    "records removed": Kind(_gone(records), "has no records", REFUSED, True),
    # MLflow's registry
    "alias removed": Kind(
        lambda one: MlflowClient().delete_registered_model_alias(one.name, "champion"), "@champion", REPAIRED, True
    ),
    "alias moved": Kind(
        lambda one: MlflowClient().set_registered_model_alias(one.name, "champion", registered(one, 0)),
        "@champion: names version",
        REPAIRED,
        True,
    ),
    "registered version deleted": Kind(
        lambda one: MlflowClient().delete_model_version(one.name, registered(one)),
        "has no such version",
        REPAIRED,
        True,
    ),
    "older registered version deleted": Kind(
        lambda one: MlflowClient().delete_model_version(one.name, registered(one, 0)), "has no such version", REPAIRED
    ),
    "registered model deleted": Kind(
        lambda one: MlflowClient().delete_registered_model(one.name), "has no such version", REPAIRED
    ),
    "registered version's tag removed": Kind(
        lambda one: MlflowClient().delete_model_version_tag(one.name, registered(one), "smec.model_fingerprint"),
        "has no such version",
        REPAIRED,
    ),
    "registered files removed": Kind(lambda one: artifact(one).unlink(), "lacks artifacts/model", REPAIRED, True),
    "logged model deleted": Kind(
        lambda one: MlflowClient().delete_logged_model(artifact(one).parents[2].parent.name),
        "has lost its logged model",
        REPAIRED,
    ),
    "registered files cut": Kind(lambda one: artifact(one).write_bytes(b"cut"), "has 3 bytes", REPAIRED),
}
