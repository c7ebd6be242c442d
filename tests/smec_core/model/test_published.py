"""Published folders as a program reads them: every number type and kind of id; what is damaged, half there or gone."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch

import smec_core
from pipelines.storage.publish import promote, remove_version
from smec_core.data.parquet import embedding_column
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.data.versions import in_force
from smec_core.errors import DamagedError, InputError, SmecError
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from smec_core.model.quantize import to_bits
from tests.publishing import publish

DIM, DIMS, ROWS = 24, (12, 8), 250
SCALES = {str(dim): 0.004 for dim in (DIM, *DIMS)}


def numbers(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    Model([], DIM, {"dims": [DIM, *DIMS], "int8_scales": SCALES}, {}).save(folder)
    return folder


def write_corpus(folder: Path, name: str = "a", first: int = 0, rows: int = ROWS, **columns: Any) -> Path:
    """Adds a file to a corpus, with ids from `first` on and other columns before and after the vectors."""
    folder.mkdir(exist_ok=True)
    ids = pa.array([f"d{row}" for row in range(first, first + rows)])
    table = {"price": pa.array(np.arange(rows) / 4), "id": ids, "embedding": embedding_column(numbers(rows, first))}
    table |= {"title": pa.array([None, "x"] * (rows // 2) + ["y"] * (rows % 2)).dictionary_encode(), **columns}
    pq.write_table(pa.table(table), folder / f"{name}.parquet", row_group_size=100)
    return folder


def rows_of(version: smec_core.Published, column: str = "embedding", **more: Any) -> tuple[list[Any], np.ndarray]:
    batches = list(version.batches(column, **more))
    return [name for ids, _ in batches for name in ids.tolist()], np.concatenate([vectors for _, vectors in batches])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_every_number_type_comes_back_as_numpy(dtype: str, model: Path, tmp_path: Path) -> None:
    publish(tmp_path / "out", model, write_corpus(tmp_path / "corpus"), 12, dtype=dtype)
    version = smec_core.published(tmp_path / "out")
    ids, vectors = rows_of(version, batch_rows=70)
    whole = smec_core.load(model).encode(numbers(ROWS), 12)
    assert ids == [f"d{row}" for row in range(ROWS)]
    assert (version.rows, version.dtype, version.dim, version.dims) == (ROWS, dtype, 12, (12, 8))
    if dtype == "binary":
        np.testing.assert_array_equal(vectors, to_bits(whole))
        both = version.read("embedding", "rescore")
        np.testing.assert_array_equal(both[1], vectors)
        vectors = both[2]
    if version.scale is None:
        assert vectors.dtype == dtype
        np.testing.assert_allclose(vectors, whole, atol=1e-3 if dtype == "float16" else 1e-6)
    else:
        assert vectors.dtype == np.int8
        # to half a step, where nothing was clipped
        np.testing.assert_allclose(vectors * version.scale, whole.clip(-127 * 0.004, 127 * 0.004), atol=0.0021)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(range(ROWS), pa.int64()),
        pa.array(range(ROWS), pa.uint32()),
        pa.array(map(str, range(ROWS)), pa.large_string()),
        pa.array(map(str, range(ROWS)), pa.string_view()),
        pa.array(map(str, range(ROWS))).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_are_what_they_were(ids: pa.Array, model: Path, tmp_path: Path) -> None:
    publish(tmp_path / "out", model, write_corpus(tmp_path / "corpus", id=ids), 8)
    version = smec_core.published(tmp_path / "out")
    assert version.id_type == ids.type
    assert rows_of(version)[0] == ids.to_pylist()
    assert version.arrow(["id"]).read_all()["id"].to_pylist() == ids.to_pylist()


def test_other_columns_come_as_arrow(model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    publish(tmp_path / "out", model, corpus, 8, dtype="int8")
    version = smec_core.published(tmp_path / "out")
    assert version.columns == ("price", "title")
    table, given = version.arrow(batch_rows=60).read_all(), pq.read_table(corpus)
    assert table.schema == version.schema
    assert table.column_names == ["price", "id", "embedding", "title"]
    assert table.drop_columns("embedding").to_pylist() == given.drop_columns("embedding").to_pylist()
    assert version.arrow(["title", "id"]).schema.names == ["title", "id"]
    with pytest.raises(InputError, match="column colour is missing; it holds price, id, embedding, title"):
        version.arrow(["colour"])
    with pytest.raises(InputError, match="column price: int8 vectors are in embedding"):
        next(version.batches("price"))


def test_a_column_that_changes_its_type_is_refused_where_it_is_asked_for(model: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", "a")
    write_corpus(tmp_path / "corpus", "b", ROWS, 10, price=pa.array(range(10), pa.int32()))
    publish(tmp_path / "out", model, tmp_path / "corpus", 8)
    version = smec_core.published(tmp_path / "out")
    with pytest.raises(InputError, match=r"b\.parquet: column price is int32, but double in a\.parquet; leave it out"):
        version.arrow().read_all()
    assert version.arrow(["id", "title", "embedding"]).read_all().num_rows == len(rows_of(version)[0]) == ROWS + 10


def test_one_of_several_dims_without_the_rows_that_were_set_apart(model: Path, tmp_path: Path) -> None:
    vectors = numbers(ROWS)
    vectors[3] = 0
    write_corpus(tmp_path / "corpus", embedding=embedding_column(vectors))
    publish(tmp_path / "out", model, tmp_path / "corpus", 12, 8, on_bad_row="quarantine")
    whole, small = smec_core.published(tmp_path / "out"), smec_core.published(tmp_path / "out", dim=8)
    assert (whole.dim, small.dim, whole.dims, small.dims) == (12, 8, (12, 8), (8,))
    for version in (whole, small):
        ids, found = rows_of(version)
        assert len(ids) == version.rows == ROWS - 1
        assert "d3" not in ids
        assert found.shape == (ROWS - 1, version.dim)
    with pytest.raises(InputError, match=r"dim is 10, but .*v0001 holds vectors of 12, 8 dims"):
        smec_core.published(tmp_path / "out", dim=10)


def test_numbers_that_are_not_whole_are_refused(out: Path) -> None:
    dim = smec_core.published(out).dim
    assert smec_core.published(out, dim=int(dim)).key == smec_core.published(out).key
    with pytest.raises(InputError, match=rf"dim is {float(dim)}, but .* holds vectors of {dim} dims"):
        smec_core.published(out, dim=float(dim))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"version is 1\.0; give a name, as v0001, or its number"):
        smec_core.published(out, version=1.0)  # type: ignore[arg-type]


def test_files_may_come_one_by_one(out: Path) -> None:
    version = smec_core.published(out)
    found = version.batches(files=map(str, version.files))  # type: ignore[arg-type]
    assert sum(len(ids) for ids, _ in found) == version.rows > 0
    with pytest.raises(InputError, match="batch_rows is 0; give at least 1"):
        version.arrow(batch_rows=0)


def test_a_version_stays_what_it_is_while_a_later_one_comes(model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    publish(tmp_path / "out", model, corpus, 8)
    first = smec_core.published(tmp_path / "out")
    reading = first.batches(batch_rows=100)
    next(reading)
    publish(tmp_path / "out", model, corpus, 12)
    assert sum(len(ids) for ids, _ in reading) == ROWS - 100
    assert (smec_core.published(tmp_path / "out").version, first.version) == ("v0002", "v0001")
    again = smec_core.published(tmp_path / "out", version="v0001")
    assert (again.key, again.dim) == (first.key, 8)
    assert smec_core.published(tmp_path / "out", version=1).key == first.key
    for never in ("v0007", 7, "1"):
        with pytest.raises(
            InputError, match=r"out: there is no version \w+; give one that is there: v0001, v0002"
        ) as told:
            smec_core.published(tmp_path / "out", version=never)
        assert not isinstance(told.value, DamagedError)


def test_no_two_sets_of_vectors_share_a_key(model: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    publish(tmp_path / "one", model, tmp_path / "corpus", 12)
    publish(tmp_path / "other", model, tmp_path / "corpus", 12, 8)
    keys = {smec_core.published(tmp_path / out, dim=dim).key for out, dim in (("one", 12), ("other", 12), ("other", 8))}
    assert len(keys) == 3


def test_what_has_changed_is_enough_to_bring_a_store_up_to_date(model: Path, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write_corpus(tmp_path / "corpus", name, 100 * number, 50)
    publish(tmp_path / "out", model, tmp_path / "corpus", 8)
    before = smec_core.published(tmp_path / "out")
    store = dict(zip(*rows_of(before), strict=True))
    write_corpus(tmp_path / "corpus", "b", 110, 50)
    (tmp_path / "corpus/c.parquet").unlink()
    write_corpus(tmp_path / "corpus", "d", 300, 50)
    publish(tmp_path / "out", model, tmp_path / "corpus", 8)
    now = smec_core.published(tmp_path / "out")
    changes = now.changes(before)
    assert changes.same == ("a.parquet",)
    assert changes.new == ("b.parquet", "d.parquet")
    assert changes.gone == ("b.parquet", "c.parquet")
    for gone, _ in before.batches(files=changes.gone):
        for name in gone:
            del store[name]
    store |= dict(zip(*rows_of(now, files=changes.new), strict=True))
    ids, vectors = rows_of(now)
    assert store.keys() == {*ids}
    np.testing.assert_array_equal(np.stack([store[name] for name in ids]), vectors)
    publish(tmp_path / "out", model, tmp_path / "corpus", 12)
    assert smec_core.published(tmp_path / "out").changes(now) == ((), now.files, now.files)
    with pytest.raises(InputError, match=r"has no file c\.parquet"):
        now.arrow(files=["c.parquet"])


@pytest.fixture
def out(model: Path, tmp_path: Path) -> Path:
    """Two versions of two files each; the second is in force."""
    for number, name in enumerate("ab"):
        write_corpus(tmp_path / "corpus", name, 100 * number, 100)
    publish(tmp_path / "out", model, tmp_path / "corpus", 8)
    publish(tmp_path / "out", model, tmp_path / "corpus", 12)
    return tmp_path / "out"


def test_a_folder_without_a_version_in_force_is_told_from_one_that_is_none(out: Path, tmp_path: Path) -> None:
    for folder, cure in {
        out.parent / "nothing": "give the folder that `smec compress --output` or .* named",
        out.parent / "corpus": "give the folder that `smec compress --output` or .* named",
        out / "v0002": f"it is a version itself: give the folder that holds it, {out}$",
    }.items():
        with pytest.raises(InputError, match=rf"no version is published there \(no file CURRENT\); {cure}"):
            smec_core.published(folder)
    (out / "CURRENT").unlink()
    with pytest.raises(InputError, match="it holds versions, so copy CURRENT, too, or publish again"):
        smec_core.published(out)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda version: (version / "b.parquet").unlink(), r"v0002/b\.parquet: is missing"),
        (
            lambda version: (version / "b.parquet").write_bytes(b"PAR1"),
            r"v0002/b\.parquet: has 4 bytes instead of [\d,]+",
        ),
        (
            lambda version: (version / "_manifest.json").unlink(),
            r"CURRENT: names 'v0002', which is no finished version",
        ),
        (lambda version: (version / "_manifest.json").write_text("{}"), r"_manifest\.json: is not a manifest"),
        (
            lambda version: shutil.copy(version.parent / "v0001/_manifest.json", version),
            "CURRENT: names 'v0002', which",
        ),
        (lambda version: shutil.rmtree(version), r"CURRENT: names 'v0002', which is no finished version"),
        (lambda version: (version.parent / "CURRENT").write_text("v00"), "CURRENT: names no version"),
    ],
    ids=[
        "no file",
        "half a file",
        "no manifest",
        "no version's manifest",
        "another's manifest",
        "no version",
        "CURRENT",
    ],
)
def test_a_copy_made_by_half_is_refused_before_anything_is_read(
    spoil: Callable[[Path], Any], told: str, out: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(out, tmp_path / "copy")
    spoil(copy / "v0002")
    with pytest.raises(DamagedError, match=f"{told}.*; copy the folder again, CURRENT last, or publish again"):
        smec_core.published(copy)
    # what was there before is still good
    if (copy / "v0001").exists():
        assert len(rows_of(smec_core.published(copy, version="v0001"))[0]) == 200


def test_a_flipped_bit_is_found_wherever_it_is(out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "copy")
    rng = np.random.default_rng(0)
    for file in [*sorted((copy / "v0002").iterdir()), copy / "CURRENT"]:
        content = file.read_bytes()
        for place in rng.integers(len(content), size=25):
            spoilt = bytearray(content)
            spoilt[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(spoilt)
            with pytest.raises(InputError, match=r"CURRENT|_manifest\.json|[ab]\.parquet"):
                rows_of(smec_core.published(copy))
        file.write_bytes(content)
    assert len(rows_of(smec_core.published(copy))[0]) == 200


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(out: Path) -> None:
    version = smec_core.published(out)
    for when, told in ((150, r"b\.parquet"), (60, r"a\.parquet")):
        file = out / "v0002" / ("b.parquet" if when == 150 else "a.parquet")
        content = file.read_bytes()
        read = 0
        with pytest.raises(DamagedError, match=f"{told}: (was changed while it was read|is not as it was written)"):
            for ids, _ in version.batches(batch_rows=60):
                read += len(ids)
                if read >= when:
                    file.unlink()
                    file.write_bytes(content[:-9] + b"?" + content[-8:])
        file.write_bytes(content)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_version_that_is_removed_while_it_is_read_is_told(replaced: bool, out: Path, model: Path) -> None:
    version = smec_core.published(out, version="v0001")
    reading = version.batches(batch_rows=60)
    next(reading)
    remove_version(str(out), "v0001")
    if replaced:
        shutil.copytree(out / "v0002", out / "v0001")
    with pytest.raises(SmecError, match=r"v0001: was removed or replaced .*, and v0002 is in force now; open") as told:
        list(reading)
    assert told.value.exit_code == 1


def test_versions_that_come_and_go_are_never_taken_for_damaged_ones(out: Path, model: Path, tmp_path: Path) -> None:
    names = ["v0001", *(publish(out, model, tmp_path / "corpus", 12) for _ in range(30))]
    promote(str(out), "v0001", in_force(str(out)))

    def go_on() -> None:
        for before, name in pairwise(names):
            promote(str(out), name, in_force(str(out)))
            remove_version(str(out), before)

    opened = set()
    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(go_on)
        while not going_on.done():
            opened.add(smec_core.published(out).version)
        going_on.result()
    assert len(opened) > 1


def test_the_model_is_loaded_from_where_it_was_or_where_it_is_said_to_be(
    out: Path, model: Path, tmp_path: Path
) -> None:
    fingerprint = smec_core.load(model).fingerprint
    assert smec_core.published(out).model.fingerprint == fingerprint
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    assert smec_core.published(out, model=moved).model.fingerprint == fingerprint
    assert smec_core.published(out, model=smec_core.load(moved)).model.fingerprint == fingerprint
    turned = FrozenStage(DIM, "rotation", {"weight": torch.eye(DIM).flip(0), "logits": torch.zeros(DIM)})
    other = Model([turned], DIM, {"dims": [DIM, 8]}, {})
    version = smec_core.published(out, model=tmp_path / "nowhere")
    assert version.rows == 200
    with pytest.raises(InputError, match=r"nowhere: not a model folder .*; give the one that made .*published\("):
        _ = version.model
    with pytest.raises(InputError, match=r"the model given: has the fingerprint .* was made by the model"):
        _ = smec_core.published(out, model=other).model
    # another one where it was
    shutil.move(model, tmp_path / "away")
    try:
        other.save(model)
        with pytest.raises(InputError, match=rf"{model}: has the fingerprint .* was made by the model"):
            _ = smec_core.published(out).model
    finally:
        shutil.rmtree(model)
        shutil.move(tmp_path / "away", model)


def test_it_is_read_from_an_object_store(model: Path, tmp_path: Path, s3: Callable[[str], str]) -> None:
    publish(s3("deep/out"), model, write_corpus(tmp_path / "corpus"), 12, dtype="int8")
    version = smec_core.published(s3("deep/out"))
    assert rows_of(version)[0] == [f"d{row}" for row in range(ROWS)]
    assert version.arrow().read_all().num_rows == ROWS
    filesystem, path = open_filesystem(join_uri(s3("deep/out"), "v0001/a.parquet"))
    content = _read(filesystem, path)
    with filesystem.open_output_stream(path) as sink:
        sink.write(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(DamagedError, match=r"^s3://.*/deep/out/v0001/a\.parquet: is not as it was written"):
        rows_of(version)
    filesystem.delete_file(path)
    with pytest.raises(DamagedError, match=r"a\.parquet: is missing; copy the folder again"):
        smec_core.published(s3("deep/out"))
    with pytest.raises(InputError, match="no version is published there"):
        smec_core.published(s3("deep"))


def _read(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path, compression=None) as source:
        content: bytes = source.read()
    return content


def test_a_folder_of_the_first_edition_is_read() -> None:
    folder = Path(__file__).parents[2] / "data/first_edition/vectors"
    version = smec_core.published(folder)
    ids, vectors = rows_of(version)
    assert len(ids) == len(vectors) == version.rows == 60
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_reading_needs_neither_ray_nor_mlflow(out: Path) -> None:
    script = (
        "import sys, smec_core; version = smec_core.published(sys.argv[1])\n"
        "print(sum(len(ids) for ids, _ in version.batches()), version.model.input_dim, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"200 {DIM} ")
    assert not {"ray", "mlflow", "pipelines"} & {*done.stdout.split()}
