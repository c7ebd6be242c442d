"""`smec status` and `smec clean`: what they say of a series, what goes and what stays, also after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.cli.settings import resolve
from pipelines.retrain import clean, status
from pipelines.retrain.ledger import Ledger
from pipelines.retrain.settings import CleanSettings, StatusSettings
from pipelines.storage.lease import Lease
from pipelines.storage.run_folder import RunFolder
from smec_core.errors import DamagedError, GateError, LeaseError
from smec_core.folders import NEW
from smec_core.temporary import make_folder, temporary_folder
from tests.kills import REPOSITORY
from tests.pipelines.retrain.damages import artifact, flip, spoil
from tests.pipelines.retrain.series import Series
from tests.pipelines.retrain.test_cycles import begun, released_twice

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """A series that has released twice."""
    return released_twice(tmp_path_factory.mktemp("standing"))


def smec(series: Series, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments, "--config", str(series.config)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=series.folder,
        text=True,
        capture_output=True,
    )


def look(series: Series, deep: bool = False) -> dict[str, Any]:
    return status.run(resolve(StatusSettings, {"deep": deep}, series.config))


def cleaned(series: Series, dry_run: bool = False, *assignments: str) -> dict[str, Any]:
    return clean.run(resolve(CleanSettings, {"dry_run": dry_run}, series.config, assignments))


def test_what_is_said_of_a_whole_series(series: Series, tmp_path: Path) -> None:
    before = series.tree()
    file = tmp_path / "status.json"
    done = smec(series, "status", "--deep", "--json", str(file))
    assert done.returncode == 0, done.stderr
    said = json.loads(file.read_text())
    champion = series.champion
    assert champion is not None
    assert said["in_force"]["version"] == "v0002" and said["in_force"]["registry_version"] == str(champion.version)
    assert said["in_force"]["since"] >= said["in_force"]["decided"]
    assert said["in_force"]["model"] == said["anchor"]["model"] == champion.tags["smec.model_fingerprint"]
    assert [cycle["outcome"] for cycle in said["cycles"]] == ["promoted", "promoted"]
    assert said["drift"]["mean_shift"] == 0
    assert said["damages"] == [] and said["next"] == "nothing, until data or settings are new"
    assert "v0002 with model" in done.stderr and "next: nothing" in done.stderr
    # it has only looked
    assert series.tree() == before


def test_a_damaged_series_ends_it_with_2_and_says_all_the_same(series: Series, tmp_path: Path) -> None:
    file, current = tmp_path / "status.json", series.output / "CURRENT"
    kept = current.read_bytes()
    current.unlink()
    try:
        done = smec(series, "status", "--json", str(file))
    finally:
        current.write_bytes(kept)
    assert done.returncode == 2
    [damage] = json.loads(file.read_text())["damages"]
    assert damage["path"].endswith("vectors/CURRENT") and damage["problem"] == "is missing" and damage["is_mended"]
    assert "CURRENT: is missing; smec retrain puts it back" in done.stderr


def test_new_data_are_seen_and_a_running_job_is_named(series: Series) -> None:
    part = next(iter((series.data / "qrels").glob("train*")))
    kept = part.stat()
    os.utime(part)
    assert look(series)["next"] == "run smec retrain: files of the data are not those of cycle 2"
    os.utime(part, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    # asked for once: what is written anew is looked at, and known from then on
    assert series.retrain()["outcome"] == "unchanged"
    assert look(series)["next"] == "nothing, until data or settings are new"
    assert series.retrain()["outcome"] == "nothing new"
    with Lease(RunFolder(series.stored, series.name), lambda: None):
        said = look(series)
        assert said["next"] == "wait: a job works on the series" and str(os.getpid()) in said["held_by"]
        with pytest.raises(LeaseError):
            cleaned(series)


def test_what_size_and_stamp_do_not_tell_is_found_by_all_bytes(series: Series) -> None:
    file = artifact(series)
    kept = file.read_bytes()
    file.write_bytes(flip(kept))
    try:
        assert look(series)["damages"] == []
        with pytest.raises(DamagedError) as found:
            look(series, deep=True)
    finally:
        file.write_bytes(kept)
    assert found.value.figures is not None
    [damage] = found.value.figures["damages"]
    assert damage["problem"] == "is not the model that was registered" and "adapter.safetensors" in damage["cure"]


def left_folder(place: Path) -> Path:
    """A folder as a killed process leaves it."""
    with temporary_folder(place, ".", NEW) as left:
        pass
    left.mkdir()
    (left / "part.parquet").write_bytes(b"PAR1")
    return left


def litter(series: Series) -> tuple[set[str], set[str]]:
    """What killed runs leave, and what only looks so: paths of what is to go, and of what stays."""
    ledger = Ledger(RunFolder(series.stored, series.name))
    champion = ledger.releases().champion
    assert champion is not None
    run = series.storage / champion.run
    half_trained = series.storage / f"{series.name}-0123456789"
    shutil.copytree(run, half_trained)
    copied = series.output / "v0077"
    shutil.copytree(series.output / "v0002", copied)
    (run / f"{run.name}.start-1").mkdir()
    (run / f"{run.name}.start-1" / "checkpoint").write_bytes(b"of a killed run")
    reference = series.storage / series.name / "cycles"
    shutil.copy(reference / "0002.safetensors", reference / "0009.safetensors")
    foreign = series.output / "v0088"
    foreign.mkdir()
    (foreign / "plan.json").write_text('{"model": "/somewhere/else/model"}')
    half_written = series.output / "CURRENT.0123abcd.tmp"
    half_written.write_bytes(b"v00")
    os.utime(half_written, (0, 0))
    fresh = series.output / "CURRENT.4567abcd.tmp"
    fresh.write_bytes(b"v00")
    of_the_dead = left_folder(series.output)
    of_the_living = make_folder(series.output, ".", NEW)
    go = {copied, run / f"{run.name}.start-1", half_written, of_the_dead}
    # a folder that is not named as its own record says, data of a cycle that has not decided, another's version
    stay = {
        half_trained,
        reference / "0009.safetensors",
        foreign,
        fresh,
        of_the_living,
        series.output / "v0001",
        series.output / "v0002",
    }
    return {str(path) for path in go}, {str(path) for path in stay}


def test_what_is_not_needed_goes_and_all_else_stays(series: Series) -> None:
    go, stay = litter(series)
    versions = len(MlflowClient().search_model_versions(f"name = '{series.name}'"))
    before = series.tree()

    told = cleaned(series, dry_run=True)
    assert series.tree() == before
    assert {one["path"] for one in told["removed"]} == go
    assert told["bytes"] == sum(one["bytes"] for one in told["removed"]) > 0
    assert look(series)["leftover_bytes"] == told["bytes"]

    # killed on its way, and run again
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(series.config)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=series.folder,
        text=True,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert look(series)["damages"] == []
    assert not (series.output / "v0077" / "_manifest.json").exists()
    rest = cleaned(series)
    assert {one["path"] for one in rest["removed"]} == go
    assert not any(Path(path).exists() for path in go)
    assert all(Path(path).exists() for path in stay)
    assert cleaned(series)["removed"] == []
    assert look(series)["damages"] == []
    assert series.retrain()["outcome"] == "nothing new"
    assert len(MlflowClient().search_model_versions(f"name = '{series.name}'")) == versions
    for path in (series.output / "v0088", series.storage / f"{series.name}-0123456789"):
        shutil.rmtree(path)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.cli.settings import resolve
from pipelines.retrain import clean
from pipelines.retrain.settings import CleanSettings
from pipelines.storage import publish

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

# after the version's manifest is gone, before its folder
publish.remove_folder = kill
clean.run(resolve(CleanSettings, {}, Path(sys.argv[1])))
"""


