"""Compression of embedding shards on a real Ray cluster: what is published, what is refused, what a kill leaves."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import smec_core
from pipelines.compress import CompressSettings, run
from pipelines.publish import current
from smec_core.adapter import FrozenStage
from smec_core.errors import InputError, SmecError
from smec_core.model import Model
from smec_core.parquet import EmbeddingTable, embedding_column

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

DIM = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of two random stages, 16 to 8 to 4 dims."""
    generator = torch.Generator().manual_seed(0)
    stages = [
        FrozenStage(dim, "free", {"weight": torch.randn(d_in, d_in, generator=generator), "logits": torch.ones(d_in)})
        for d_in, dim in ((16, 8), (8, 4))
    ]
    folder = tmp_path_factory.mktemp("model")
    Model(stages, DIM, {"dims": [16, 8, 4]}, {}).save(folder)
    return folder


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def write_corpus(folder: Path, rows: list[int], **columns: Callable[[int], pa.Array]) -> Path:
    """One file per entry of `rows`; ids run on over the files."""
    folder.mkdir()
    first = 0
    for file, count in enumerate(rows):
        ids = pa.array([f"d{first + row}" for row in range(count)], pa.string())
        table = {"id": ids, "embedding": embedding_column(vectors(count, seed=file))}
        table |= {name: make(count) for name, make in columns.items()}
        pq.write_table(pa.table(table), folder / f"part-{file:02d}.parquet", row_group_size=100)
        first += count
    return folder


def read(folder: str | Path) -> tuple[list[str], np.ndarray]:
    blocks = list(EmbeddingTable.open(str(folder)).blocks())
    return [name for block in blocks for name in block.ids.to_pylist()], np.concatenate([b.vectors_ND for b in blocks])


def compress(model: Path, source: Path, out: Path, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"model": str(model), "input": str(source), "output": str(out), "dim": 8, "workers": 1}
    return run(CompressSettings(**(settings | more)))


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
    manifest = json.loads((tmp_path / "out/v0001/manifest.json").read_text())
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
    code = "import sys; from pipelines.compress import *; run(CompressSettings.model_validate_json(sys.argv[1]))"
    job = subprocess.Popen([sys.executable, "-c", code, settings.model_dump_json()], stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "out").glob("v0002/*.parquet"))) < 3:
        assert job.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    job.kill()
    job.wait()
    assert not (tmp_path / "out/v0002/manifest.json").exists()
    assert current(str(tmp_path / "out")) == str(tmp_path / "out/v0001")

    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/v0002").glob("*.parquet")}
    figures = run(settings)
    assert (figures["version"], figures["rows"]) == ("v0002", 24_000)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items()), "finished files were written again"
    names = {path.name for path in (tmp_path / "out/v0002").iterdir()}
    assert names == {"manifest.json", *(f"part-{file:02d}.parquet" for file in range(60))}
    ids, out_Nd = read(current(str(tmp_path / "out")))
    assert ids == [f"d{row}" for row in range(24_000)]
    expected = smec_core.load(model).encode(np.concatenate([vectors(400, file) for file in range(60)]), 8)
    np.testing.assert_allclose(out_Nd, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "zero vector")]
)
def test_bad_row_is_named_and_nothing_is_published(tmp_path: Path, model: Path, value: float, why: str) -> None:
    source = write_corpus(tmp_path / "in", [300, 300])
    bad_ND = vectors(300)
    bad_ND[217] = value
    pq.write_table(
        pa.table({"id": [f"x{row}" for row in range(300)], "embedding": embedding_column(bad_ND)}),
        source / "part-01.parquet",
        row_group_size=100,
    )
    with pytest.raises(InputError, match=rf"part-01\.parquet: row 217, column embedding: .*{why}") as caught:
        compress(model, source, tmp_path / "out", batch_rows=50)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_null_id_is_named(tmp_path: Path, model: Path) -> None:
    table = pa.table({"id": ["a", "b", None], "embedding": embedding_column(vectors(3))})
    pq.write_table(table, tmp_path / "corpus.parquet")
    with pytest.raises(InputError, match=r"corpus\.parquet: row 2, column id: is null"):
        compress(model, tmp_path / "corpus", tmp_path / "out")


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


