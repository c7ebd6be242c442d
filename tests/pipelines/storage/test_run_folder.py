"""A run's folder on a disk and on a real S3 server: what a reader finds there, also after a writer was killed."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.storage.run_folder import FINISHED, MODEL, RunFolder
from smec_core.data.uri import join_uri
from smec_core.errors import InputError, SmecError

REPOSITORY = Path(__file__).resolve().parents[3]
FILES = {"adapter.safetensors": os.urandom(9_000_000), "config.json": b"{}", "empty": b"", "history.jsonl": b"[]\n"}


@pytest.fixture
def run_folder(storage: str) -> RunFolder:
    # a folder is the same with a slash at its end
    folder = RunFolder(storage.replace("?", "/?") if "?" in storage else f"{storage}/", "nightly")
    folder.create()
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model", FILES)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def fetched(run_folder: RunFolder, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    run_folder.fetch_model(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def overwrite(run_folder: RunFolder, name: str, content: bytes) -> None:
    with run_folder.filesystem.open_output_stream(f"{run_folder.path}/{name}") as sink:
        sink.write(content)


def test_a_stored_model_comes_back_as_it_was(run_folder: RunFolder, storage: str, model: Path, tmp_path: Path) -> None:
    assert not run_folder.is_finished
    run_folder.store_model(model)
    found = RunFolder(storage, "nightly")
    assert found.is_finished
    assert fetched(found, tmp_path / "copy") == FILES


def test_runs_of_one_storage_are_apart(run_folder: RunFolder, storage: str, model: Path) -> None:
    run_folder.store_model(model)
    other = RunFolder(storage, "nightly2")
    other.create()
    assert not other.is_finished
    assert run_folder.storage_path == other.storage_path == run_folder.path.removesuffix("/nightly")


def test_a_small_file_is_replaced_and_a_missing_one_is_none(run_folder: RunFolder) -> None:
    assert run_folder.read("state.json") is None
    for content in ({"a": [1, "ü"]}, {"a": None}):
        run_folder.write("state.json", {"value": content})
        assert run_folder.read("state.json") == {"value": content}


def test_a_reader_meets_a_small_file_whole_while_others_replace_it(run_folder: RunFolder) -> None:
    numbers = itertools.count()
    written = set()
    ended = threading.Event()

    def write_next() -> None:
        number = next(numbers)
        # as with a lease, no content comes back
        content = f"{number} " + "long" * (2000 * (number % 2))
        written.add(content)
        run_folder.write("state.json", {"value": content})

    def replace() -> None:
        while not ended.is_set():
            write_next()
            time.sleep(0.02)

    write_next()
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(replace) for _ in range(2)]
        try:
            changes, last = 0, None
            while changes < 50 and not any(writer.done() for writer in writers):
                found = run_folder.read("state.json")["value"]
                assert found in written
                changes, last = changes + (found != last), found
        finally:
            ended.set()
        for writer in writers:
            writer.result()
    assert changes == 50


def test_what_an_earlier_attempt_left_is_replaced(run_folder: RunFolder, model: Path, tmp_path: Path) -> None:
    run_folder.filesystem.create_dir(f"{run_folder.path}/{MODEL}")
    overwrite(run_folder, f"{MODEL}/adapter.safetensors", b"half")
    overwrite(run_folder, f"{MODEL}/stray", b"of an older version")
    assert not run_folder.is_finished
    run_folder.store_model(model)
    assert fetched(run_folder, tmp_path / "copy") == FILES

    run_folder.store_model(write(tmp_path / "second", {"config.json": b"[2]"}))
    assert fetched(run_folder, tmp_path / "copy2") == {"config.json": b"[2]"}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda run_folder: overwrite(run_folder, f"{MODEL}/config.json", b"[]"), "was changed"),
        (lambda run_folder: overwrite(run_folder, f"{MODEL}/config.json", b"{}{}"), "was changed"),
        (lambda run_folder: run_folder.filesystem.delete_file(f"{run_folder.path}/{MODEL}/config.json"), "was removed"),
    ],
)
def test_a_damaged_model_is_refused_with_what_to_do(
    spoil: Callable[[RunFolder], None], problem: str, run_folder: RunFolder, model: Path, tmp_path: Path
) -> None:
    run_folder.store_model(model)
    spoil(run_folder)
    with pytest.raises(SmecError, match=rf"nightly/model/config.json: {problem} .* remove \S*nightly/{FINISHED}$"):
        fetched(run_folder, tmp_path / "copy")


STORING = """
import sys
from pathlib import Path
from pipelines.storage.run_folder import RunFolder
while True:
    RunFolder(sys.argv[1], "nightly").store_model(Path(sys.argv[2]))
    print("stored", flush=True)
"""


def test_a_process_killed_while_it_stores_leaves_a_whole_model_or_none(
    run_folder: RunFolder, storage: str, model: Path, tmp_path: Path
) -> None:
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", STORING, storage, str(model)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(timeout=0.01 * attempt)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if run_folder.is_finished:
            assert fetched(run_folder, tmp_path / f"copy{attempt}") == FILES
    run_folder.store_model(model)
    assert fetched(run_folder, tmp_path / "copy") == FILES


def test_its_file_system_works_in_another_process(run_folder: RunFolder) -> None:
    run_folder.write("state.json", {"value": 7})
    # without this import PyArrow does not shut S3 down before the process ends, and that crashes
    script = """
import pickle, sys
import pyarrow.fs
filesystem, path = pickle.load(sys.stdin.buffer)
with filesystem.open_input_stream(path) as source:
    print(source.read())
"""
    printed = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps((run_folder.filesystem, f"{run_folder.path}/state.json")),
        capture_output=True,
        check=True,
    ).stdout
    assert b'"value": 7' in printed


def test_storage_that_cannot_be_written_to(tmp_path: Path, s3: Callable[[str], str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"storage: .*file/nightly cannot be written to"):
        RunFolder(str(tmp_path / "file"), "nightly").create()
    missing = s3("runs").replace("s3://test-", "s3://other-")
    with pytest.raises(InputError, match=r"^storage: s3://other-[^?]*/nightly cannot be written to .*not found"):
        RunFolder(missing, "nightly").create()
    with pytest.raises(InputError, match="nowhere://bucket: cannot open this URI"):
        RunFolder("nowhere://bucket", "nightly")


def test_the_uri_keeps_its_options(s3: Callable[[str], str]) -> None:
    assert RunFolder(s3("runs"), "nightly").uri == join_uri(s3("runs"), "nightly")
    assert RunFolder(s3("runs"), "nightly").local_path is None
    assert RunFolder("runs", "nightly").local_path == Path("runs/nightly").absolute()


def test_a_relative_folder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder = RunFolder("runs", "nightly")
    assert run_folder.uri == run_folder.path == str(tmp_path / "runs" / "nightly")
