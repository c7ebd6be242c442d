"""What is in force is compared with its record at every start: it is repaired, or the start ends with exit code 2."""

import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from pipelines.retrain.ledger import Ledger
from pipelines.storage.run_folder import RunFolder
from pipelines.verify import job as verify
from pipelines.verify.settings import VerifySettings
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.errors import DamagedError
from smec_core.model.files import load
from tests.conftest import new_bucket
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
    """A series with one release, on disk or on S3, in an MLflow store of the module's own; the tests share it."""
    if request.param not in _released:
        s3 = new_bucket(request.getfixturevalue("_s3_address")) if request.param == "s3" else None
        _released[request.param] = begun(tmp_path_factory.mktemp("released") / "series", s3)
    return _released[request.param]


def on_disk_and_s3(cases: Collection[Any], quick: Collection[Any]) -> list[Any]:
    """Each case in both places; of those on S3 only the quick ones are not slow."""
    on_s3 = [pytest.param("s3", case, marks=[] if case in quick else pytest.mark.slow) for case in cases]
    return [*(("disk", case) for case in cases), *on_s3]


def vectors(series: Series) -> str:
    return join_uri(series.published, series.version)


def model(series: Series) -> str:
    champion = Ledger(RunFolder(series.stored, series.name)).releases().champion
    assert champion is not None
    return RunFolder(series.stored, champion.run).model_uri


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    spoilt = bytearray(content)
    spoilt[len(spoilt) // 2] ^= 1
    return bytes(spoilt)


def empty(content: bytes) -> bytes:
    return b""


def spoil(folder: str, ending: str, change: Callable[[bytes], bytes]) -> dict[str, bytes]:
    """Changes the first file of a folder whose name ends so; gives what it held."""
    path, content = min(file for file in snapshot(folder).items() if file[0].endswith(ending))
    write(folder, {path: change(content)})
    return {path: content}


def remove(uri: str) -> None:
    filesystem, path = open_filesystem(uri)
    (filesystem.delete_file if filesystem.get_file_info(path).is_file else filesystem.delete_dir)(path)


def another_version(series: Series) -> None:
    """A copy of a version is in force."""
    version = series.version
    for path, content in snapshot(vectors(series)).items():
        write(series.published, {path.replace(f"/{version}/", "/v0099/"): content})
    spoil(series.published, "/CURRENT", lambda _: b"v0099\n")


def without_alias(series: Series) -> None:
    MlflowClient().delete_registered_model_alias(series.name, "champion")


def without_version(series: Series) -> None:
    assert series.champion is not None
    MlflowClient().delete_model_version(series.name, series.champion.version)


DAMAGES: dict[str, Callable[[Series], object]] = {
    "CURRENT emptied": lambda series: spoil(series.published, "/CURRENT", empty),
    "CURRENT removed": lambda series: remove(join_uri(series.published, "CURRENT")),
    "CURRENT flipped": lambda series: spoil(series.published, "/CURRENT", flip),
    "CURRENT names another": another_version,
    "version removed": lambda series: remove(vectors(series)),
    "published folder removed": lambda series: remove(series.published),
    "vectors cut": lambda series: spoil(vectors(series), ".parquet", cut),
    "vectors flipped": lambda series: spoil(vectors(series), ".parquet", flip),
    "manifest removed": lambda series: remove(join_uri(vectors(series), "_manifest.json")),
    "manifest cut": lambda series: spoil(vectors(series), "/_manifest.json", cut),
    "model flipped": lambda series: spoil(model(series), "/adapter.safetensors", flip),
    "model removed": lambda series: remove(model(series)),
    "alias gone": without_alias,
    "version gone": without_version,
}
QUICK = ("CURRENT removed", "vectors flipped", "model flipped")


@pytest.mark.parametrize(("released", "damage"), on_disk_and_s3(DAMAGES, QUICK), indirect=["released"])
def test_what_is_in_force_is_made_whole_again(
    released: Series, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = released.check_whole()
    DAMAGES[damage](released)
    assert released.retrain()["outcome"] == "nothing new"
    told = capsys.readouterr().err
    assert "warning: " in told
    assert released.check_whole() == fingerprint
    verify.run(VerifySettings(path=vectors(released)))
    verify.run(VerifySettings(path=model(released)))
    assert load(model(released)).fingerprint == fingerprint
    champion = released.champion
    assert champion is not None
    assert champion.tags["smec.model_fingerprint"] == fingerprint
    # once is enough
    assert released.retrain()["outcome"] == "nothing new"
    assert "warning: " not in capsys.readouterr().err


RECORDS = [(name, change) for name in ("releases.json", "cycles/0001.json", "registry.json") for change in (cut, flip)]


@pytest.mark.parametrize(
    ("released", "record"),
    on_disk_and_s3(RECORDS, [("releases.json", flip)]),
    indirect=["released"],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}-{value[1].__name__}",
)
def test_a_damaged_record_is_named_and_nothing_is_done(
    released: Series, record: tuple[str, Callable[[bytes], bytes]]
) -> None:
    (name, change), folder = record, join_uri(released.stored, released.name)
    before, whole = released.check_whole(), spoil(folder, f"/{name}", change)
    try:
        with pytest.raises(DamagedError, match=name) as refused:
            released.retrain()
        assert refused.value.exit_code == 2
    finally:
        write(folder, whole)
    assert released.check_whole() == before
    assert released.retrain()["outcome"] == "nothing new"


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


def test_a_release_that_is_damaged_can_be_left_for_an_earlier_one(tmp_path: Path) -> None:
    series = begun(tmp_path)
    series.judge(1)
    assert series.retrain()["outcome"] == "promoted"
    shutil.rmtree(series.output / "v0002")
    with pytest.raises(DamagedError, match=r"v0001/.*: is missing"):
        next((series.output / "v0001").glob("*.parquet")).rename(tmp_path / "kept")
        series.rollback(to="v0001")
    # nothing was decided
    assert series.retrain()["outcome"] == "nothing new"
    assert series.champion is not None
    assert series.check_whole() == series.champion.tags["smec.model_fingerprint"]


def test_a_rollback_leaves_vectors_that_are_gone(tmp_path: Path) -> None:
    series = begun(tmp_path)
    first = series.check_whole()
    series.judge(1)
    assert series.retrain()["outcome"] == "promoted"
    shutil.rmtree(series.output / "v0002")
    assert series.rollback(to="v0001")["version"] == "v0001"
    assert series.check_whole() == first
