"""Compression within pipelines of real Ray Data, beside what `smec compress` writes."""

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

import smec_core
from pipelines.transform import Compress
from smec_core.data.parquet import embedding_column
from smec_core.errors import InputError, RowError
from tests.kills import REPOSITORY
from tests.pipelines.compress.corpora import compress, vectors, write_corpus


def batch(rows: int = 4, **columns: Any) -> pa.Table:
    ids = [f"d{row}" for row in range(rows)]
    return pa.table({"id": ids, "embedding": embedding_column(vectors(rows)), **columns})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files, with a column on either side of the vectors that is none."""
    folder = write_corpus(tmp_path / "in", [250, 999], year=lambda count: pa.array(range(count), pa.int16()))
    for path in folder.iterdir():
        table = pq.read_table(path)
        labels = pa.array(["a", None, "b"] * len(table)).slice(0, len(table)).dictionary_encode()
        pq.write_table(table.add_column(0, "label", labels), path)
    return folder


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("dtype", "on_actors"), [("float32", False), ("float16", False), ("int8", True), ("binary", True)]
)
def test_tables_are_those_that_smec_compress_writes(
    tmp_path: Path, model: Path, corpus: Path, dtype: Any, on_actors: bool
) -> None:
    rows = ray.data.read_parquet(str(corpus))
    if on_actors:
        made = rows.map_batches(
            Compress, fn_constructor_args=(str(model), 8, dtype), concurrency=2, batch_format="pyarrow"
        )
    else:
        made = rows.map_batches(Compress(str(model), dim=8, dtype=dtype), batch_format="pyarrow")
    made.write_parquet(str(tmp_path / "made"))
    figures = compress(model, corpus, tmp_path / "out", dtype=dtype)

    written, expected = (
        pa.concat_tables(
            [pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))], promote_options="permissive"
        )
        for folder in (tmp_path / "made", figures["path"])
    )
    assert written.column_names == expected.column_names
    for name in ("embedding", "rescore", "year"):
        if name in expected.column_names:
            assert written.schema.field(name).type == expected.schema.field(name).type
    order = {name: row for row, name in enumerate(written["id"].to_pylist())}
    written = written.take([order[name] for name in expected["id"].to_pylist()])
    for name in expected.column_names:
        assert written[name].to_pylist() == expected[name].to_pylist(), name


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_tensors_of_ray_data_are_taken(model: Path) -> None:
    x_ND, loaded = vectors(40), smec_core.load(model)
    tensors = ray.data.range(40).map_batches(lambda rows: {"id": rows["id"], "embedding": x_ND[rows["id"]]})
    found = tensors.map_batches(Compress(loaded, dim=4), batch_format="pyarrow").to_pandas().sort_values("id")
    np.testing.assert_allclose(np.stack(found["embedding"]), loaded.encode(x_ND, 4), atol=1e-6)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_bad_row_ends_the_pipeline_by_its_name(tmp_path: Path, model: Path) -> None:
    x_ND = vectors(30)
    x_ND[17] = 0
    pq.write_table(batch(30).set_column(1, "embedding", embedding_column(x_ND)), tmp_path / "corpus.parquet")
    rows = ray.data.read_parquet(str(tmp_path / "corpus.parquet"))
    with pytest.raises(Exception, match=r"batch: row 17, column embedding: is a zero vector, .* \(id d17\)"):
        rows.map_batches(Compress(str(model), dim=4), batch_format="pyarrow").materialize()


def test_columns_of_other_names_keep_these(model: Path) -> None:
    made = Compress(model, dim=8, dtype="binary", columns={"id": "sku", "embedding": "image"})(
        batch(3, other=["x", "y", "z"]).rename_columns(["sku", "image", "embedding"])
    )
    assert made.column_names == ["sku", "image", "rescore", "embedding"]
    assert made["embedding"].to_pylist() == ["x", "y", "z"]
    assert made.schema.field("image").type == pa.list_(pa.uint8(), 1)
    assert made.schema.field("rescore").type == pa.list_(pa.int8(), 8)


def test_large_batches_are_encoded_in_cuts_and_empty_ones_keep_their_columns(model: Path) -> None:
    compressed = Compress(model, dim=8)
    rows = batch(20_000)
    pieces = pa.concat_tables([rows.slice(0, 7), rows.slice(7)])
    np.testing.assert_array_equal(
        np.stack(compressed(pieces)["embedding"].to_numpy()), np.stack(compressed(rows)["embedding"].to_numpy())
    )
    assert compressed(rows.slice(0, 0)).schema == compressed(rows).schema
    bad = rows.set_column(0, "id", pa.array([None if row == 9000 else "x" for row in range(20_000)]))
    with pytest.raises(RowError, match=r"batch: row 9000, column id: is null; every row needs an id"):
        compressed(bad)


@pytest.mark.parametrize(
    ("rows", "options", "why"),
    [
        (batch().drop_columns("embedding"), {}, "batch: column embedding is missing; it holds id"),
        (batch().rename_columns(["sku", "embedding"]), {}, "batch: column id is missing; it holds sku, embedding"),
        (batch(rescore=[1, 2, 3, 4]), {"dtype": "binary"}, "batch: column rescore: binary vectors need this name"),
        (
            pa.table({"id": ["a"], "embedding": embedding_column(np.ones((1, 3), np.float32))}),
            {},
            r"batch: row 0, column embedding: has 3 dims, but 16 are expected \(id a\)",
        ),
        (batch(), {"dim": 17}, "dim is 17; this model gives 1 to 16"),
        (batch(), {"dim": 5, "dtype": "int8"}, "dim is 5, but for int8 vectors this model has scales for"),
        (batch().to_pydict(), {}, 'batch: is a dict, not an Arrow table; say batch_format="pyarrow"'),
    ],
)
def test_what_does_not_fit_is_refused(model: Path, rows: Any, options: dict[str, Any], why: str) -> None:
    arguments: dict[str, Any] = {"model": model, "dim": 8} | options
    with pytest.raises(InputError, match=why):
        Compress(**arguments)(rows)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="dtype is 'int4'; it must be float32, float16, int8, binary"):
        Compress("model", dim=8, dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"dim is 8\.0; it must be a whole number"):
        Compress("model", dim=8.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="columns: names 'vector'; only id and embedding are read"):
        Compress("model", dim=8, columns={"vector": "embedding"})
    with pytest.raises(InputError, match="columns: is 'id'; say what each is called"):
        Compress("model", dim=8, columns="id")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="embedding: Input should be a valid string"):
        Compress("model", dim=8, columns={"embedding": 7})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="device is 'zz'; give cpu or cuda"):
        Compress("model", dim=8, device="zz")


def test_it_pickles_as_its_arguments_and_loads_a_model_once_in_a_process(tmp_path: Path, model: Path) -> None:
    smec_core.load(model).save(tmp_path / "model")
    first = Compress(tmp_path / "model", dim=8)
    expected = first(batch())
    assert len(pickle.dumps(first)) < 1000
    (tmp_path / "model").rename(tmp_path / "moved")
    assert pickle.loads(pickle.dumps(first))(batch()).equals(expected)
    with pytest.raises(InputError, match="model: not a model folder"):
        Compress(tmp_path / "model", dim=8)(batch())


@pytest.mark.ray
def test_the_example_of_the_guide_runs(tmp_path: Path, model: Path) -> None:
    section = (REPOSITORY / "docs/compress.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    write_corpus(tmp_path / "corpus", [30, 20])
    smec_core.load(model).save(tmp_path / "model")
    example = example.replace("DATA/", "").replace("dim=96", "dim=8")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "small")
    assert table.schema.field("embedding").type == pa.list_(pa.int8(), 8)
    assert len(table) == 50


@pytest.mark.parametrize(("dim", "told"), [(99, "99"), (-1, "-1")])
def test_an_empty_batch_is_checked_too(model: Path, dim: int, told: str) -> None:
    empty = batch().slice(0, 0)
    assert Compress(model, 4)(empty).schema.field("embedding").type.list_size == 4
    with pytest.raises(InputError, match=told):
        Compress(model, dim)(empty)