def test_a_damaged_series_is_not_cleaned(series: Series) -> None:
    before = spoil(series.published, "/CURRENT", flip)
    try:
        with pytest.raises(DamagedError, match="CURRENT"):
            cleaned(series)
    finally:
        for path, content in before.items():
            Path(path).write_bytes(content)


def test_without_records_nothing_is_cleaned(tmp_path: Path) -> None:
    series = Series(tmp_path)
    series.output.mkdir()
    left = left_folder(series.output)
    with pytest.raises(DamagedError, match=f"has no records of {series.name}, but {left} is there; restore the folder"):
        cleaned(series)
    assert left.exists()


def test_older_releases_go_when_fewer_are_to_be_kept_but_not_the_anchor(tmp_path: Path) -> None:
    series = begun(tmp_path)
    series.judge(1)
    assert series.retrain()["outcome"] == "promoted"
    ledger = Ledger(RunFolder(series.stored, series.name))
    releases = ledger.releases()
    ledger.write_releases(releases._replace(anchor=1))
    assert cleaned(series, False, "publish.keep=1")["removed"] == []
    ledger.releases()
    ledger.write_releases(releases)
    [version, run, data] = cleaned(series, False, "publish.keep=1")["removed"]
    first = releases.releases[0]
    assert version["path"] == str(series.output / "v0001") and run["path"] == str(series.storage / first.run)
    assert data["path"].endswith("cycles/0001.safetensors")
    assert [one.version for one in ledger.releases().releases] == ["v0002"]
    assert look(series)["damages"] == []
    # nor is the training of a refused challenger needed
    series.judge(1, ("train",))
    with pytest.raises(GateError) as refused:
        series.retrain("publish.keep=1")
    [run] = cleaned(series, False, "publish.keep=1")["removed"]
    assert run["path"] == str(series.storage / refused.value.figures["run"])
    assert series.check_whole() == releases.releases[1].fingerprint
