"""The deep check finds a changed byte in whatever the project has written."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.files import new_file
from pipelines.storage.manifest import finish_task
from pipelines.storage.publish import Draft
from pipelines.verify import job as verify
from pipelines.verify.job import RECORDS
from pipelines.verify.settings import VerifySettings
from smec_core.data.stored_files import StoredFile, describe
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.errors import DamagedError, InputError
from tests.pipelines.storage.test_damage import (
    KINDS,
    a_checkpoint,
    a_published_folder,
    assert_named_in_full,
    snapshot,
    write,
)
from tests.smec_core.model.test_model import make_model


def test_every_file_of_every_kind_is_read(storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [make(storage, tmp_path) for make in KINDS]
    settings = VerifySettings(path=storage)
    result = verify.run(settings)
    assert result["files"] > 20 and result["not_compared"] == 0
    for kind in kinds:
        for name, content in snapshot(kind.folder).items():
            spoilt = bytearray(content)
            spoilt[len(spoilt) // 2] ^= 1
            write(kind.folder, {name: bytes(spoilt)})
            try:
                verify.run(settings)
            except DamagedError as error:
                assert "restore it from a copy, or make it again" in str(error)
            else:
                pytest.fail(f"{name} was not read")
            said = capsys.readouterr().err
            assert name.rpartition("/")[2] in said
            assert_named_in_full(said, storage)
            write(kind.folder, {name: content})
    verify.run(settings)


def test_a_folder_is_named_itself_and_what_is_being_written_is_no_damage(storage: str, tmp_path: Path) -> None:
    for make in KINDS:
        kind = make(storage, tmp_path)
        assert verify.run(VerifySettings(path=kind.folder))["files"] > 1
    draft = Draft.open(join_uri(storage, "vectors"), {"job": "test", "dim": 2})
    with new_file(draft.filesystem, f"{draft.folder}/a.parquet") as sink:
        sink.write(b"a")
    files = [describe(draft.filesystem, f"{draft.folder}/a.parquet", "a.parquet")]
    finish_task(draft.filesystem, draft.folder, "a", files)
    verify.run(VerifySettings(path=storage))


def test_a_checkpoint_that_a_kill_has_cut_short_is_no_damage(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = a_checkpoint(storage, tmp_path)
    settings = VerifySettings(path=storage)
    assert verify.run(settings)["unfinished"] == 0
    filesystem, _ = open_filesystem(kind.folder)
    for name, content in snapshot(kind.folder).items():
        if "checkpoint_2/" not in name:
            continue
        write(kind.folder, {name: content[: len(content) // 2]})
        assert verify.run(settings)["unfinished"] == 1, name
        if not name.endswith(".json"):
            filesystem.delete_file(name)
            assert verify.run(settings)["unfinished"] == 1, name
        write(kind.folder, {name: content})
    assert "unfinished checkpoints and new folders, of a job that runs or was killed: 1" in capsys.readouterr().err


def test_a_folder_that_was_being_written_as_its_job_was_killed_is_no_damage(tmp_path: Path) -> None:
    make_model().save(tmp_path / "model")
    whole = verify.run(VerifySettings(path=str(tmp_path)))
    draft = tmp_path / ".model.0123abcd.new"
    shutil.copytree(tmp_path / "model", draft)
    (draft / "SHA256SUMS").unlink()
    (draft / "config.json").write_text("{")
    assert verify.run(VerifySettings(path=str(tmp_path))) == whole | {"unfinished": 1}


@pytest.mark.parametrize("is_removed", [True, False])
def test_what_is_removed_or_replaced_meanwhile_is_no_damage(
    is_removed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        make_model().save(tmp_path / name)

    def meanwhile(*arguments: Any) -> StoredFile:
        monkeypatch.setattr(verify, "describe", describe)
        shutil.rmtree(tmp_path / "a")
        if not is_removed:
            make_model(seed=5).save(tmp_path / "a")
        return describe(*arguments)

    monkeypatch.setattr(verify, "describe", meanwhile)
    verify.run(VerifySettings(path=str(tmp_path)))
    assert (tmp_path / "a").exists() != is_removed


def test_a_folder_without_checksums_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(InputError, match="nothing there has checksums; give a folder that smec has written"):
        verify.run(VerifySettings(path=str(tmp_path)))


def test_a_record_that_is_cut_short_is_found(storage: str, tmp_path: Path) -> None:
    found = set()
    for make in KINDS:
        kind = make(storage, tmp_path)
        for name, content in snapshot(kind.folder).items():
            if (last := name.rpartition("/")[2]) in RECORDS:
                for cut in (b"", content[: len(content) // 4]):
                    write(kind.folder, {name: cut})
                    with pytest.raises(DamagedError):
                        verify.run(VerifySettings(path=kind.folder))
                write(kind.folder, {name: content})
                found.add(last)
        verify.run(VerifySettings(path=kind.folder))
    assert found == set(RECORDS)


def test_a_model_without_its_checksums_and_a_strange_parquet_file_are_damage(tmp_path: Path) -> None:
    make_model().save(tmp_path / "model")
    (tmp_path / "model/SHA256SUMS").unlink()
    with pytest.raises(DamagedError):
        verify.run(VerifySettings(path=str(tmp_path)))


def test_a_parquet_file_that_no_manifest_names_is_damage(storage: str, tmp_path: Path) -> None:
    kind = a_published_folder(storage, tmp_path)
    [manifest] = [name for name in snapshot(kind.folder) if name.endswith("/v0001/_manifest.json")]
    filesystem, _ = open_filesystem(kind.folder)
    with filesystem.open_output_stream(f"{manifest.rpartition('/')[0]}/extra.parquet") as sink:
        sink.write(b"a")
    with pytest.raises(DamagedError):
        verify.run(VerifySettings(path=kind.folder))


def test_no_folder_is_told_from_one_without_checksums(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there, or empty"):
        verify.run(VerifySettings(path=str(tmp_path / "typo")))
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match="is a file; give the folder that it lies in"):
        verify.run(VerifySettings(path=str(tmp_path / "a.json")))


def test_a_file_that_cannot_be_read_is_named_beside_all_other_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        make_model().save(tmp_path / name)
    (tmp_path / "a/adapter.safetensors").unlink()
    # which nothing can be read of, by root neither
    (tmp_path / "a/adapter.safetensors").symlink_to("/proc/self/mem")
    (tmp_path / "b/README.md").write_text("another")
    with pytest.raises(DamagedError, match="problems: 2, listed above"):
        verify.run(VerifySettings(path=str(tmp_path)))
    said = capsys.readouterr().err
    assert f"{tmp_path}/a/adapter.safetensors: cannot be read" in said
    assert f"{tmp_path}/b/README.md: has another checksum" in said
