"""Which checkpoint a start goes on from, and what it removes, on a disk and on a real S3 server."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from pipelines.storage.run_folder import RunFolder
from pipelines.train.checkpoints import Start, begin_start, remove_checkpoints, write_file_list
from smec_core.errors import StoreUnreachable
from smec_core.training.checkpoint import Checkpoint, Progress
from smec_core.training.memory import MemoryShard
from smec_core.training.trained import Trained

RANKS = 2


@pytest.fixture(params=["disk", "s3"])
def run_folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    if request.param == "disk":
        storage = str(tmp_path / "storage")
    else:
        s3: Callable[[str], str] = request.getfixturevalue("s3")
        storage = s3("deep/runs/")
    folder = RunFolder(storage, "nightly")
    folder.create()
    return folder


@pytest.fixture
def write(run_folder: RunFolder, tmp_path: Path) -> Callable[..., str]:
    """Writes a checkpoint as the ranks do, and what of it is missing or cut off; gives its name."""

    def one(start: int, number: int, leave_out: str = "", cut: str = "", spoil: str = "", last: bool = False) -> str:
        name = f"checkpoint_{number:02}_{start}"
        path = f"nightly.start-{start}/{name}"
        for rank in range(RANKS):
            folder = tmp_path / path / str(rank)
            folder.mkdir(parents=True)
            if last and rank == 0:
                Trained([], {"number": number}).write(folder)
            elif not last:
                state(rank, number).write(folder, rank)
            write_file_list(folder, rank, RANKS, number)
            if spoil and (folder / spoil).exists():
                content = bytearray((folder / spoil).read_bytes())
                content[-1] ^= 1
                (folder / spoil).write_bytes(content)
            if cut and (folder / cut).exists():
                (folder / cut).write_bytes((folder / cut).read_bytes()[:50])
            if leave_out:
                (folder / leave_out).unlink(missing_ok=True)
            run_folder.filesystem.create_dir(f"{run_folder.path}/{path}")
            pafs.copy_files(str(folder), f"{run_folder.path}/{path}", destination_filesystem=run_folder.filesystem)
        return name

    return one


def state(rank: int, number: int) -> Checkpoint:
    """What one rank has to say of a training."""
    progress = Progress("first", 0, 0, 0, number, 0, 0.0, 0.0, {}, {"first": []})
    shard = MemoryShard(2, torch.tensor([rank]), torch.tensor([number]))
    return Checkpoint(progress if rank == 0 else None, None, [shard])


def kept(run_folder: RunFolder) -> set[str]:
    infos = run_folder.filesystem.get_file_info(pafs.FileSelector(run_folder.path, recursive=True))
    paths = [info.path.removeprefix(f"{run_folder.path}/") for info in infos if info.type == pafs.FileType.File]
    return {path.rpartition("/")[0] for path in paths}


def taken(start: Start, run_folder: RunFolder) -> str:
    """Name of the checkpoint that a start goes on from, which must lie in its folder, and be all that is kept."""
    assert start.checkpoint is not None
    path = start.checkpoint.path.removeprefix(f"{run_folder.path}/")
    assert path.startswith(f"{start.name}/")
    assert kept(run_folder) == {path}
    return str(path.removeprefix(f"{start.name}/"))


def test_the_newest_whole_checkpoint_is_taken_and_all_others_go(
    run_folder: RunFolder, write: Callable[..., str]
) -> None:
    write(1, 3)
    write(1, 4)
    # the second start wrote one, and was killed while it wrote the next
    newest = write(2, 5)
    write(2, 6, leave_out="memory-1.safetensors")
    start = begin_start(run_folder)
    assert start.name == "nightly.start-3"
    assert not start.is_trained
    assert taken(start, run_folder) == newest
    # and again, when the third has left nothing of its own
    start = begin_start(run_folder)
    assert start.name == "nightly.start-4"
    assert taken(start, run_folder) == newest


def test_a_start_that_was_killed_while_it_took_a_checkpoint_along(
    run_folder: RunFolder, write: Callable[..., str]
) -> None:
    whole = write(1, 3)
    write(2, 3, cut="memory-1.safetensors")
    assert taken(begin_start(run_folder), run_folder) == whole


@pytest.mark.parametrize(
    "damage",
    [
        {"leave_out": "progress.safetensors"},
        {"leave_out": "files-0.json"},
        {"leave_out": "files-1.json"},
        {"cut": "memory-1.safetensors"},
        {"spoil": "memory-1.safetensors"},
        {"spoil": "progress.safetensors"},
        {"spoil": "files-1.json"},
        {"cut": "files-0.json"},
        {"cut": "files-1.json"},
    ],
    ids=str,
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    run_folder: RunFolder, write: Callable[..., str], damage: dict[str, str]
) -> None:
    whole = write(1, 9)
    write(1, 10, **damage)
    assert taken(begin_start(run_folder), run_folder) == whole


def test_where_none_is_whole_the_run_starts_again_and_says_so(
    run_folder: RunFolder, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin_start(run_folder) == Start("nightly.start-1", None, False)
    assert capsys.readouterr().err == ""
    write(1, 1, cut="files-0.json")
    assert begin_start(run_folder) == Start("nightly.start-2", None, False)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("training starts again")
    assert kept(run_folder) == set()


def test_an_outage_removes_no_checkpoint(
    run_folder: RunFolder, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = write(1, 2)
    before = kept(run_folder)

    def away(*_: object) -> int:
        raise StoreUnreachable("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.train.checkpoints.open_checkpoint", away)
        with pytest.raises(StoreUnreachable):
            begin_start(run_folder)
    assert kept(run_folder) == before
    assert taken(begin_start(run_folder), run_folder) == newest


def test_half_of_rays_own_state_is_in_nobodys_way(run_folder: RunFolder, write: Callable[..., str]) -> None:
    whole = write(1, 1)
    with run_folder.filesystem.open_output_stream(
        f"{run_folder.path}/nightly.start-1/checkpoint_manager_snapshot.json"
    ) as sink:
        sink.write(b'{"ray_version": "2.')
    start = begin_start(run_folder)
    assert taken(start, run_folder) == whole
    assert start.name == "nightly.start-2"


def test_the_last_checkpoint_of_a_training_is_known_and_a_finished_run_keeps_none(
    run_folder: RunFolder, write: Callable[..., str]
) -> None:
    write(1, 1)
    write(1, 2, last=True)
    run_folder.write("mlflow_run.json", {})
    assert begin_start(run_folder).is_trained
    remove_checkpoints(run_folder)
    assert kept(run_folder) == {""}
