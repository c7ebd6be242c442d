"""Compression of embedding shards on a real Ray cluster: what is published, what is refused, what a kill leaves."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import smec_core
from pipelines.compress.job import run
from pipelines.compress.settings import CompressSettings
from pipelines.storage.manifest import finished_task
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.data.versions import current
from smec_core.errors import InputError, SmecError, StoreError
from tests.builders import replace_vectors, write_vectors
from tests.conftest import GuardedBucket
from tests.pipelines.compress.corpora import compress, read, vectors, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_result_is_what_encode_gives_in_the_order_of_the_input(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [250, 0, 1, 999])
    figures = compress(model, source, tmp_path / "out", batch_rows=64, workers=2)
    ids, out_Nd = read(current(str(tmp_path / "out")))
    expected = smec_core.load(model).encode(
        np.concatenate([vectors(n, file) for file, n in ((0, 250), (2, 1), (3, 999))]), 8
    )
    assert ids == [f"d{row}" for row in range(1250)]
    np.testing.assert_allclose(out_Nd, expected, atol=1e-6)
    assert {key: figures[key] for key in ("rows", "files", "bytes_per_vector", "version")} == {
        "rows": 1250,
        "files": 4,
        "bytes_per_vector": 32,
        "version": "v0001",
    }
    names = [part.path.rpartition("/")[2] for part in EmbeddingTable.open(figures["path"]).files]
    assert names == [f"part-{file:02d}.parquet" for file in range(4)]


def test_manifest_lists_what_was_written(tmp_path: Path, model: Path) -> None:
    figures = compress(model, write_corpus(tmp_path / "in", [3, 5]), tmp_path / "out", dim=8)
    manifest = json.loads((tmp_path / "out/v0001/_manifest.json").read_text())
    assert manifest["rows"] == figures["rows"] == 8
    assert manifest["model_fingerprint"] == smec_core.load(model).fingerprint
    assert (manifest["dim"], manifest["dims"], manifest["dtype"]) == (8, [8, 4], "float32")
    assert manifest["input"] == str(tmp_path / "in")
    for file in manifest["files"]:
        content = (tmp_path / "out/v0001" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_other_columns_and_their_order_are_kept(tmp_path: Path, model: Path) -> None:
    labels = pa.array(["a", None, "b", "a"]).dictionary_encode()
    years = pa.array([1, 2, None, 4], pa.int16())
    tags = pa.array([["x"], [], None, ["y", "z"]])
    source = pa.table(
        {
            "year": years,
            "id": ["p", "q", "r", "s"],
            "embedding": embedding_column(vectors(4)),
            "label": labels,
            "tags": tags,
        }
    )
    pq.write_table(source, tmp_path / "corpus.parquet")
    figures = compress(model, tmp_path / "corpus.parquet", tmp_path / "out", dtype="float16", dim=4)
    result = pq.read_table(f"{figures['path']}/corpus.parquet")
    assert result.column_names == source.column_names
    for name in ("year", "id", "label", "tags"):
        assert result[name].to_pylist() == source[name].to_pylist()
        assert result.schema.field(name).type == source.schema.field(name).type
    assert result.schema.field("embedding").type == pa.list_(pa.float16(), 4)
    embedding = pq.read_metadata(f"{figures['path']}/corpus.parquet").row_group(0).column(2)
    assert embedding.path_in_schema.startswith("embedding")
    assert not any("DICTIONARY" in encoding for encoding in embedding.encodings)


def test_second_run_adds_a_version_and_moves_current(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [20])
    first = compress(model, source, tmp_path / "out", dim=8)
    before = (tmp_path / "out/v0001/part-00.parquet").read_bytes()
    second = compress(model, source, tmp_path / "out", dim=4)
    assert (first["version"], second["version"]) == ("v0001", "v0002")
    assert current(str(tmp_path / "out")) == second["path"] == str(tmp_path / "out/v0002")
    assert (tmp_path / "out/v0001/part-00.parquet").read_bytes() == before
    assert read(second["path"])[1].shape == (20, 4)


def test_killed_run_leaves_current_alone_and_the_next_one_ends_its_work(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [400] * 60)
    compress(model, source, tmp_path / "out", dim=4)
    settings = CompressSettings(model=str(model), input=str(source), output=str(tmp_path / "out"), dim=8, workers=1)
    code = "import sys; from pipelines.compress.job import *; run(CompressSettings.model_validate_json(sys.argv[1]))"
    job = subprocess.Popen([sys.executable, "-c", code, settings.model_dump_json()], stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "out").glob("v0002/*.parquet"))) < 3:
        assert job.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    job.kill()
    job.wait()
    assert not (tmp_path / "out/v0002/_manifest.json").exists()
    assert current(str(tmp_path / "out")) == str(tmp_path / "out/v0001")

    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/v0002").glob("*.parquet")}
    figures = run(settings)
    assert (figures["version"], figures["rows"]) == ("v0002", 24_000)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items()), "finished files were written again"
    names = {path.name for path in (tmp_path / "out/v0002").iterdir()}
    assert names == {"_manifest.json", *(f"part-{file:02d}.parquet" for file in range(60))}
    ids, out_Nd = read(current(str(tmp_path / "out")))
    assert ids == [f"d{row}" for row in range(24_000)]
    expected = smec_core.load(model).encode(np.concatenate([vectors(400, file) for file in range(60)]), 8)
    np.testing.assert_allclose(out_Nd, expected, atol=1e-6)

    undisturbed = compress(model, source, tmp_path / "other", dim=8)
    files = [
        [{**file, "stamp": ""} for file in json.loads(Path(path, "_manifest.json").read_text())["files"]]
        for path in (figures["path"], undisturbed["path"])
    ]
    assert files[0] == files[1], "the same bytes"


def test_damaged_file_is_named_in_one_line(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [300])
    content = bytearray((source / "part-00.parquet").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\xff" * 2000
    (source / "part-00.parquet").write_bytes(content)
    with pytest.raises(SmecError, match=r"part-00\.parquet: ") as caught:
        compress(model, source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/CURRENT").exists()


def test_model_that_takes_other_dims_is_refused(tmp_path: Path, model: Path) -> None:
    rows_ND = np.ones((2, 12), np.float32)
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": embedding_column(rows_ND)}), tmp_path / "corpus.parquet")
    with pytest.raises(InputError, match=r"12 dims, but the model .* takes 16"):
        compress(model, tmp_path / "corpus.parquet", tmp_path / "out")
    with pytest.raises(InputError, match=r"dim is 17, but the model has 16"):
        compress(model, write_corpus(tmp_path / "in", [2]), tmp_path / "out", dim=17)
    assert not (tmp_path / "out").exists()


def test_gpu_on_without_a_gpu_is_refused(tmp_path: Path, model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="gpu is on, but the Ray cluster has no GPU"):
        compress(model, write_corpus(tmp_path / "in", [2]), tmp_path / "out", gpu="on")


def test_the_same_run_again_has_nothing_to_do(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [20])
    first = compress(model, source, tmp_path / "out")
    again = compress(model, source, tmp_path / "out")
    assert (again["version"], again["rows"], again["files"], again["rows_per_s"]) == ("v0001", 20, 1, 0.0)
    assert again["path"] == first["path"]
    (source / "part-00.parquet").touch()
    assert compress(model, source, tmp_path / "out")["version"] == "v0002"


def test_other_vectors_of_the_same_size_and_time_are_compressed_anew(
    storage: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = join_uri(storage, "in/part-00.parquet"), join_uri(storage, "out")
    write_vectors(source, [f"d{row}" for row in range(20)], vectors(20))
    compress(model, join_uri(storage, "in"), out)
    replace_vectors(source)
    assert compress(model, join_uri(storage, "in"), out)["version"] == "v0002"
    assert "holds these vectors already" not in capsys.readouterr().err
    np.testing.assert_allclose(read(current(out))[1], smec_core.load(model).encode(-vectors(20), 8), atol=1e-6)


def test_large_files_are_shared_by_row_groups(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [950, 50])
    figures = compress(model, source, tmp_path / "out", rows_per_file=300, workers=2)
    names = [f"part-00.{count:05d}.parquet" for count in range(4)]
    files = {path.name: pq.read_metadata(path).num_rows for path in Path(figures["path"]).glob("*.parquet")}
    assert files == dict(zip([*names, "part-01.parquet"], [300, 300, 300, 50, 50], strict=True))
    ids, out_Nd = read(figures["path"])
    assert ids == [f"d{row}" for row in range(1000)]
    expected = smec_core.load(model).encode(np.concatenate([vectors(950, 0), vectors(50, 1)]), 8)
    np.testing.assert_allclose(out_Nd, expected, atol=1e-6)


def test_two_files_of_one_name_are_refused(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [300])
    pq.write_table(pq.read_table(source / "part-00.parquet"), source / "part-00.00001.parquet")
    with pytest.raises(InputError, match=r"two input files would become part-00\.00001\.parquet; rename one"):
        compress(model, source, tmp_path / "out", rows_per_file=100)


def test_a_store_that_refuses_a_file_takes_no_other_with_it(
    tmp_path: Path, model: Path, guarded_s3: GuardedBucket
) -> None:
    source = write_corpus(tmp_path / "in", [300, 200])
    with pytest.raises(StoreError, match=r"part-01\.parquet: cannot be written"):
        compress(model, source, guarded_s3.uri("half/out"))
    filesystem, folder = open_filesystem(guarded_s3.uri("half/out/v0001"))
    assert finished_task(filesystem, folder, "part-00.parquet") is not None
