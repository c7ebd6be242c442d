"""Temporary folders: of live processes they stay, of dead ones they go, by however many at once."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smec_core import temporary
from smec_core.temporary import LEFT_SECONDS, PREFIX, make_folder, remove_folder, remove_left_behind, temporary_folder
from tests.kills import REPOSITORY

HOLDER = """
import sys, time
from pathlib import Path
from smec_core.temporary import make_folder, remove_left_behind
print(make_folder(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""
SWEEPER = """
import sys
from pathlib import Path
from smec_core.temporary import remove_left_behind, temporary_folder
place = Path(sys.argv[1])
for number in range(200):
    with temporary_folder(place) as made:
        (made / "kept").touch()
        remove_left_behind(place)
        assert (made / "kept").exists(), number
"""


def python(code: str, place: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, str(place)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_folders_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    with python(HOLDER, tmp_path) as dead, python(HOLDER, tmp_path) as live:
        assert dead.stdout is not None and live.stdout is not None
        of_dead, of_live = (Path(process.stdout.readline().strip()) for process in (dead, live) if process.stdout)
        (of_dead / "deep").mkdir()
        (of_dead / "deep/file").write_text("left")
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert of_dead.exists()
        remove_left_behind(tmp_path)
        assert (of_dead.exists(), of_live.exists()) == (False, True)
        assert live.stdin is not None
        live.stdin.close()
        assert live.wait() == 0
    assert not of_live.exists(), "one that ends removes its own"


def test_processes_that_remove_at_once_leave_the_folders_of_each_other(tmp_path: Path) -> None:
    processes = [python(SWEEPER, tmp_path) for _ in range(3)]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert list(tmp_path.iterdir()) == []


def test_threads_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_folder(tmp_path), range(64)))
    assert len(set(made)) == 64
    remove_left_behind(tmp_path)
    assert all(folder.exists() for folder in made)
    for folder in made:
        remove_folder(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    others = tmp_path / f"{PREFIX}of-somebody"
    others.mkdir()
    link = tmp_path / f"{PREFIX}{'0' * 8}"
    link.symlink_to(others)
    file = tmp_path / f"{PREFIX}{'1' * 8}"
    file.write_text("a file")
    old = time.time() - 2 * LEFT_SECONDS
    os.utime(others, (old, old))
    remove_left_behind(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {others.name, link.name, file.name}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_folders_of_another_user_stay(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as made:
        theirs = made.with_name(f"{made.name[:-1]}{'0' if made.name[-1] != '0' else '1'}")
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    remove_left_behind(tmp_path)
    assert theirs.exists()
    os.chown(theirs, 0, 0)
    remove_left_behind(tmp_path)
    assert not theirs.exists()


def test_a_process_renews_the_age_of_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "RENEW_SECONDS", 0.01)
    temporary._keep_young.cache_clear()
    with temporary_folder(tmp_path) as made:
        old = time.time() - LEFT_SECONDS - 60
        os.utime(made, (old, old))
        end = time.monotonic() + 30
        while made.stat().st_mtime == old:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_of_another_machine_a_folder_goes_when_it_is_old(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as made:
        mark = made.name.removeprefix(PREFIX)[:4]
    theirs = tmp_path / f"{PREFIX}{int(mark, 16) ^ 1:04x}abcd"
    theirs.mkdir()
    remove_left_behind(tmp_path)
    assert theirs.exists()
    old = time.time() - LEFT_SECONDS - 60
    os.utime(theirs, (old, old))
    remove_left_behind(tmp_path)
    assert not theirs.exists()
