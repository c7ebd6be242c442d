"""What is in force is compared with its record at every start: it is repaired, or the start ends with exit code 2."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines.cli.settings import resolve
from pipelines.retrain import status
from pipelines.retrain.settings import StatusSettings
from pipelines.verify import job as verify
from pipelines.verify.settings import VerifySettings
from smec_core.data.uri import open_filesystem
from smec_core.errors import DamagedError
from tests.conftest import new_bucket
from tests.pipelines.retrain.damages import KINDS, REFUSED, REPAIRED, flip, model, remove, spoil, vectors
from tests.pipelines.retrain.series import Series
from tests.pipelines.retrain.test_cycles import begun
from tests.pipelines.storage.test_damage import snapshot, write

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def _released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Series]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}")
        yield {}


@pytest.fixture
def released(
    request: pytest.FixtureRequest, _released: dict[str, Series], tmp_path_factory: pytest.TempPathFactory
) -> Series:
    """A series with two releases, on disk or on S3, in an MLflow store of the module's own; the tests share it."""
    if request.param not in _released:
        s3 = new_bucket(request.getfixturevalue("_s3_address")) if request.param == "s3" else None
        series = begun(tmp_path_factory.mktemp("released") / "series", s3)
        series.judge(1)
        assert series.retrain()["outcome"] == "promoted"
        _released[request.param] = series
    return _released[request.param]


def looked_at(series: Series, deep: bool = False) -> dict[str, Any]:
    """What `smec status` says; of a damaged series what it says all the same."""
    settings = resolve(StatusSettings, {"deep": deep}, series.config)
    try:
        return status.run(settings)
    except DamagedError as error:
        assert error.exit_code == 2
        assert error.figures is not None and error.figures["damages"]
        return dict(error.figures)


def left_of(uri: str) -> dict[str, bytes]:
    """All files of a folder, which may be gone."""
    try:
        return snapshot(uri)
    except FileNotFoundError:
        return {}


def restore(series: Series, files: dict[str, dict[str, bytes]]) -> None:
    for uri, content in files.items():
        with suppress(FileNotFoundError):
            remove(uri)
        filesystem, root = open_filesystem(uri)
        filesystem.create_dir(root)
        write(uri, content)


QUICK_ON_S3 = ("CURRENT removed", "vectors flipped", "model flipped", "releases removed")


def kinds() -> Iterator[Any]:
    """Each kind in both places; of those on S3 only a few are in every run."""
    for name, kind in KINDS.items():
        is_quick = kind.is_quick or name == "vectors flipped"
        yield pytest.param("disk", name, marks=[] if is_quick else pytest.mark.slow)
        if not kind.on_disk_only:
            yield pytest.param("s3", name, marks=[] if name in QUICK_ON_S3 else pytest.mark.slow)


@pytest.mark.parametrize(("released", "kind"), kinds(), indirect=["released"])
def test_each_kind_of_damage_is_named_and_repaired_or_refused(released: Series, kind: str) -> None:
    fingerprint = released.check_whole()
    assert looked_at(released)["damages"] == []
    files = {uri: snapshot(uri) for uri in (released.stored, released.published)}
    KINDS[kind].damage(released)
    spoilt = {uri: left_of(uri) for uri in files}

    said = looked_at(released)
    assert KINDS[kind].told in "\n".join(f"{one['path']}: {one['problem']}" for one in said["damages"])
    assert all(one["cure"] for one in said["damages"])
    # it has only looked
    assert {uri: left_of(uri) for uri in files} == spoilt

    if KINDS[kind].end == REFUSED:
        try:
            with pytest.raises(DamagedError) as refused:
                released.retrain()
            assert refused.value.exit_code == 2
            assert {uri: left_of(uri) for uri in files} == spoilt
        finally:
            restore(released, files)
    else:
        assert said["next"] == "run smec retrain, which fixes this"
        record = released.retrain()
        assert record["outcome"] == "repaired"
        assert KINDS[kind].told in "\n".join(record["repaired"])
        verify.run(VerifySettings(path=vectors(released)))
        verify.run(VerifySettings(path=model(released)))
    assert released.check_whole() == fingerprint
    assert looked_at(released)["damages"] == []
    # once is enough
    assert released.retrain()["outcome"] == "nothing new"
    champion = released.champion
    assert champion is not None and champion.tags["smec.model_fingerprint"] == fingerprint


def test_there_are_fifty_kinds() -> None:
    assert len(KINDS) >= 50
    assert {kind.end for kind in KINDS.values()} == {REPAIRED, REFUSED}


@pytest.mark.parametrize("released", ["disk", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_a_model_of_which_no_copy_is_left_is_named_and_stays_as_it_is(
    released: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(released)
    whole, spoilt = spoil(folder, "/adapter.safetensors", flip), snapshot(folder)
    fetched = Path(mlflow.artifacts.download_artifacts(f"models:/{released.name}@champion"))
    [copy] = fetched.rglob("adapter.safetensors")
    kept = copy.read_bytes()
    copy.write_bytes(flip(kept))
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda *_, **__: str(copy.parent))
    with pytest.raises(
        DamagedError, match=r"adapter\.safetensors: .*or return to an earlier release \(smec rollback\)"
    ):
        released.retrain()
    assert snapshot(folder) == spoilt
    write(folder, whole)
    copy.write_bytes(kept)


@pytest.mark.slow
def test_a_release_that_is_damaged_can_be_left_for_an_earlier_one(tmp_path: Path) -> None:
    series = begun(tmp_path)
    series.judge(1)
    assert series.retrain()["outcome"] == "promoted"
    shutil.rmtree(series.output / "v0002")
    with pytest.raises(DamagedError, match=r"v0001/.*: is missing"):
        next((series.output / "v0001").glob("*.parquet")).rename(tmp_path / "kept")
        series.rollback(to="v0001")
    # nothing was decided
    assert series.retrain()["outcome"] == "repaired"
    assert series.champion is not None
    assert series.check_whole() == series.champion.tags["smec.model_fingerprint"]


@pytest.mark.slow
def test_a_rollback_leaves_vectors_that_are_gone(tmp_path: Path) -> None:
    series = begun(tmp_path)
    first = series.check_whole()
    series.judge(1)
    assert series.retrain()["outcome"] == "promoted"
    shutil.rmtree(series.output / "v0002")
    assert series.rollback(to="v0001")["version"] == "v0001"
    assert series.check_whole() == first
