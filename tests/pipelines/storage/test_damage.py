"""What a changed byte does: whatever file it is in, it is found where the file is read, or it changes nothing."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs as pafs
import pytest
import torch

from pipelines.compress.actor import CompressPiece, Job, cut
from pipelines.retrain.ledger import Ledger, Release, Releases
from pipelines.storage.manifest import finished_task
from pipelines.storage.publish import Draft, check_version, promote
from pipelines.storage.run_folder import RunFolder
from pipelines.storage.study import Trial, read_trials, trial_folder
from pipelines.train.checkpoints import begin_start, write_file_list
from smec_core.data.parquet import EmbeddingTable, write_embeddings
from smec_core.data.uri import join_uri, open_filesystem, public_uri
from smec_core.data.versions import current, in_force
from smec_core.errors import DamagedError, InputError
from smec_core.evaluation.drift import Reference
from smec_core.model.files import load
from smec_core.training.checkpoint import Checkpoint
from tests.pipelines.train.test_checkpoints import state
from tests.smec_core.model.test_model import make_model

# on a store each is many requests, to the same code
FLIPS = {"disk": 200, "s3": 48}
DECIDING_SHARE = 0.75
QUERY_SCORES = {"q1": {"4": 0.5}, "q2": {"4": 0.25}}


class Kind(NamedTuple):
    """Stored files of one kind, and what all of its readers make of them."""

    folder: str
    read: Callable[[], Any]
    others: tuple[Any, ...] = ()
    """What a reader may also find: an older state that is whole."""


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def a_model(storage: str, tmp_path: Path) -> Kind:
    make_model().save(tmp_path / "model")
    copy_tree(tmp_path / "model", join_uri(storage, "model"))

    def read() -> Any:
        model = load(join_uri(storage, "model"))
        return model.fingerprint, model.config, model.metrics

    return Kind(join_uri(storage, "model"), read)


def a_run_folder(storage: str, tmp_path: Path) -> Kind:
    run_folder = RunFolder(storage, "nightly")
    run_folder.create()
    run_folder.claim({"data": "0123", "train": {"lr": 0.001}})
    run_folder.write("mlflow_run.json", {"run_id": "a" * 32})
    run_folder.write("ray_run.json", {"id": "b" * 16})
    run_folder.write("threads.json", {"cpus_per_worker": 2})
    make_model().save(tmp_path / "model of a run")
    run_folder.store_model(tmp_path / "model of a run")
    copies = iter(range(10_000))

    def read() -> Any:
        copy = tmp_path / f"copy{next(copies)}"
        copy.mkdir()
        run_folder.fetch_model(copy)
        names = ("run.json", "mlflow_run.json", "ray_run.json", "threads.json", "finished.json")
        # as a claim compares it
        run_folder.check({"data": "0123", "train": {"lr": 0.001}})
        return digest(copy), [known(run_folder.read(name)) for name in names]

    return Kind(run_folder.uri, read)


def a_checkpoint(storage: str, tmp_path: Path) -> Kind:
    run_folder = RunFolder(storage, "running")
    for number in (1, 2):
        for rank in (0, 1):
            folder = tmp_path / f"checkpoint{number}-{rank}"
            folder.mkdir()
            state(rank, number).write(folder, rank)
            write_file_list(folder, rank, 2, number)
            copy_tree(folder, join_uri(run_folder.uri, f"running.start-1/checkpoint_{number}"))

    def read() -> Any:
        taken = begin_start(run_folder).checkpoint
        assert taken is not None
        with taken.as_directory() as folder:
            return as_text(Checkpoint.read(Path(folder)))

    whole = [
        as_text(Checkpoint(state(0, number).progress, None, [state(rank, number).memory[0] for rank in (0, 1)]))
        for number in (1, 2)
    ]
    return Kind(run_folder.uri, read, tuple(whole))


def a_published_folder(storage: str, tmp_path: Path) -> Kind:
    out = join_uri(storage, "vectors")
    (tmp_path / "corpus").mkdir()
    x_ND = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    write_embeddings(str(tmp_path / "corpus/part-0.parquet"), [f"d{row}" for row in range(64)], x_ND)
    table = EmbeddingTable.open(str(tmp_path / "corpus"))
    draft = Draft.open(out, {"job": "test", "model": "m", "model_fingerprint": "0123", "dim": 4})
    job = Job(make_model(), table, draft.filesystem, draft.folder, (4,), "float32", False, None, 32)
    pieces = cut(table, 1000)
    for piece in pieces:
        # a worker of Ray is this class
        for told in CompressPiece(job, gpu=False)(piece._asdict()):
            assert not told["error"]
    files = [file for piece in pieces for file in finished_task(draft.filesystem, draft.folder, piece.name) or []]
    draft.finish(files, {"rows": 64})
    promote(out, draft.name, in_force(out))

    def read() -> Any:
        version = current(out)
        manifest = check_version(out, version.partition("?")[0].rpartition("/")[2])
        vectors = EmbeddingTable.open(version)
        rows = [(block.ids.to_pylist(), block.vectors_ND.tobytes()) for block in vectors.blocks(0, 64, 64)]
        return manifest, rows

    return Kind(out, read)


def a_ledger(storage: str, tmp_path: Path) -> Kind:
    ledger = Ledger(RunFolder(storage, "series"))
    ledger.folder.create()
    ledger.check_registry("http://mlflow")
    release = Release(1, 1, "series-a", "0123", "1", "/vectors", "v0001", "better", "2026-01-01")
    sample = torch.eye(4)
    reference = Reference(4, sample.mean(0), sample.T @ sample / 4, ["d1", "d2", "d3", "d4"], sample)
    ledger.keep_reference(1, reference, QUERY_SCORES)
    ledger.write_cycle(
        {"cycle": 1, "identity": "i", "stamp": "s", "data": "d", "gate_fraction": 0.2, "champion": None,
         "outcome": "promoted", "reason": "r", "release": release._asdict()}
    )  # fmt: skip
    ledger.releases()
    ledger.write_releases(Releases().with_new(release))

    def read() -> Any:
        reference, scores = ledger.reference(1)
        ledger.check_registry("http://mlflow")
        return ledger.releases(), known(ledger.last_cycle()), reference.to_bytes(), scores

    return Kind(ledger.folder.uri, read)


def a_study(storage: str, tmp_path: Path) -> Kind:
    study = RunFolder(storage, "study")
    for number in (1, 2):
        trial_folder(study, number).create()
        trial = Trial(number=number, params={"tau": 0.5}, state="finished", seconds=2.0)
        trial_folder(study, number).write("trial.json", trial.model_dump(mode="json"))
    return Kind(study.uri, lambda: read_trials(study))


KINDS = [a_model, a_run_folder, a_checkpoint, a_published_folder, a_ledger, a_study]


def known(record: Any) -> Any:
    """A record without keys that no reader asks for: of a damaged name of the checksum the content is still whole."""
    return {key: value for key, value in record.items() if not (key.startswith("s") and len(key) == 6)}


def as_text(checkpoint: Checkpoint) -> str:
    return str(vars(checkpoint))


def copy_tree(folder: Path, uri: str) -> None:
    filesystem, path = open_filesystem(uri)
    filesystem.create_dir(path)
    pafs.copy_files(str(folder), path, destination_filesystem=filesystem)


def snapshot(uri: str) -> dict[str, bytes]:
    filesystem, root = open_filesystem(uri)
    found = {}
    for info in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        if info.type == pafs.FileType.File and not info.base_name.startswith("."):
            with filesystem.open_input_stream(info.path, compression=None) as source:
                found[info.path] = source.read()
    return found


def write(uri: str, files: dict[str, bytes]) -> None:
    """Writes files; of several, others than these go."""
    filesystem, root = open_filesystem(uri)
    if len(files) > 1:
        for info in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
            if info.type == pafs.FileType.File and info.path not in files:
                filesystem.delete_file(info.path)
    for path, content in files.items():
        filesystem.create_dir(path.rpartition("/")[0])
        with filesystem.open_output_stream(path) as sink:
            sink.write(content)


def assert_named_in_full(said: str, storage: str) -> None:
    """Whatever is said of a store names URIs: `bucket/file` alone could be a local path."""
    place = public_uri(storage)
    bucket = place.partition("://")[2].partition("/")[0]
    assert not bucket or f"{bucket}/" not in said.replace(place, ""), said


def test_a_flipped_bit_is_found_or_changes_nothing(storage: str, tmp_path: Path) -> None:
    choose, found = random.Random(0), 0
    kinds = [make(storage, tmp_path) for make in KINDS]
    stored = [snapshot(kind.folder) for kind in kinds]
    whole = [kind.read() for kind in kinds]
    flips = FLIPS["s3" if "://" in storage else "disk"]
    for number in range(flips):
        place = number % len(kinds)
        kind, files = kinds[place], stored[place]
        name = choose.choice(sorted(files))
        content = bytearray(files[name])
        at = choose.randrange(8 * len(content))
        content[at // 8] ^= 1 << at % 8
        write(kind.folder, {name: bytes(content)})
        told = f"bit {at} of {name}"
        try:
            result = kind.read()
        except InputError as error:
            # also where the bytes have no form any more: one line that names the file, and no use in trying again
            assert "\n" not in str(error), told
            assert_named_in_full(str(error), storage)
            assert name.rpartition("/")[2] in str(error) or kind.folder.partition("?")[0] in str(error), told
            found += 1
        else:
            if result != whole[place]:
                assert result in kind.others, told
                found += 1
        finally:
            # a start of a training moves its checkpoints
            write(kind.folder, files if kind.others else {name: files[name]})
    assert found >= DECIDING_SHARE * flips


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("damage", ["half", "empty", "zeros"])
def test_a_file_that_is_cut_or_blank_is_named(
    storage: str, tmp_path: Path, make: Callable[[str, Path], Kind], damage: str
) -> None:
    kind = make(storage, tmp_path)
    files, whole = snapshot(kind.folder), kind.read()
    for name, content in files.items():
        spoilt = {"half": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}[damage]
        write(kind.folder, {name: spoilt})
        try:
            result = kind.read()
        except InputError as error:
            assert error.exit_code == 2
            assert_named_in_full(str(error), storage)
            assert name.rpartition("/")[2] in str(error) or kind.folder.partition("?")[0] in str(error), name
        else:
            assert result == whole or result in kind.others, name
        write(kind.folder, files if kind.others else {name: content})


def test_a_model_of_other_numbers_is_refused(tmp_path: Path) -> None:
    """Also with checksums to match: such a model would give the same vector for all."""
    for number, matrix in enumerate((torch.full((8, 8), torch.nan), torch.zeros(8, 8))):
        model = make_model()
        model.matrix_DD = matrix
        model.save(tmp_path / str(number))
        with pytest.raises(DamagedError, match=r"adapter\.safetensors: matrix holds NaN or infinity, or nothing but"):
            load(tmp_path / str(number))
