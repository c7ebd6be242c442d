"""Published folders: what readers see while versions are written, published, abandoned and replaced."""

import json
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipelines.storage.files import new_file
from pipelines.storage.publish import Draft, check_output, finished_version, plans, promote, remove_version
from smec_core.data.records import read_record
from smec_core.data.stored_files import StoredFile, describe
from smec_core.data.uri import join_uri, public_uri
from smec_core.data.versions import current, in_force, manifest_of
from smec_core.errors import DamagedError, InputError, SmecError

PLAN = {"job": "test", "dim": 8, "model": "m", "model_fingerprint": "0123"}


def write(draft: Draft, name: str, text: str) -> StoredFile:
    with new_file(draft.filesystem, f"{draft.folder}/{name}") as sink:
        sink.write(text.encode())
    return describe(draft.filesystem, f"{draft.folder}/{name}", name, rows=len(text))


def publish(out: Path, plan: dict[str, object], text: str) -> dict[str, object]:
    draft = Draft.open(str(out), plan)
    manifest = draft.finish([write(draft, "a.parquet", text)], {"rows": len(text)})
    promote(str(out), draft.name, in_force(str(out)))
    return manifest


def test_versions_stay_and_current_moves(tmp_path: Path) -> None:
    publish(tmp_path / "out", PLAN, "one")
    first = (tmp_path / "out/v0001/a.parquet").read_bytes()
    assert current(str(tmp_path / "out")) == str(tmp_path / "out/v0001")
    publish(tmp_path / "out", PLAN, "other")
    assert current(str(tmp_path / "out")) == str(tmp_path / "out/v0002")
    assert (tmp_path / "out/v0001/a.parquet").read_bytes() == first


def test_a_folder_of_other_things_is_no_place_to_publish(tmp_path: Path) -> None:
    place = tmp_path / "model"
    for free in (place, tmp_path):
        check_output(str(free))
    place.mkdir()
    (place / ".hidden").touch()
    check_output(str(place))
    (place / "config.json").touch()
    with pytest.raises(InputError, match=r"model is no published folder, it holds config\.json; nothing is published"):
        check_output(str(place))
    with pytest.raises(InputError, match=r"config\.json is a file; name a folder"):
        check_output(str(place / "config.json"))
    with pytest.raises(InputError, match="it holds model"):
        check_output(str(tmp_path))


def test_a_published_folder_may_hold_other_things_too(tmp_path: Path) -> None:
    # one that a killed run has begun has no CURRENT yet
    draft = Draft.open(str(tmp_path), PLAN)
    (tmp_path / "README.md").touch()
    check_output(str(tmp_path))
    draft.finish([write(draft, "a.parquet", "one")], {"rows": 3})
    promote(str(tmp_path), draft.name, in_force(str(tmp_path)))
    check_output(str(tmp_path))


def test_manifest_describes_plan_and_files(tmp_path: Path) -> None:
    manifest = publish(tmp_path, PLAN, "three")
    path = str(tmp_path / "v0001/_manifest.json")
    assert read_record(pafs.LocalFileSystem(), path) == manifest
    assert manifest["dim"] == 8
    assert manifest["rows"] == 5
    # sha256sum of the five bytes "three"
    digest = "8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f"
    found = (tmp_path / "v0001/a.parquet").stat()
    stamp = f"{found.st_ino}-{found.st_ctime_ns}"
    assert manifest["files"] == [{"name": "a.parquet", "rows": 5, "bytes": 5, "sha256": digest, "stamp": stamp}]


def test_unfinished_version_is_taken_up_only_by_the_same_job(tmp_path: Path) -> None:
    publish(tmp_path, PLAN, "one")
    killed = Draft.open(str(tmp_path), PLAN)
    write(killed, "a.parquet", "half")
    (tmp_path / "v0002/a.parquet.0123abcd.tmp").write_text("torn")
    assert current(str(tmp_path)).endswith("v0001")

    other = Draft.open(str(tmp_path), {**PLAN, "dim": 4})
    assert other.name == "v0003"
    assert not list((tmp_path / "v0003").glob("*.parquet"))

    again = Draft.open(str(tmp_path), PLAN)
    assert again.name == "v0002"
    again.finish([write(again, "a.parquet", "whole")], {"rows": 5})
    assert current(str(tmp_path)).endswith("v0001")
    promote(str(tmp_path), "v0002", in_force(str(tmp_path)))
    assert current(str(tmp_path)).endswith("v0002")
    assert sorted(path.name for path in (tmp_path / "v0002").iterdir()) == ["_manifest.json", "a.parquet"]


def test_version_whose_files_changed_is_not_published(tmp_path: Path) -> None:
    publish(tmp_path, PLAN, "one")
    draft = Draft.open(str(tmp_path), PLAN)
    file = write(draft, "a.parquet", "two")
    (tmp_path / "v0002/a.parquet").write_text("tampered")
    with pytest.raises(SmecError, match=r"v0002/a\.parquet: .*was changed after it was written"):
        draft.finish([file], {"rows": 3})
    assert current(str(tmp_path)).endswith("v0001")
    assert not (tmp_path / "v0002/_manifest.json").exists()


def test_a_version_is_published_once(tmp_path: Path) -> None:
    one, other = Draft.open(str(tmp_path), PLAN), Draft.open(str(tmp_path), PLAN)
    files = [write(one, "a.parquet", "one")]
    one.finish(files, {"rows": 3})
    with pytest.raises(SmecError, match="another run published"):
        other.finish(files, {"rows": 3})