def random_rotation(dim: int, seed: int) -> torch.Tensor:
    matrix = torch.eye(dim) + 0.4 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)) / dim**0.5
    return torch.linalg.qr(matrix)[0]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The model, extended from 4 to 3 dims."""
    rotation = FrozenStage(3, "rotation", {"weight": random_rotation(4, 0), "logits": torch.zeros(4)})
    folder = tmp_path_factory.mktemp("extended")
    smec_core.load(model).extended([rotation], {"dims": [16, 3]}, {}).save(folder)
    return folder


def upgrade(model: Path, source: str | Path, out: Path, **more: Any) -> dict[str, Any]:
    return run(CompressSettings(model=str(model), input=str(source), output=str(out), upgrade=True, workers=1, **more))


def test_upgraded_vectors_are_what_the_new_model_makes_of_the_originals(
    tmp_path: Path, model: Path, extended: Path
) -> None:
    source = write_corpus(tmp_path / "in", [250, 0, 3], year=lambda count: pa.array(range(count), pa.int16()))
    out, new = tmp_path / "out", smec_core.load(extended)
    compress(model, source, out, dim=8)
    figures = upgrade(extended, out, out, batch_rows=64)
    assert (figures["version"], figures["rows"], figures["bytes_per_vector"]) == ("v0002", 253, 32)
    assert current(str(out)) == str(out / "v0002")
    x_ND = np.concatenate([vectors(250, 0), vectors(3, 2)])
    ids, upgraded_Nd = read(out / "v0002")
    assert ids == [f"d{row}" for row in range(253)]
    np.testing.assert_allclose(upgraded_Nd, new.encode(x_ND, 8), atol=1e-6)
    assert pq.read_table(out / "v0002/part-02.parquet")["year"].to_pylist() == [0, 1, 2]
    manifest = json.loads((out / "v0002/manifest.json").read_text())
    assert manifest["model_fingerprint"] == new.fingerprint
    assert (manifest["dim"], manifest["dims"], manifest["input"]) == (8, [8, 4, 3], str(out / "v0001"))
    base = smec_core.load(model).fingerprint
    assert manifest["upgraded_from"] == {"model_fingerprint": base, "dim": 8, "dtype": "float32"}

    upgrade(extended, out / "v0001", tmp_path / "small", dim=3)
    assert read(tmp_path / "small/v0001")[1].shape == (253, 3)
    np.testing.assert_allclose(read(tmp_path / "small/v0001")[1], new.encode(x_ND, 3), atol=1e-6)


def test_vectors_without_a_manifest_are_taken_as_those_of_the_base(
    tmp_path: Path, model: Path, extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = smec_core.load(model), smec_core.load(extended)
    stored_Nw = base.encode(vectors(20), 4).astype(np.float16)
    table = pa.table({"id": [f"d{row}" for row in range(20)], "embedding": embedding_column(stored_Nw)})
    pq.write_table(table, tmp_path / "corpus.parquet")
    upgrade(extended, tmp_path / "corpus.parquet", tmp_path / "out")
    told = capsys.readouterr().err
    assert f"they are taken as those of the base {base.fingerprint[:12]}" in told
    assert "warning: the stored vectors are float16" in told
    upgraded_Nd = read(current(str(tmp_path / "out")))[1]
    np.testing.assert_allclose(upgraded_Nd, new.upgrade(stored_Nw), atol=1e-6)
    np.testing.assert_allclose(upgraded_Nd, new.encode(vectors(20), 4), atol=2e-3)


def test_vectors_that_the_base_did_not_make_are_refused(tmp_path: Path, model: Path, extended: Path) -> None:
    source, out, again = write_corpus(tmp_path / "in", [5]), tmp_path / "out", tmp_path / "again"
    compress(model, source, out)
    with pytest.raises(InputError, match="extends no other model, so it upgrades no vectors"):
        upgrade(model, out, again)
    with pytest.raises(InputError, match="dim is 9, but the vectors to upgrade have 8 dims"):
        upgrade(extended, out, again, dim=9)
    with pytest.raises(InputError, match="dim: is required"):
        run(CompressSettings(model=str(model), input=str(source), output=str(again)))

    manifest = out / "v0001/manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"model": "models/first", "model_fingerprint": "0123456789abcdef"}))
    base = smec_core.load(model).fingerprint[:12]
    for stored in (out, out / "v0001", out / "v0001/part-00.parquet"):
        with pytest.raises(
            InputError, match=rf"model 0123456789ab \(models/first\) made these vectors, but .* its base {base}"
        ):
            upgrade(extended, stored, again)
    manifest.write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json: is not a manifest of smec compress"):
        upgrade(extended, out, again)
    manifest.write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: is damaged"):
        upgrade(extended, out, again)
    manifest.unlink()
    (out / "v0001/plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"v0001: a version that is not finished"):
        upgrade(extended, out / "v0001", again)
    compress(extended, source, out)
    with pytest.raises(InputError, match="made these vectors itself; there is nothing to upgrade"):
        upgrade(extended, out, again)

    narrow = pa.table({"id": ["a"], "embedding": embedding_column(np.ones((1, 3), np.float32))})
    pq.write_table(narrow, tmp_path / "narrow.parquet")
    with pytest.raises(InputError, match="vectors have 3 dims, but an upgrade needs the first 4 to 16"):
        upgrade(extended, tmp_path / "narrow.parquet", again)
    assert not again.exists()


def test_interrupted_upgrade_is_taken_up_again(tmp_path: Path, model: Path, extended: Path) -> None:
    out = tmp_path / "out"
    compress(model, write_corpus(tmp_path / "in", [300, 300]), out, dim=8)
    upgrade(extended, out, out)
    # as a run leaves it that is killed after its first file
    plan = json.loads((out / "v0002/manifest.json").read_text())
    for key in ("format", "version", "created", "rows", "files"):
        del plan[key]
    (out / "v0002/plan.json").write_text(json.dumps(plan))
    (out / "v0002/manifest.json").unlink()
    (out / "v0002/part-01.parquet").unlink()
    (out / "CURRENT").write_text("v0001\n")
    stamp = (out / "v0002/part-00.parquet").stat().st_mtime_ns
    assert upgrade(extended, out, out)["version"] == "v0002"
    assert (out / "v0002/part-00.parquet").stat().st_mtime_ns == stamp
    np.testing.assert_allclose(
        read(out / "v0002")[1],
        smec_core.load(extended).encode(np.concatenate([vectors(300, 0), vectors(300, 1)]), 8),
        atol=1e-6,
    )
