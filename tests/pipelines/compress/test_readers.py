"""What other programs make of a published version: pyarrow, Polars and DuckDB, and what it takes on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import smec_core
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from smec_core.model.quantize import learn_int8_scales
from tests.builders import all_vectors
from tests.pipelines.compress.corpora import compress, vectors, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Columns = dict[str, list[Any]]


def by_pyarrow(folder: Path) -> Columns:
    columns: Columns = pq.read_table(folder).to_pydict()
    return columns


def by_polars(folder: Path) -> Columns:
    return polars.read_parquet(folder / "*.parquet").to_dict(as_series=False)


def by_duckdb(folder: Path) -> Columns:
    found = duckdb.read_parquet(f"{folder}/*.parquet")
    return dict(zip(found.columns, map(list, zip(*found.fetchall(), strict=True)), strict=True))


READERS: list[Callable[[Path], Columns]] = [by_pyarrow, by_polars, by_duckdb]


def read(reader: Callable[[Path], Columns], folder: Path) -> dict[str, np.ndarray]:
    """The columns of a version, rows by id: readers may take files in any order."""
    columns = {name: np.array(values) for name, values in reader(folder).items()}
    order_N = np.argsort([int(name[1:]) for name in columns["id"]])
    return {name: values[order_N] for name, values in columns.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_a_version_is_read_by_other_programs(tmp_path: Path, model: Path, dtype: str) -> None:
    source = write_corpus(tmp_path / "in", [300, 0, 7])
    bad = pa.table({"id": ["bad"], "embedding": embedding_column(np.zeros((1, 16), np.float32))})
    pq.write_table(bad, source / "bad.parquet")
    compress(model, source, tmp_path / "out", dtype=dtype, on_bad_row="quarantine")
    version = tmp_path / "out/v0001"
    assert sorted(path.name for path in version.iterdir() if path.suffix != ".parquet") == [
        "_manifest.json",
        "_quarantine",
    ]
    blocks = [pq.read_table(file) for file in sorted(version.glob("part-*.parquet"))]
    table = pa.concat_tables(blocks)
    for reader in READERS:
        columns = read(reader, version)
        assert list(columns) == table.column_names
        assert columns["id"].tolist() == [f"d{row}" for row in range(307)]
        for name in table.column_names[1:]:
            np.testing.assert_array_equal(columns[name], np.array(table[name].to_pylist()), err_msg=reader.__name__)
    if dtype == "float32":
        expected = smec_core.load(model).encode(np.concatenate([vectors(300, 0), vectors(7, 2)]), 8)
        np.testing.assert_allclose(columns["embedding"], expected, atol=1e-6)


def test_a_folder_of_several_dims_is_read_by_other_programs(tmp_path: Path, model: Path) -> None:
    compress(model, write_corpus(tmp_path / "in", [30, 7]), tmp_path / "out", dim="8,4", dtype="int8")
    for dim in (8, 4):
        folder = tmp_path / f"out/v0001/{dim}"
        assert polars.read_parquet(folder).shape == (37, 2)
        for reader in READERS:
            assert read(reader, folder)["embedding"].shape == (37, dim)
    with pytest.raises(pa.ArrowTypeError):
        pq.read_table(tmp_path / "out/v0001")


def test_an_unfinished_version_is_not_read_by_mistake(tmp_path: Path, model: Path) -> None:
    compress(model, write_corpus(tmp_path / "in", [30]), tmp_path / "out")
    version = tmp_path / "out/v0001"
    # what a run leaves that is killed before it finishes
    (version / "_manifest.json").rename(version / "plan.json")
    with pytest.raises(pa.ArrowInvalid, match=r"plan\.json"):
        pq.read_table(version)


@pytest.mark.parametrize(("dtype", "share"), [("int8", 0.55), pytest.param("binary", 0.65, marks=pytest.mark.slow)])
def test_small_numbers_take_their_bytes_on_disk(
    tmp_path: Path, data_dir: Callable[[str], Path], dtype: str, share: float
) -> None:
    corpus = data_dir("scifact") / "corpus.parquet"
    identity = {"weight": torch.eye(768), "logits": torch.linspace(1, 0, 768)}
    model = Model([FrozenStage(96, "linear", identity)], 768, {"dims": [768, 96]}, {})
    model.config["int8_scales"] = learn_int8_scales(model, all_vectors(EmbeddingTable.open(str(corpus))))
    model.save(tmp_path / "model")
    sizes = {}
    for kind in ("float16", dtype):
        compress(tmp_path / "model", corpus, tmp_path / kind, dim=96, dtype=kind)
        sizes[kind] = (tmp_path / kind / "v0001/corpus.parquet").stat().st_size
    assert sizes[dtype] <= share * sizes["float16"], sizes
