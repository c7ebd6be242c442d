"""A series that no cycle has begun: looking at it makes nothing."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli.settings import resolve
from pipelines.retrain import clean, status
from pipelines.retrain.settings import CleanSettings, StatusSettings
from pipelines.storage.lease import LEASE, Holder
from pipelines.storage.run_folder import RunFolder
from smec_core.errors import DamagedError, InputError, LeaseError
from smec_core.yaml_file import dump, read_mapping
from tests.pipelines.retrain.series import Series


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Series:
    """A series whose MLflow has no database yet."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Series(tmp_path)


def look(series: Series) -> object:
    return status.run(resolve(StatusSettings, {}, series.config))["next"]


def dry_run(series: Series) -> object:
    return clean.run(resolve(CleanSettings, {"dry_run": True}, series.config))["bytes"]


def rollback(series: Series) -> object:
    with pytest.raises(InputError, match="nothing was released yet, so there is nothing to return to"):
        series.rollback()
    assert not series.storage.exists(), "a name that is none leaves nothing behind"
    return None


@pytest.mark.parametrize(
    ("job", "said"), [(look, "run smec retrain, which trains the first model"), (dry_run, 0), (rollback, None)]
)
def test_no_database_is_made(series: Series, job: Callable[[Series], object], said: object) -> None:
    assert job(series) == said
    assert not (series.folder / "mlflow.db").exists()


def test_a_clean_holds_the_lease_of_a_series_and_makes_no_folder_for_a_name_that_is_none(series: Series) -> None:
    settings = resolve(CleanSettings, {}, series.config)
    assert clean.run(settings)["bytes"] == 0
    assert not series.storage.exists()
    folder = RunFolder(str(series.storage), series.name)
    folder.create()
    folder.write(LEASE, Holder.this_process()._asdict())
    with pytest.raises(LeaseError, match=rf"series {series.name} is being worked on by process"):
        clean.run(settings)


@pytest.mark.parametrize("job", [look, dry_run])
def test_where_it_was_looked_is_said(
    series: Series, job: Callable[[Series], object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A relative storage counts from the working directory, which may be another one than that of the series."""
    series.config.write_text(dump({**read_mapping(series.config), "storage": "storage"}))
    elsewhere = series.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with caplog.at_level(logging.INFO):
        job(series)
    assert f"{elsewhere}/storage/{series.name}" in caplog.text


@pytest.mark.parametrize("job", [look, dry_run])
def test_a_database_that_is_gone_is_named_and_not_made_anew(series: Series, job: Callable[[Series], object]) -> None:
    cycles = series.storage / series.name / "cycles"
    cycles.mkdir(parents=True)
    (cycles / "0001.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"mlflow\.db: is missing; restore it"):
        job(series)
    assert not (series.folder / "mlflow.db").exists()


def test_a_damaged_record_of_the_last_cycle_keeps_nobody_from_naming_a_release(series: Series) -> None:
    cycles = series.storage / series.name / "cycles"
    cycles.mkdir(parents=True)
    (cycles / "0001.json").write_text("{")
    with pytest.raises(DamagedError, match="name a release with --to"):
        series.rollback()
    with pytest.raises(InputError, match="nothing was released yet"):
        series.rollback("v0001")


@pytest.mark.parametrize("uri", ["sqlite:/x.db", "postgresql:/x", "mysql+pymysql:x"])
@pytest.mark.parametrize("job", [look, dry_run, Series.rollback, Series.retrain])
def test_no_address_of_a_store_is_refused(
    series: Series, job: Callable[[Series], object], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=rf"{re.escape(uri[:6])}.*; name another store in MLFLOW_TRACKING_URI"):
        job(series)
