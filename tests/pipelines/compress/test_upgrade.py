"""Stored vectors brought up to a model that extends the one that made them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smec_core
from pipelines.compress.job import run
from pipelines.compress.settings import CompressSettings
from smec_core.data.parquet import embedding_column
from smec_core.data.records import as_record
from smec_core.data.versions import current
from smec_core.errors import InputError
from tests.pipelines.compress.corpora import compress, read, unfinish, upgrade, vectors, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


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
    manifest = json.loads((out / "v0002/_manifest.json").read_text())
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

    manifest = out / "v0001/_manifest.json"
    facts = json.loads(manifest.read_text())
    facts.pop("sha256")
    manifest.write_bytes(as_record(facts | {"model": "models/first", "model_fingerprint": "0123456789abcdef"}))
    # as earlier versions wrote it, without the manifest's checksum
    (out / "CURRENT").write_text("v0001\n")
    base = smec_core.load(model).fingerprint[:12]
    for stored in (out, out / "v0001", out / "v0001/part-00.parquet"):
        with pytest.raises(
            InputError, match=rf"model 0123456789ab \(models/first\) made these vectors, but .* its base {base}"
        ):
            upgrade(extended, stored, again)
    manifest.write_text("{}")
    with pytest.raises(InputError, match=r"_manifest\.json: is not a manifest of smec compress"):
        upgrade(extended, out, again)
    manifest.write_text("{")
    with pytest.raises(InputError, match=r"_manifest\.json: is damaged"):
        upgrade(extended, out, again)
    manifest.unlink()
    (out / "v0001/plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"v0001: a version that is not finished"):
        upgrade(extended, out / "v0001", again)
    compress(extended, source, out)
    with pytest.raises(InputError, match="made these vectors itself; there is nothing to upgrade"):
        upgrade(extended, out, again)
    with pytest.raises(InputError, match="made these vectors itself; there is nothing to upgrade"):
        upgrade(extended, out, out)

    narrow = pa.table({"id": ["a"], "embedding": embedding_column(np.ones((1, 3), np.float32))})
    pq.write_table(narrow, tmp_path / "narrow.parquet")
    with pytest.raises(InputError, match="vectors have 3 dims, but an upgrade needs the first 4 to 16"):
        upgrade(extended, tmp_path / "narrow.parquet", again)
    assert not again.exists()


@pytest.mark.slow
def test_interrupted_upgrade_is_taken_up_again(tmp_path: Path, model: Path, extended: Path) -> None:
    out = tmp_path / "out"
    compress(model, write_corpus(tmp_path / "in", [300, 300]), out, dim=8)
    upgrade(extended, out, out)
    # as a run leaves it that is killed after its first file
    unfinish(out / "v0002")
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


def test_upgrade_in_place_that_runs_again_has_nothing_to_do(tmp_path: Path, model: Path, extended: Path) -> None:
    out = tmp_path / "out"
    compress(model, write_corpus(tmp_path / "in", [30]), out, dim=8)
    first = upgrade(extended, out, out)
    again = upgrade(extended, out, out)
    assert (again["version"], again["rows"], again["path"]) == (first["version"], 30, first["path"])
    assert not (out / "v0003").exists()
    with pytest.raises(InputError, match="made these vectors itself; there is nothing to upgrade"):
        upgrade(extended, out, out, dim=4)


def test_vectors_that_were_upgraded_are_no_others(tmp_path: Path, model: Path, extended: Path) -> None:
    source = write_corpus(tmp_path / "in", [30])
    upgrade(extended, source, tmp_path / "out")
    assert compress(extended, source, tmp_path / "out", dim=16)["version"] == "v0002"
    np.testing.assert_allclose(read(tmp_path / "out/v0002")[1], smec_core.load(extended).encode(vectors(30)), atol=1e-6)


@pytest.mark.parametrize("manifest", ["_manifest.json", pytest.param("manifest.json", marks=pytest.mark.slow)])
def test_a_version_of_several_dims_is_upgraded_from_its_largest(
    tmp_path: Path, model: Path, extended: Path, manifest: str
) -> None:
    out = tmp_path / "out"
    compress(model, write_corpus(tmp_path / "in", [30]), out, dim="8,4")
    (out / "v0001/_manifest.json").rename(out / "v0001" / manifest)
    upgrade(extended, out, out)
    expected = smec_core.load(extended).encode(vectors(30), 8)
    np.testing.assert_allclose(read(out / "v0002")[1], expected, atol=1e-6)
    compress(model, tmp_path / "in", tmp_path / "small", dim=8, dtype="int8")
    with pytest.raises(InputError, match="int8 vectors cannot be upgraded; give a float version, or the original"):
        upgrade(extended, tmp_path / "small", out)
