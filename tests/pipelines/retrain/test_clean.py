"""What `smec clean` and `smec status` find of a series whose runs processes of other machines have left."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.retrain.clean import leftovers
from pipelines.retrain.ledger import Ledger
from pipelines.retrain.settings import RetrainSettings
from pipelines.storage import lease
from pipelines.storage.lease import LEASE, TTL_SECONDS, WATCH_SECONDS, Holder
from pipelines.storage.run_folder import IDENTITY_FILE, RunFolder, digest


def test_holders_that_may_be_dead_are_watched_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = str(tmp_path / "storage")
    settings = RetrainSettings.model_validate(
        {
            "name": "nightly",
            "data": str(tmp_path / "data"),
            "storage": storage,
            "train": {"dims": [8]},
            "publish": {"output": str(tmp_path / "vectors"), "dim": [8]},
        }
    )
    runs = []
    for number in range(4):
        identity = {"hold_out": 0.2, "seed": number}
        run = RunFolder(storage, f"nightly-{digest(identity)}")
        run.create()
        run.write(IDENTITY_FILE, identity)
        run.write(LEASE, Holder.this_process()._replace(host=f"gone-{number}")._asdict())
        runs.append(run)
    living, holder = runs[-1], Holder.this_process()._replace(host="alive")
    living.write(LEASE, holder._asdict())
    started = now = time.monotonic()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now - started > TTL_SECONDS / 2:
            living.write(LEASE, holder._replace(until=str(now))._asdict())

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep, time=time.time)
    monkeypatch.setattr(lease, "time", clock)
    monkeypatch.setattr("pipelines.retrain.clean.time", clock)
    removed, left = leftovers(settings, Ledger(RunFolder(storage, "nightly")))
    assert {one.path for one in removed} == {run.uri for run in runs[:-1]}
    assert [(one.path, "is held by" in one.why) for one in left] == [(living.uri, True)]
    # of the clock that only their sleeping moves on
    assert now - started <= TTL_SECONDS + 2 * WATCH_SECONDS