def test_discarded_version_leaves_nothing(tmp_path: Path) -> None:
    draft = Draft.open(str(tmp_path), PLAN)
    write(draft, "a.parquet", "one")
    draft.discard()
    assert not list(tmp_path.iterdir())


def test_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "CURRENT"
    path.write_text("v0001")
    with pytest.raises(KeyboardInterrupt), new_file(pafs.LocalFileSystem(), str(path)) as sink:
        sink.write(b"v0")
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("CURRENT", "v0001")]


def test_current_of_a_folder_without_versions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no version is published"):
        current(str(tmp_path / "missing"))


@pytest.mark.parametrize("name", ["v0001", "../elsewhere"])
def test_current_that_names_no_finished_version(tmp_path: Path, name: str) -> None:
    Draft.open(str(tmp_path), PLAN)
    (tmp_path / "CURRENT").write_text(name)
    with pytest.raises(DamagedError, match=r"CURRENT: names .*publish again"):
        current(str(tmp_path))


def test_output_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        Draft.open(str(tmp_path / "file"), PLAN)


def test_uris_keep_their_options_and_hide_their_secrets() -> None:
    uri = "s3://key:secret@bucket/out/?region=eu-west-1"
    assert join_uri(uri, "v0001") == "s3://key:secret@bucket/out/v0001?region=eu-west-1"
    assert public_uri(uri) == "s3://bucket/out/"


def test_a_version_that_another_run_has_published_is_not_discarded(tmp_path: Path) -> None:
    one, other = Draft.open(str(tmp_path), PLAN), Draft.open(str(tmp_path), PLAN)
    one.finish([write(one, "a.parquet", "one")], {"rows": 3})
    other.discard()
    assert (tmp_path / "v0001/a.parquet").read_text() == "one"
    promote(str(tmp_path), "v0001", in_force(str(tmp_path)))


def test_a_version_that_a_kill_kept_from_being_in_force_is_found_by_its_plan(tmp_path: Path) -> None:
    other: dict[str, object] = {**PLAN, "dim": 4}
    publish(tmp_path, PLAN, "one")
    publish(tmp_path, other, "two")
    (tmp_path / "CURRENT").write_text("v0001\n")
    for plan, version in ((PLAN, "v0001"), (other, "v0002")):
        found = finished_version(str(tmp_path), plan)
        assert found is not None
        assert (found[0], found[1]["version"]) == (str(tmp_path / version), version)

    (tmp_path / "v0002/a.parquet").write_text("torn")
    assert finished_version(str(tmp_path), other) is None
    assert finished_version(str(tmp_path / "missing"), PLAN) is None
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("name", ["v0002", "v0003", "../v0001", ""])
def test_only_a_finished_version_comes_into_force(tmp_path: Path, name: str) -> None:
    publish(tmp_path, PLAN, "one")
    Draft.open(str(tmp_path), PLAN)
    with pytest.raises(InputError, match="there is no finished version"):
        promote(str(tmp_path), name, in_force(str(tmp_path)))
    assert current(str(tmp_path)).endswith("v0001")


def earlier_release(out: Path, name: str) -> None:
    """Makes a version one that an earlier release published."""
    (out / name / "_manifest.json").rename(out / name / "manifest.json")


def test_versions_of_an_earlier_release_stay_in_use(tmp_path: Path) -> None:
    out, filesystem = str(tmp_path), pafs.LocalFileSystem()
    made = [publish(tmp_path, PLAN, "one"), publish(tmp_path, {**PLAN, "dim": 4}, "two")]
    earlier_release(tmp_path, "v0001")
    earlier_release(tmp_path, "v0002")
    assert [manifest_of(filesystem, f"{out}/{name}") for name in ("v0001", "v0002")] == made
    assert plans(out) == {"v0001": made[0], "v0002": made[1]}
    assert current(out).endswith("v0002")
    promote(out, "v0001", in_force(out))
    assert current(out).endswith("v0001")
    assert finished_version(out, PLAN) == (f"{out}/v0001", made[0])
    # what is finished is not written to again
    assert Draft.open(out, PLAN).name == "v0003"
    remove_version(out, "v0002")
    assert not (tmp_path / "v0002").exists()


def test_a_version_that_an_earlier_release_began_is_gone_on_with(tmp_path: Path) -> None:
    publish(tmp_path, PLAN, "one")
    earlier_release(tmp_path, "v0001")
    (tmp_path / "v0002").mkdir()
    (tmp_path / "v0002/plan.json").write_text(json.dumps(PLAN, indent=1))
    draft = Draft.open(str(tmp_path), PLAN)
    draft.finish([write(draft, "a.parquet", "two")], {"rows": 3})
    promote(str(tmp_path), draft.name, in_force(str(tmp_path)))
    assert sorted(path.name for path in (tmp_path / "v0002").iterdir()) == ["_manifest.json", "a.parquet"]


def test_a_removed_version_is_gone(tmp_path: Path) -> None:
    publish(tmp_path, PLAN, "one")
    publish(tmp_path, PLAN, "two")
    remove_version(str(tmp_path), "v0001")
    remove_version(str(tmp_path), "v0001")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "CURRENT", "v0002"]
