"""`smec status` and `smec clean` beside a job of the series that runs, was killed, or works on another machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray

from pipelines.retrain.ledger import Ledger
from pipelines.storage import lease
from pipelines.storage.lease import LEASE, Holder, Lease
from pipelines.storage.run_folder import RunFolder
from smec_core.data.parquet import write_embeddings
from smec_core.errors import DamagedError, GateError, InputError, LeaseError
from tests.kills import REPOSITORY
from tests.pipelines.retrain.damages import flip
from tests.pipelines.retrain.series import Series
from tests.pipelines.retrain.test_cycles import released_twice
from tests.pipelines.retrain.test_status import cleaned, look, smec

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """A series that has released twice."""
    return released_twice(tmp_path_factory.mktemp("beside"))


TO_AND_FRO = """
import sys
from pathlib import Path
from pipelines.cli.settings import resolve
from pipelines.retrain import rollback
from pipelines.retrain.settings import RollbackSettings

print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    for version in ("v0001", "v0002"):
        rollback.run(resolve(RollbackSettings, {"to": version}, Path(sys.argv[1])))
"""


@contextmanager
def releasing(series: Series, times: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that puts one release after the other in force."""
    process = subprocess.Popen(
        [sys.executable, "-c", TO_AND_FRO, str(series.config), str(times)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=series.folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


def test_beside_a_running_release_nothing_is_damaged(series: Series) -> None:
    said = []
    with releasing(series, 15) as process:
        while process.poll() is None:
            said.append(look(series))
    assert len(said) > 5
    assert {one["in_force"]["version"] for one in said} == {"v0001", "v0002"}
    assert any(one["held_by"] for one in said)
    assert all(one["next"] == "wait: a job works on the series" for one in said if one["held_by"])
    assert look(series)["damages"] == []


def test_what_is_damaged_for_sure_is_said_beside_a_running_job_and_what_that_mends_is_not(series: Series) -> None:
    current, release = series.output / "CURRENT", series.storage / series.name / "releases.json"
    with Lease(RunFolder(series.stored, series.name), lambda: None):
        kept = current.read_bytes()
        current.unlink()
        said = look(series)
        current.write_bytes(kept)
        assert said["damages"] == [] and said["next"] == "wait: a job works on the series"
        kept = release.read_bytes()
        release.write_bytes(flip(kept))
        with pytest.raises(DamagedError, match="fix what smec retrain cannot"):
            look(series)
        release.write_bytes(kept)
        with pytest.raises(LeaseError, match=rf"is being worked on by process {os.getpid()} .*; wait for it"):
            cleaned(series, dry_run=True)


def lease_of(series: Series, run: str, host: str) -> Path:
    """A lease that a process of another machine has left behind."""
    path = series.storage / run / LEASE
    holder = Holder.this_process()._replace(host=host, until="2026-01-31T12:01:00.000+00:00")
    RunFolder(series.stored, run).write(LEASE, holder._asdict())
    return path


def test_a_holder_elsewhere_that_gives_no_sign_of_life_is_told_of(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "elsewhere")
        living = Lease(RunFolder(series.stored, series.name), lambda: None)
    with living:
        said = look(series)
        assert said["next"].startswith("wait") and said["silent_since"] is None and "elsewhere" in said["held_by"]
    monkeypatch.setattr(lease, "TTL_SECONDS", 1.0)
    left = lease_of(series, series.name, "elsewhere")
    said = look(series)
    left.unlink()
    assert "elsewhere" in said["held_by"] and said["silent_since"] == "2026-01-31T12:00:59+00:00"
    assert said["next"].startswith("check process") and "then run smec retrain, which takes over" in said["next"]
    # nobody works on it, so that all can be told
    assert said["leftover_bytes"] is not None


def test_an_anchor_that_names_no_release_is_said_with_all_else(series: Series) -> None:
    done = smec(series, "status", "--set", "gate.anchor=v0009")
    assert done.returncode == 2
    assert "v0002 with model" in done.stderr
    wrong = (
        f"gate.anchor: no release has version v0009; those of {series.name} that are kept in {series.output}: v0001, "
        "v0002; name one of them, or remove gate.anchor"
    )
    assert done.stderr.splitlines()[-1] == f"smec: {wrong}"
    with pytest.raises(InputError) as refused:
        series.retrain("gate.anchor=v0009")
    assert str(refused.value) == wrong


BEFORE_IT_DECIDES = """
import os, signal, sys
from pathlib import Path
from pipelines.cli.settings import resolve
from pipelines.retrain import job
from pipelines.retrain.ledger import Ledger
from pipelines.retrain.settings import RetrainSettings

Ledger.write_cycle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
job.run(resolve(RetrainSettings, {}, Path(sys.argv[1])))
"""


def kill_before_it_decides(series: Series) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", BEFORE_IT_DECIDES, str(series.config)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        cwd=series.folder,
        text=True,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_what_an_interrupted_cycle_goes_on_with_is_not_cleaned(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    new_ND = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    write_embeddings(str(series.data / "corpus/part-9.parquet"), [f"new{row}" for row in range(20)], new_ND)
    series.configure("gate", min_gain=0.5)
    kill_before_it_decides(series)

    # the corpus as it is now, by the champion: the challenger is refused
    made = series.output / "v0003" / "_manifest.json"
    inode = made.stat().st_ino
    cleaned_first = cleaned(series)
    run = Ledger(RunFolder(series.stored, series.name)).training()
    assert run is not None
    assert cleaned_first["removed"] == []
    assert {str(made.parent), str(series.storage / run[0])} <= {one["path"] for one in cleaned_first["left"]}
    with pytest.raises(GateError, match="with the corpus as it is now in v0003"):
        series.retrain()
    assert made.stat().st_ino == inode and series.version == "v0003"

    # the next cycle has the same training
    series.configure("gate", min_gain=0.6)
    kill_before_it_decides(series)
    assert cleaned(series)["removed"] == []
    with pytest.raises(GateError):
        series.retrain()

    # a machine that has died with the lease of a training does not keep it for ever
    monkeypatch.setattr(lease, "TTL_SECONDS", 1.0)
    lease_of(series, run[0], "elsewhere")
    assert {one["path"] for one in cleaned(series)["removed"]} >= {str(series.storage / run[0])}
    assert look(series)["damages"] == []
