"""Where a job may not write: in the data that it reads, however the place is written."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import app
from pipelines.storage.apart import check_apart, check_apart_from_table, check_file_apart, check_no_file
from smec_core.checksums import write_sums
from smec_core.errors import InputError
from smec_core.yaml_file import dump
from tests.builders import write_dataset

SERIES = {"name": "s", "data": "d", "storage": "r", "train": {"dims": 8}, "publish": {"output": "o", "dim": 8}}


@pytest.mark.parametrize("place", ["corpus", "corpus/a", "corpus.parquet/a", "queries.lance/a/b", "qrels/a"])
def test_a_place_in_a_table_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(InputError, match=rf"^out: {tmp_path}/{place} lies in .*/{place.partition('/')[0]}, where it"):
        check_apart({"storage": None, "out": str(tmp_path / place)}, ["elsewhere", str(tmp_path)])


def test_a_place_beside_the_tables_is_free(tmp_path: Path) -> None:
    for place in ("model", "corpus-vectors", "../corpus/a", ".smec-runs"):
        check_apart({"out": f"{tmp_path}/d/{place}"}, [f"{tmp_path}/d"])


def test_a_table_has_the_judgements_of_its_dataset_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for table in ("corpus", "corpus.lance/", str(tmp_path / "queries")):
        with pytest.raises(InputError, match=rf"output: {tmp_path}/qrels/out lies in {tmp_path}/qrels, where"):
            check_apart_from_table("output", "qrels/out", table)
        check_apart_from_table("output", "vectors", table)
    with pytest.raises(InputError, match=r"output: s3://b/queries/out lies in s3://b/queries, where"):
        check_apart_from_table("output", "s3://b/queries/out", "s3://b/corpus?region=eu-north-1")
    check_apart_from_table("output", "qrels/out", "vectors")


def test_a_published_folder_may_be_upgraded_in_place(tmp_path: Path) -> None:
    check_apart_from_table("output", f"{tmp_path}/vectors", f"{tmp_path}/vectors/")
    check_apart_from_table("output", f"{tmp_path}/vectors", f"{tmp_path}/vectors/v0001")
    for ending in (".lance", ".parquet"):
        with pytest.raises(InputError, match=rf"output: .*/corpus{ending}/out lies in .*/corpus{ending}, where"):
            check_apart_from_table("output", f"{tmp_path}/corpus{ending}/out", f"{tmp_path}/corpus")
    with pytest.raises(InputError, match=r"output: .*/vectors/v0001 lies in .*/vectors, where"):
        check_apart_from_table("output", f"{tmp_path}/vectors/v0001", f"{tmp_path}/vectors")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("compress --model m --input d/corpus --output d/corpus/out", "output"),
        ("compress --model m --input d/queries --output d/corpus/out", "output"),
        ("compress --model m --input d/queries.parquet --output d/corpus/out", "output"),
        ("train --data d --dims 8 --out d/corpus/out", "out"),
        ("train --data d --dims 8 --out d/corpus/out --dry-run", "out"),
        ("train --data d --dims 8 --out m --storage d/corpus/out", "storage"),
        ("tune --space s.yaml --data d --dims 8 --out d/corpus/out", "out"),
        ("tune --space s.yaml --data d --dims 8 --out s --storage d/corpus/out", "storage"),
        ("experiment compare --data d --dims 8 --out d/corpus/out", "out"),
        ("retrain --config c --set publish.output=d/corpus/out", "publish.output"),
        ("retrain --config c --set storage=d/corpus/out", "storage"),
    ],
)
def test_every_job_refuses_it_first(words: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "d", docs=20, queries=10, dim=16)
    (tmp_path / "c").write_text(dump(SERIES))
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    assert result.stderr.startswith(f"smec: {key}: {tmp_path}/d/corpus/out lies in {tmp_path}/d/corpus, where")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A model, a version with its manifest, and files of others."""
    (tmp_path / "m").mkdir()
    for name in ("m/adapter.safetensors", "m/metrics.json", "notes"):
        (tmp_path / name).write_text("{}")
    write_sums(tmp_path / "m", ["adapter.safetensors", "metrics.json"])
    write_sums(tmp_path, ["notes"])
    (tmp_path / "v/v0001/8").mkdir(parents=True)
    (tmp_path / "v/v0001/_manifest.json").write_text('{"files": [{"name": "8/part-0.parquet"}]}')
    (tmp_path / "link").symlink_to("m/metrics.json")
    return tmp_path


@pytest.mark.parametrize(
    "file",
    [
        *("m/metrics.json", "m/report.html", "m/new/report.html", "m/SHA256SUMS", "m/../m/metrics.json", "link"),
        *("v/CURRENT", "v/v0001/_manifest.json", "v/v0001/8/part-0.parquet", "notes"),
    ],
)
def test_a_file_that_has_a_checksum_is_not_written_over(file: str, kept: Path) -> None:
    with pytest.raises(InputError, match=f"^out: {kept}/{file} .*name "):
        check_file_apart("out", kept / file)


@pytest.mark.parametrize("file", ["report.html", "v/report.html", "v/v0001/report.html", "new/figures.json"])
def test_a_file_beside_them_is_free(file: str, kept: Path) -> None:
    check_file_apart("out", kept / file)


def test_the_commands_refuse_it_before_the_work(kept: Path) -> None:
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    for words in (f"report {kept}/m --out {kept}/m/report.html", f"verify {kept} --json {kept}/m/metrics.json"):
        assert CliRunner().invoke(app, words.split()).exit_code == 2
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("place", "why"), [("notes", "notes is a file"), ("notes/a/b/", "notes/a/b/? cannot be made, .*/notes is a file")]
)
def test_a_file_is_no_folder(place: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    for written in (f"{tmp_path}/{place}", f"file://{tmp_path}/{place}"):
        with pytest.raises(InputError, match=rf"^output: (file://)?{tmp_path}/{why}; name a folder$"):
            check_no_file("output", written)
    check_no_file("output", f"{tmp_path}/new/folder")


@pytest.mark.parametrize(
    "words",
    [
        "compress --model m --input d --output {}",
        "train --data d --dims 8 --out m --storage {}",
        "train --data d --dims 8 --out m --storage {} --dry-run",
        "tune --space s.yaml --data d --dims 8 --out m --storage {}",
        "retrain --config c --set storage={}",
        "retrain --config c --set publish.output={}",
    ],
)
def test_jobs_say_that_a_place_is_a_file(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").touch()
    (tmp_path / "c").write_text(dump(SERIES))
    for place, why in (("notes", "notes is a file"), ("notes/a", "notes/a cannot be made, .*/notes is a file")):
        result = CliRunner().invoke(app, words.format(place).split())
        assert result.exit_code == 2
        key = re.findall(r"(\S+?)[ =]\{\}", words)[0].removeprefix("--")
        assert re.search(rf"^smec: {re.escape(key)}: {tmp_path}/{why}; name a folder$", result.stderr, re.MULTILINE)
