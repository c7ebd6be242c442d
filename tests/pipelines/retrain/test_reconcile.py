"""What is in force is compared with its record at every start: it is repaired, or the start ends with exit code 2."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipelines.verify import job as verify
from pipelines.verify.settings import VerifySettings
from smec_core.checksums import check_folder
from smec_core.errors import DamagedError
from smec_core.model.files import load
from tests.pipelines.retrain.series import Series
from tests.pipelines.retrain.test_cycles import begun

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Series]:
    """A series with one release, in an MLflow store of its own."""
    folder = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield begun(folder / "series")


def current_file(series: Series) -> Path:
    return series.output / "CURRENT"


def vectors(series: Series) -> Path:
    return series.output / series.version


def model(series: Series) -> Path:
    [found] = series.storage.glob("*/model")
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def another_version(series: Series) -> None:
    """A copy of a version is in force."""
    shutil.copytree(vectors(series), series.output / "v0099")
    current_file(series).write_text("v0099\n")


def without_alias(series: Series) -> None:
    MlflowClient().delete_registered_model_alias(series.name, "champion")


def without_version(series: Series) -> None:
    assert series.champion is not None
    MlflowClient().delete_model_version(series.name, series.champion.version)


DAMAGES: dict[str, Callable[[Series], object]] = {
    "CURRENT emptied": lambda series: current_file(series).write_text(""),
    "CURRENT removed": lambda series: current_file(series).unlink(),
    "CURRENT flipped": lambda series: flip(current_file(series)),
    "CURRENT names another": another_version,
    "version removed": lambda series: shutil.rmtree(vectors(series)),
    "published folder removed": lambda series: shutil.rmtree(series.output),
    "vectors cut": lambda series: cut(next(vectors(series).glob("*.parquet"))),
    "vectors flipped": lambda series: flip(next(vectors(series).glob("*.parquet"))),
    "manifest removed": lambda series: (vectors(series) / "_manifest.json").unlink(),
    "manifest cut": lambda series: cut(vectors(series) / "_manifest.json"),
    "model flipped": lambda series: flip(model(series) / "adapter.safetensors"),
    "model removed": lambda series: shutil.rmtree(model(series)),
    "alias gone": without_alias,
    "version gone": without_version,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_in_force_is_made_whole_again(
    released: Series, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = released.check_whole()
    DAMAGES[damage](released)
    assert released.retrain()["outcome"] == "nothing new"
    told = capsys.readouterr().err
    assert "warning: " in told
    assert released.check_whole() == fingerprint
    verify.run(VerifySettings(path=str(vectors(released))))
    check_folder(model(released))
    assert load(model(released)).fingerprint == fingerprint
    champion = released.champion
    assert champion is not None
    assert champion.tags["smec.model_fingerprint"] == fingerprint
    # once is enough
    assert released.retrain()["outcome"] == "nothing new"
    assert "warning: " not in capsys.readouterr().err


RECORDS = ["releases.json", "cycles/0001.json", "registry.json"]


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("spoil", [cut, flip], ids=["cut", "flipped"])
def test_a_damaged_record_is_named_and_nothing_is_done(
    released: Series, name: str, spoil: Callable[[Path], None]
) -> None:
    path = released.storage / released.name / name
    content, before = path.read_bytes(), released.check_whole()
    spoil(path)
    try:
        with pytest.raises(DamagedError, match=name) as refused:
            released.retrain()
        assert refused.value.exit_code == 2
    finally:
        path.write_bytes(content)
    assert released.check_whole() == before
    assert released.retrain()["outcome"] == "nothing new"


def test_a_model_of_which_no_copy_is_left_is_named_and_stays_as_it_is(
    released: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(released) / "adapter.safetensors"
    content = path.read_bytes()
    flip(path)
    [copy] = list(Path(mlflow.artifacts.download_artifacts(f"models:/{released.name}@champion")).rglob(path.name))
    kept = copy.read_bytes()
    flip(copy)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda *_, **__: str(copy.parent))
    with pytest.raises(
        DamagedError, match=r"adapter\.safetensors: .*or return to an earlier release \(smec rollback\)"
    ):
        released.retrain()
    path.write_bytes(content)
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
