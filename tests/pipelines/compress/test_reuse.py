"""Corpora that grow, shrink and change by a few files: what is made anew, and what the version in force lends."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import smec_core
from pipelines.compress.job import run
from pipelines.compress.settings import CompressSettings
from pipelines.storage.publish import check_version
from smec_core.data.parquet import embedding_column
from smec_core.data.records import as_record
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.data.versions import current, in_force
from tests.builders import replace_vectors, write_vectors
from tests.pipelines.compress.corpora import compress, plan_at, read, vectors, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def add_file(folder: Path, name: str, rows: int, bad: tuple[int, ...] = ()) -> None:
    """A file of vectors of its own, some of them zero."""
    x_ND = vectors(rows, seed=sum(name.encode()))
    x_ND[list(bad)] = 0
    ids = [f"{name}-{row}" for row in range(rows)]
    table = pa.table({"id": ids, "embedding": embedding_column(x_ND)})
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=100)


def sums(uri: str | Path) -> dict[str, str]:
    """Checksums of the files of vectors in a version."""
    filesystem, folder = open_filesystem(str(uri))
    found = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    paths = [info.path for info in found if info.path.endswith(".parquet")]
    assert paths
    return {
        os.path.relpath(path, folder): hashlib.sha256(filesystem.open_input_stream(path).read()).hexdigest()
        for path in paths
    }


def assert_as_from_scratch(figures: dict[str, Any], model: Path, source: str | Path, out: Path, **options: Any) -> None:
    """A version holds the bytes that a compression into an empty folder gives, and all that its manifest lists."""
    scratch = compress(model, source, out, **options)
    assert scratch["reused"] == 0
    assert sums(figures["path"]) == sums(scratch["path"])
    for name in ("rows", "quarantined", "files", "bytes_per_vector"):
        assert figures[name] == scratch[name]
    check_version(figures["path"].rpartition("/")[0], figures["version"])


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 8},
        {"dim": "8,4", "dtype": "binary", "on_bad_row": "quarantine", "max_bad_rows": 0.1},
        pytest.param({"dim": 4, "rows_per_file": 100}, marks=pytest.mark.slow),
    ],
    ids=["one dim", "two dims and quarantine", "pieces"],
)
def test_a_corpus_that_grows_and_shrinks(
    tmp_path: Path, model: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_corpus(tmp_path / "in", [300, 0]), tmp_path / "out"
    add_file(source, "some", 250, bad=(7, 101) if "on_bad_row" in options else ())
    first = compress(model, source, out, **options)
    assert first["reused"] == 0
    assert "taken from" not in capsys.readouterr().err

    # in the middle of the others, so that all rows behind it have new numbers
    add_file(source, "more", 120)
    grown = compress(model, source, out, **options)
    assert (grown["version"], grown["rows"], grown["reused"]) == ("v0002", first["rows"] + 120, first["rows"])
    assert "compressed 120 rows to " in (said := capsys.readouterr().err)
    assert f", {first['rows']} taken from v0001, " in said
    assert_as_from_scratch(grown, model, source, tmp_path / "grown", **options)
    before, now = smec_core.published(out, version="v0001"), smec_core.published(out)
    assert {os.path.basename(name).partition(".")[0] for name in now.changes(before).new} == {"more"}
    assert now.changes(before).gone == ()
    assert sum(len(ids) for ids, _ in now.batches(files=now.changes(before).new)) == 120

    (source / "part-00.parquet").unlink()
    shrunk = compress(model, source, out, **options)
    assert (shrunk["version"], shrunk["rows"], shrunk["reused"]) == ("v0003", grown["rows"] - 300, grown["rows"] - 300)
    assert shrunk["rows_per_s"] == 0
    assert_as_from_scratch(shrunk, model, source, tmp_path / "shrunk", **options)
    gone = smec_core.published(out).changes(now).gone
    assert {os.path.basename(name).partition(".")[0] for name in gone} == {"part-00"}


def test_a_file_with_other_vectors_under_its_name_is_compressed(storage: str, model: Path, tmp_path: Path) -> None:
    source, out = join_uri(storage, "in"), join_uri(storage, "out")
    for number, rows in enumerate((20, 30)):
        part = join_uri(source, f"part-{number}.parquet")
        write_vectors(part, [f"{number}-{row}" for row in range(rows)], vectors(rows, number))
    compress(model, source, out)
    replace_vectors(join_uri(source, "part-1.parquet"))
    figures = compress(model, source, out)
    assert (figures["version"], figures["rows"], figures["reused"]) == ("v0002", 50, 20)
    expected = smec_core.load(model).encode(np.concatenate([vectors(20, 0), -vectors(30, 1)]), 8)
    np.testing.assert_allclose(read(current(out))[1], expected, atol=1e-6)
    scratch = compress(model, source, tmp_path / "scratch")
    assert sums(current(out)) == sums(scratch["path"])


def test_what_is_taken_over_is_not_made_again(tmp_path: Path, model: Path) -> None:
    source, out = write_corpus(tmp_path / "in", [30, 40]), tmp_path / "out"
    compress(model, source, out)
    # vectors that the model does not give, in a version that is whole
    mark_ND = np.eye(8, dtype=np.float32)[np.zeros(30, int)]
    marked = pa.table({"id": [f"d{row}" for row in range(30)], "embedding": embedding_column(mark_ND)})
    pq.write_table(marked, out / "v0001/part-00.parquet")
    content = (out / "v0001/part-00.parquet").read_bytes()
    manifest = json.loads((out / "v0001/_manifest.json").read_text())
    manifest.pop("sha256")
    manifest["files"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "stamp": ""}
    (out / "v0001/_manifest.json").write_bytes(as_record(manifest))
    (out / "CURRENT").write_text("v0001\n")

    add_file(source, "more", 10)
    assert compress(model, source, out)["reused"] == 70
    assert (out / "v0002/part-00.parquet").read_bytes() == content


@pytest.mark.parametrize("harm", ["flip", "missing"])
def test_a_damaged_file_is_made_again_and_told_of(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    options = {"dim": "8,4"}
    source, out = write_corpus(tmp_path / "in", [300, 200]), tmp_path / "out"
    compress(model, source, out, **options)
    harmed = out / "v0001/4/part-00.parquet"
    if harm == "flip":
        content = bytearray(harmed.read_bytes())
        content[len(content) // 2] ^= 1
        harmed.write_bytes(content)
    else:
        harmed.unlink()
    add_file(source, "part-02", 10)
    figures = compress(model, source, out, **options)
    assert (figures["version"], figures["rows"], figures["reused"]) == ("v0002", 510, 200)
    why = "is not as it was written: its checksum differs" if harm == "flip" else "is missing"
    assert f"warning: {harmed}: {why}; its rows are compressed anew" in capsys.readouterr().err
    assert_as_from_scratch(figures, model, source, tmp_path / "scratch", **options)


def test_a_run_that_is_killed_while_it_takes_files_over_is_gone_on_with(tmp_path: Path, model: Path) -> None:
    source, out = write_corpus(tmp_path / "in", [40] * 80), tmp_path / "out"
    compress(model, source, out)
    add_file(source, "part-99", 500)
    settings = CompressSettings(model=str(model), input=str(source), output=str(out), dim=8, workers=1)
    code = "import sys; from pipelines.compress.job import *; run(CompressSettings.model_validate_json(sys.argv[1]))"
    job = subprocess.Popen([sys.executable, "-c", code, settings.model_dump_json()], stderr=subprocess.DEVNULL)
    while len(list(out.glob("v0002/_done/*.json"))) < 3:
        assert job.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    job.kill()
    job.wait()
    assert current(str(out)) == str(out / "v0001")
    assert not (out / "v0002/part-99.parquet").exists()

    done = {path: path.stat().st_mtime_ns for path in out.glob("v0002/_done/*.json")}
    files = [Path(str(path).replace("_done/", "").removesuffix(".v0001.json")) for path in done]
    stamps = [path.stat().st_ino for path in files]
    assert len(files) < 80
    figures = run(settings)
    assert (figures["version"], figures["rows"], figures["reused"]) == ("v0002", 3700, 3200)
    assert [path.stat().st_ino for path in files] == stamps, "finished files were copied again"
    names = {path.name for path in (out / "v0002").iterdir()}
    assert names == {"_manifest.json", "part-99.parquet", *(f"part-{file:02d}.parquet" for file in range(80))}
    assert_as_from_scratch(figures, model, source, tmp_path / "scratch")


def test_other_settings_take_nothing_over(tmp_path: Path, model: Path) -> None:
    source, out = write_corpus(tmp_path / "in", [30]), tmp_path / "out"
    compress(model, source, out)
    changes: list[dict[str, Any]] = [{"dim": 4}, {"dtype": "int8"}, {"on_bad_row": "quarantine"}, {"rows_per_file": 9}]
    for change in changes:
        assert compress(model, source, out, **change)["reused"] == 0


def test_a_version_of_which_the_inputs_are_not_known_lends_nothing(tmp_path: Path, model: Path) -> None:
    source, out = write_corpus(tmp_path / "in", [30]), tmp_path / "out"
    compress(model, source, out)
    manifest = json.loads((out / "v0001/_manifest.json").read_text())
    for name in ("inputs", "sha256"):
        del manifest[name]
    (out / "v0001/_manifest.json").write_text(json.dumps(manifest))
    (out / "CURRENT").write_text("v0001\n")
    add_file(source, "more", 10)
    assert compress(model, source, out)["reused"] == 0
    assert in_force(str(out)).name == "v0002"


def test_a_file_that_is_called_as_a_piece_was_is_another_one(tmp_path: Path, model: Path) -> None:
    (source := tmp_path / "in").mkdir()
    out, options = tmp_path / "out", {"rows_per_file": 100}
    add_file(source, "a", 200)
    compress(model, source, out, **options)
    (source / "a.parquet").rename(tmp_path / "a.parquet")
    pq.write_table(pq.read_table(tmp_path / "a.parquet").slice(0, 100), source / "a.00001.parquet")
    figures = compress(model, source, out, **options)
    assert figures["reused"] == 0
    assert_as_from_scratch(figures, model, source, tmp_path / "scratch", **options)


def test_the_manifest_says_what_each_piece_was_made_of(tmp_path: Path, model: Path) -> None:
    source, out = write_corpus(tmp_path / "in", [250]), tmp_path / "out"
    compress(model, source, out, rows_per_file=100)
    manifest = json.loads((out / "v0001/_manifest.json").read_text())
    found = (source / "part-00.parquet").stat()
    state = {"bytes": found.st_size, "stamp": f"{found.st_ino}-{found.st_ctime_ns}"}
    assert manifest["inputs"] == {
        f"part-00.{count:05d}.parquet": {"file": "part-00.parquet", "rows": rows, **state}
        for count, rows in enumerate(([0, 100], [100, 200], [200, 250]))
    }
    assert "inputs" not in plan_at(out / "v0001")


def test_objects_are_copied_by_their_store(s3: Callable[[str], str], tmp_path: Path, model: Path) -> None:
    source, out = s3("in"), s3("out")
    for name, rows in (("a", 120), ("b", 80)):
        write_vectors(s3(f"in/{name}.parquet"), [f"{name}{row}" for row in range(rows)], vectors(rows, rows))
    compress(model, source, out, dim="8,4")
    write_vectors(s3("in/c.parquet"), [f"c{row}" for row in range(50)], vectors(50, 50))
    figures = compress(model, source, out, dim="8,4")
    assert (figures["version"], figures["rows"], figures["reused"]) == ("v0002", 250, 200)
    assert sums(current(out)) == sums(compress(model, source, tmp_path / "scratch", dim="8,4")["path"])
