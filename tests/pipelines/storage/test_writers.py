"""Two processes that write to one place, in every order: no commit is lost, and an older one never comes back."""

import gc
import posixpath
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.retrain.ledger import Ledger, Releases
from pipelines.storage.files import create_folder, new_file, swap
from pipelines.storage.publish import Draft, check_version, finished_version, promote, remove_version
from pipelines.storage.run_folder import RunFolder
from pipelines.verify import job as verify
from pipelines.verify.settings import VerifySettings
from smec_core.data.records import read_bytes
from smec_core.data.stored_files import StoredFile, describe
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.data.versions import current, in_force
from smec_core.errors import DamagedError, LeaseError, SmecError
from tests.kills import REPOSITORY
from tests.pipelines.retrain.test_ledger import release, series

PLAN = {"job": "test", "dim": 8, "model": "m", "model_fingerprint": "0123"}


@pytest.fixture
def out(storage: str) -> str:
    return join_uri(storage, "vectors")


def write(draft: Draft, text: str) -> list[StoredFile]:
    path = f"{draft.folder}/a.parquet"
    with new_file(draft.filesystem, path) as sink:
        sink.write(text.encode())
    return [describe(draft.filesystem, path, "a.parquet", len(text))]


def version(out: str, text: str, **changes: str) -> str:
    draft = Draft.open(out, {**PLAN, **changes})
    draft.finish(write(draft, text), {"rows": 1})
    return draft.name


def name_of(uri: str) -> str:
    return uri.partition("?")[0].rpartition("/")[2]


def test_of_many_that_swap_one_wins(out: str) -> None:
    uri = join_uri(out, "CURRENT")
    for seen, following in ((None, b"start"), (b"start", b"again"), (b"again", b"end")):
        gate = threading.Barrier(6)

        def race(racer: int, seen: bytes | None = seen, gate: threading.Barrier = gate) -> bytes | None:
            gate.wait()
            content = f"{racer}".encode()
            return content if swap(uri, seen, content) else None

        with ThreadPoolExecutor(6) as pool:
            [won] = [content for content in pool.map(race, range(6)) if content]
        assert in_force(out).content == won
        assert swap(uri, won, following)


def test_an_older_run_that_wakes_up_does_not_move_current_back(out: str) -> None:
    promote(out, version(out, "first", model="a"), in_force(out))
    older, seen = version(out, "older", model="b"), in_force(out)
    newer = version(out, "newer", model="c")
    promote(out, newer, in_force(out))
    with pytest.raises(SmecError, match=rf"{newer} in force meanwhile, and that stays; {older} is whole, run again"):
        promote(out, older, seen)
    assert name_of(current(out)) == newer
    # the next run of the older plan has seen it
    promote(out, older, in_force(out))
    assert name_of(current(out)) == older


def test_of_two_runs_of_one_plan_the_slower_leaves_what_is_in_force(out: str) -> None:
    slower = Draft.open(out, PLAN)
    faster = Draft.open(out, PLAN)
    assert slower.name == faster.name
    described = write(slower, "same")
    faster.finish(write(faster, "same"), {"rows": 1})
    promote(out, faster.name, in_force(out))
    with pytest.raises(SmecError, match="another run published or replaced this version"):
        slower.finish(described, {"rows": 1})
    slower.discard()
    assert name_of(current(out)) == faster.name
    verify.run(VerifySettings(path=out))
    found = finished_version(out, PLAN)
    assert found is not None
    # a late worker of the slower one writes the same bytes once more
    write(slower, "same")
    check_version(out, faster.name)


def test_what_is_in_force_is_never_removed(out: str) -> None:
    promote(out, version(out, "one"), in_force(out))
    with pytest.raises(SmecError, match="v0001 is in force, so it is not removed"):
        remove_version(out, "v0001")
    verify.run(VerifySettings(path=out))


def test_a_version_that_lost_its_files_is_no_finished_one(out: str) -> None:
    promote(out, version(out, "one"), in_force(out))
    draft = Draft.open(out, {**PLAN, "dim": 4})
    draft.filesystem.delete_file(draft.folder.replace(draft.name, "v0001/a.parquet"))
    assert finished_version(out, PLAN) is None
    with pytest.raises(DamagedError, match=r"v0001/a\.parquet: is missing; publish again"):
        check_version(out, "v0001")


def test_a_ledger_of_a_lease_that_was_lost_writes_nothing(out: str) -> None:
    folder = RunFolder(out, "series")
    folder.create()
    older, newer = Ledger(folder), Ledger(folder)
    assert older.releases() == newer.releases() == Releases()
    newer.write_releases(series("ab"))
    with pytest.raises(LeaseError, match=r"releases\.json: another process has written it meanwhile"):
        older.write_releases(Releases().with_new(release(1, "c")))
    assert older.releases() == series("ab")
    record = {"cycle": 1, "identity": "i", "stamp": "s", "data": "d", "gate_fraction": 0.2, "champion": None}
    record |= {"outcome": "refused", "reason": "r", "release": None}
    newer.write_cycle(record)
    with pytest.raises(LeaseError, match=r"0001\.json: another process has written it meanwhile"):
        older.write_cycle(record | {"outcome": "promoted"})
    assert (older.last_cycle() or {})["outcome"] == "refused"


# what the job has written when it is told to end; the large part is more than is sent at once
PARTS = {"nothing": 0, "a part": 1000, "much": 30 << 20}
INTERRUPTED = """
import os, signal, sys
from pipelines.storage.files import new_file
from smec_core.data.uri import open_filesystem

def end(*_):
    raise SystemExit(3)

signal.signal(signal.SIGTERM, end)
filesystem, path = open_filesystem(sys.argv[1])
with new_file(filesystem, path) as sink:
    sink.write(b"x" * int(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("before", [None, b"whole"], ids=["new", "replaced"])
@pytest.mark.parametrize("bytes_written", PARTS.values(), ids=PARTS)
def test_a_signal_leaves_no_part_of_a_file(out: str, before: bytes | None, bytes_written: int) -> None:
    uri = join_uri(out, "record.json")
    filesystem, path = open_filesystem(uri)
    create_folder(filesystem, posixpath.dirname(path))
    if before is not None:
        with new_file(filesystem, path) as sink:
            sink.write(before)
    command = [sys.executable, "-c", INTERRUPTED, uri, str(bytes_written)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert read_bytes(filesystem, path) == before


@pytest.mark.parametrize("before", [None, b"whole"], ids=["new", "replaced"])
def test_an_error_leaves_no_part_of_a_file(out: str, before: bytes | None) -> None:
    filesystem, path = open_filesystem(join_uri(out, "record.json"))
    if before is not None:
        with new_file(filesystem, path) as sink:
            sink.write(before)
    with pytest.raises(ValueError, match="in between"), new_file(filesystem, path) as sink:
        sink.write(b"half")
        raise ValueError("in between")
    gc.collect()
    assert read_bytes(filesystem, path) == before
