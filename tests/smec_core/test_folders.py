"""Replacing a folder as a whole."""

import os
from pathlib import Path

import pytest

from smec_core.folders import replace_files, replace_folder


def test_a_folder_behind_a_link_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")

    replace_folder(tmp_path / "link", lambda folder: (folder / "new").touch())

    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["link", "real", "real/new"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("is_inside", [False, True], ids=["beside", "in the working directory"])
def test_files_are_replaced_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_inside: bool) -> None:
    folder = tmp_path / "model"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine/notes").write_text("kept")
    (folder / "dangling").symlink_to("nowhere")
    for name in ("a", "b"):
        (folder / name).write_text("old")
    folder.chmod(0o750)
    if is_inside:
        monkeypatch.chdir(folder)
    replace_files(folder, {"a", "b"}, lambda new: (new / "a").write_text("new"))
    assert {path.name for path in folder.iterdir()} == {"a", "mine", "dangling"}
    assert (folder / "a").read_text() == "new"
    assert (folder / "mine/notes").read_text() == "kept"
    assert os.readlink(folder / "dangling") == "nowhere"
    assert folder.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
