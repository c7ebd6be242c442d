"""Number types, and several dims: what is stored, and what it says of the vectors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smec_core
from smec_core.errors import InputError
from smec_core.model.quantize import from_bits
from tests.pipelines.compress.corpora import compress, read, vectors, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def column(folder: str | Path, name: str) -> np.ndarray:
    return np.array(pq.read_table(f"{folder}/part-00.parquet")[name].to_pylist())


def cosines(one_Nd: np.ndarray, other_Nd: np.ndarray) -> np.ndarray:
    norms_N = np.linalg.norm(one_Nd, axis=1) * np.linalg.norm(other_Nd, axis=1)
    return np.einsum("nd,nd->n", one_Nd, other_Nd) / norms_N


def test_int8_keeps_directions(tmp_path: Path, model: Path) -> None:
    figures = compress(model, write_corpus(tmp_path / "in", [300]), tmp_path / "out", dtype="int8", dim=8)
    assert figures["bytes_per_vector"] == 8
    assert pq.read_schema(f"{figures['path']}/part-00.parquet").field("embedding").type == pa.list_(pa.int8(), 8)
    stored_Nd = column(figures["path"], "embedding").astype(np.float32)
    expected_Nd = smec_core.load(model).encode(vectors(300), 8)
    assert cosines(stored_Nd, expected_Nd).mean() > 0.9998
    scale = smec_core.load(model).int8_scale(8)
    np.testing.assert_allclose(stored_Nd * scale, expected_Nd, atol=0.1)
    assert np.abs(stored_Nd * scale - expected_Nd).mean() < scale / 3


def test_binary_is_the_signs_with_int8_beside(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [300], year=lambda count: pa.array(range(count), pa.int16()))
    figures = compress(model, source, tmp_path / "out", dtype="binary", dim=4)
    assert figures["bytes_per_vector"] == 1 + 4
    table = pq.read_table(f"{figures['path']}/part-00.parquet")
    assert table.column_names == ["id", "embedding", "rescore", "year"]
    assert table.schema.field("embedding").type == pa.list_(pa.uint8(), 1)
    expected_Nd = smec_core.load(model).encode(vectors(300), 4)
    bits_Nb = column(figures["path"], "embedding").astype(np.uint8)
    np.testing.assert_array_equal(from_bits(bits_Nb, 4) > 0, expected_Nd > 0)
    assert cosines(column(figures["path"], "rescore").astype(np.float32), expected_Nd).mean() > 0.9998
    with pytest.raises(InputError, match=r"part-00\.parquet: column rescore: binary vectors need this name; rename it"):
        compress(
            model,
            write_corpus(tmp_path / "named", [3], rescore=lambda count: pa.array(range(count))),
            tmp_path / "other",
            dtype="binary",
        )


def test_several_dims_have_a_folder_each(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [300, 7])
    figures = compress(model, source, tmp_path / "out", dim="4,16", dtype="float16")
    assert (figures["rows"], figures["files"], figures["bytes_per_vector"]) == (307, 4, 2 * (16 + 4))
    x_ND = np.concatenate([vectors(300, 0), vectors(7, 1)])
    for dim in (16, 4):
        ids, stored_Nd = read(f"{figures['path']}/{dim}")
        assert ids == [f"d{row}" for row in range(307)]
        np.testing.assert_allclose(stored_Nd, smec_core.load(model).encode(x_ND, dim), atol=2e-3)


def test_dims_without_a_scale_are_refused_before_anything_is_written(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [3])
    with pytest.raises(InputError, match="dim is 5, but for int8 vectors this model has scales for 16, 8, 4"):
        compress(model, source, tmp_path / "out", dtype="binary", dim=5)
    assert not (tmp_path / "out").exists()
