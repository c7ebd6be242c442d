"""`smec judge` as a command: what it writes, what it never replaces, and that a kill leaves nothing half written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from click.testing import CliRunner

from pipelines.cli import app
from pipelines.judge import job
from pipelines.judge.settings import JudgeSettings
from pipelines.verify import job as verify
from pipelines.verify.settings import VerifySettings
from smec_core.data.dataset import Dataset
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.errors import DamagedError, InputError
from tests.kills import REPOSITORY
from tests.smec_core.clicks.logs import write_log, write_vectors

STOPS_AFTER_A_FILE = """
import sys, time
from pipelines.judge import output
write = output._write
def stopped(*arguments):
    written = write(*arguments)
    print("wrote", flush=True)
    time.sleep(600)
    return written
output._write = stopped
from pipelines.cli.main import app
app(sys.argv[1:])
"""


def clicks_of(days: int, start: int = 0) -> dict[str, list[Any]]:
    """A click an hour, on days from 2026-01-01 on; each query has a document of its own."""
    hours = range(start, days * 24)
    return {
        "query_id": [f"q{hour % 30}" for hour in hours],
        "doc_id": [f"d{hour % 30}" for hour in hours],
        "timestamp": [f"2026-01-{1 + hour // 24:02}T{hour % 24:02}:00:00Z" for hour in hours],
    }


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "clicks/0.parquet", clicks_of(20)).parent


@pytest.fixture
def data(storage: str, tmp_path: Path) -> str:
    """Data without judgements, on a disk and on S3."""
    made = write_vectors(tmp_path / "made")
    filesystem, path = open_filesystem(storage)
    filesystem.create_dir(path)
    for name in ("corpus.parquet", "queries.parquet"):
        with filesystem.open_output_stream(f"{path}/{name}") as sink:
            sink.write((made / name).read_bytes())
    return storage


def contents(data: str) -> dict[str, bytes]:
    """The bytes of all files in qrels but for the record, which has stamps of files."""
    filesystem, path = open_filesystem(join_uri(data, "qrels"))
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return {
        info.base_name: filesystem.open_input_stream(info.path, compression=None).read()
        for info in infos
        if info.type == pafs.FileType.File and info.base_name != "_judge.json"
    }


def put(data: str, name: str, content: bytes) -> None:
    filesystem, path = open_filesystem(join_uri(data, "qrels"))
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/{name}") as sink:
        sink.write(content)


def judge(log: Path, data: str, **more: Any) -> dict[str, Any]:
    return job.run(JudgeSettings.model_validate({"clicks": str(log), "data": data, **more}))


def test_the_same_again_is_nothing_to_do_and_another_is_made(log: Path, data: str) -> None:
    first = judge(log, data)
    made = contents(data)
    assert first["made"] and set(made) == {"train.parquet", "test.parquet"}
    assert {name: len(split.doc_row_J) for name, split in Dataset.open(data).splits.items()} == {
        "train": 30,
        "test": 30,
    }
    again = judge(log, data)
    assert not again["made"] and contents(data) == made
    assert {**again, "made": True} == first
    other = judge(log, data, test_from="2026-01-19", dev_share=0.1)
    assert other["made"] and set(contents(data)) == {"train.parquet", "dev.parquet", "test.parquet"}
    # back again: the same bytes, and no dev left over
    assert judge(log, data)["made"] and contents(data) == made
    write_log(log / "1.parquet", clicks_of(22, start=20 * 24))
    assert judge(log, data)["rows"] == 22 * 24


def test_judgements_of_others_are_never_replaced_unless_told(log: Path, data: str) -> None:
    put(data, "train.tsv", b"q1\td1\t1\n")
    put(data, "README.md", b"notes")
    before = contents(data)
    with pytest.raises(
        InputError, match=r"qrels/train.tsv: was not made by smec judge; nothing of it is replaced; .*--replace"
    ):
        judge(log, data)
    assert contents(data) == before
    judge(log, data, replace=True)
    assert set(contents(data)) == {"train.parquet", "test.parquet", "README.md"}
    judge(log, data, test_share=0.3)
    assert contents(data)["README.md"] == b"notes"


@pytest.mark.parametrize("replace", [False, True])
def test_judgements_of_no_split_are_refused_before_the_log_is_read(log: Path, data: str, replace: bool) -> None:
    put(data, "strange.parquet", b"x")
    # which is found when it is read
    write_log(log / "1.parquet", {"query_id": ["q1"], "doc_id": ["d1"], "timestamp": ["never"]})
    with pytest.raises(InputError, match=r"qrels/strange\.parquet"):
        judge(log, data, replace=replace)


def test_what_was_changed_since_is_not_replaced_and_found_by_verify(log: Path, data: str) -> None:
    judge(log, data)
    assert verify.run(VerifySettings(path=data))["files"] == 3
    put(data, "train.parquet", contents(data)["test.parquet"])
    with pytest.raises(InputError, match=r"train\.parquet: .* since smec judge made it; nothing of it is replaced"):
        judge(log, data)
    with pytest.raises(DamagedError):
        verify.run(VerifySettings(path=data))
    assert judge(log, data, replace=True)["made"]
    put(data, "dev.parquet", contents(data)["test.parquet"])
    with pytest.raises(InputError, match=r"dev\.parquet: was not made by smec judge"):
        judge(log, data)


def test_a_kill_leaves_the_old_judgements_or_a_mark_and_the_same_command_ends_it(
    log: Path, data: str, tmp_path: Path
) -> None:
    is_local = "://" not in data
    judge(log, data, test_share=0.5)
    old = contents(data)
    words = ["judge", str(log), data, "--set", "dev_share=0.2"]
    with subprocess.Popen(
        [sys.executable, "-c", STOPS_AFTER_A_FILE, *words], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "wrote\n"
        process.kill()
    if is_local:
        assert contents(data) == old
        assert len(Dataset.open(data).splits) == 2
    else:
        with pytest.raises(InputError, match="qrels: smec judge has not finished these judgements; run it again"):
            Dataset.open(data)
    assert judge(log, data, dev_share=0.2)["made"]
    assert set(Dataset.open(data).splits) == {"train", "dev", "test"}
    fresh = str(write_vectors(tmp_path / "fresh"))
    judge(log, fresh, dev_share=0.2)
    assert contents(data) == contents(fresh)


def test_the_command_says_what_came_of_it(log: Path, tmp_path: Path) -> None:
    data = write_vectors(tmp_path / "data")
    words = ["judge", str(log), str(data), "--test-from", "2026-01-15", "--json", str(tmp_path / "figures.json")]
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "480 rows, 480 clicks; split by time, test from 2026-01-15T00:00:00" in ended.stderr
    assert "recurring" in ended.stdout
    assert "rows left out: none" in ended.stderr
    assert "propensities: none, since the log has no ranks" in ended.stderr
    assert f"next: smec train --data {data} --dims" in ended.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["splits"]["test"] == {
        **figures["splits"]["test"],
        "queries": 30,
        "pairs": 30,
        "seen": 30,
        "unseen": 0,
        "recurring": 30,
    }


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--test-from", "tomorrow"], "test_from: must be a time, as 2026-01-31"),
        (["--set", "test_share=1.5"], "test_share: "),
        (["--set", "test_share=0.6", "--set", "dev_share=0.5"], "test_share and dev_share leave nothing to train on"),
        (["--set", "weight=clicks", "--set", "eta=1"], "weight=clicks looks at no propensities, so eta does nothing"),
        (["--set", "columns.query=search"], "unknown key 'columns.query'; did you mean 'columns.query_id'?"),
    ],
)
def test_bad_settings_are_one_line(log: Path, tmp_path: Path, words: list[str], why: str) -> None:
    data = write_vectors(tmp_path / "data")
    result = CliRunner().invoke(app, ["judge", str(log), str(data), *words])
    assert result.exit_code == 2
    assert why in result.stderr and result.stderr.count("\n") == 1
    assert not (data / "qrels").exists()


def test_judgements_of_an_ingest_leave_its_manifest(log: Path, tmp_path: Path) -> None:
    """Whose files `smec verify` compares: what was replaced on purpose is no damage."""
    from pipelines.storage.files import write_record
    from smec_core.data.stored_files import describe

    data = write_vectors(tmp_path / "data")
    put(str(data), "test.tsv", b"q1\td1\t1\n")
    local = pafs.LocalFileSystem()
    files = [describe(local, str(data / name), name)._asdict() for name in ("corpus.parquet", "qrels/test.tsv")]
    write_record(local, str(data / "_manifest.json"), {"job": "ingest", "files": files})
    judge(log, str(data), replace=True)
    assert verify.run(VerifySettings(path=str(data)))["not_compared"] == 1
