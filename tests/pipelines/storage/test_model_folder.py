"""Replacing a folder as a whole."""

from pathlib import Path

from pipelines.storage.model_folder import replace_folder


def test_a_folder_behind_a_link_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")

    replace_folder(tmp_path / "link", lambda folder: (folder / "new").touch())

    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["link", "real", "real/new"]
    assert (tmp_path / "link").is_symlink()
