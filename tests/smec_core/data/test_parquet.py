"""Embedding tables: every way to store them, every range of rows, and every refusal with its place."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.data.columns import ColumnNames
from smec_core.data.parquet import EmbeddingTable, embedding_column, unit_rows, write_embeddings
from smec_core.errors import InputError, SmecError

DIM = 4
FILE_ROWS = (7, 1, 12)
ROWS = sum(FILE_ROWS)


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    # sixteenths, so that float16 holds them exactly
    return (np.random.default_rng(seed).integers(1, 64, (rows, DIM)) / 16).astype(np.float32)


def as_list(kind: pa.DataType) -> Callable[[np.ndarray], pa.Array]:
    return lambda x_ND: pa.array(x_ND.tolist(), kind)


def as_tensor(x_ND: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(x_ND))


def as_nested_tensor(x_ND: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(x_ND).reshape(-1, 2, DIM // 2))


STORED: dict[str, Callable[[np.ndarray], pa.Array]] = {
    "FixedSizeList<float32>": embedding_column,
    "FixedSizeList<float16>": lambda x_ND: embedding_column(x_ND.astype(np.float16)),
    "List<float>": as_list(pa.list_(pa.float32())),
    "List<float16>": as_list(pa.list_(pa.float16())),
    "List<double>": as_list(pa.list_(pa.float64())),
    "LargeList<float>": as_list(pa.large_list(pa.float32())),
    "arrow.fixed_shape_tensor": as_tensor,
    "arrow.fixed_shape_tensor of two dimensions": as_nested_tensor,
}


def write(path: Path, ids: list[str], embedding: pa.Array, row_group_size: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": pa.array(ids, pa.string()), "embedding": embedding})
    pq.write_table(table, path, row_group_size=row_group_size)


def write_shards(folder: Path, store: Callable[[np.ndarray], pa.Array] = embedding_column) -> np.ndarray:
    """Three files of several row groups; ids d0, d1, ... in global row order."""
    x_ND, start = vectors(ROWS), 0
    for number, rows in enumerate(FILE_ROWS):
        ids = [f"d{row}" for row in range(start, start + rows)]
        write(folder / f"part-{number}.parquet", ids, store(x_ND[start : start + rows]))
        start += rows
    return x_ND


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingTable, np.ndarray]:
    folder = tmp_path_factory.mktemp("shards") / "corpus"
    x_ND = write_shards(folder)
    return EmbeddingTable.open(str(folder)), x_ND


def read(table: EmbeddingTable) -> np.ndarray:
    return np.concatenate([block.vectors_ND for block in table.blocks()])


@pytest.mark.parametrize("stored", STORED)
def test_every_way_to_store_vectors_is_read(tmp_path: Path, stored: str) -> None:
    x_ND = write_shards(tmp_path / "corpus", STORED[stored])
    table = EmbeddingTable.open(str(tmp_path / "corpus"))
    assert (table.rows, table.dim) == (ROWS, DIM)
    assert table.ids().to_pylist() == [f"d{row}" for row in range(ROWS)]
    found_ND = read(table)
    assert found_ND.dtype == np.float32
    np.testing.assert_array_equal(found_ND, x_ND)


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (["a", "b", "a2"], pa.large_string()),
        (["a", "b", "a2"], pa.string_view()),
        (["a", "b", "a2"], pa.dictionary(pa.int32(), pa.string())),
        ([3, 1, 20], pa.int64()),
        ([3, 1, 20], pa.uint8()),
    ],
    ids=str,
)
def test_ids_are_strings_of_any_kind_or_whole_numbers(tmp_path: Path, ids: list[Any], kind: pa.DataType) -> None:
    stored = pa.array(ids).cast(kind)
    pq.write_table(pa.table({"id": stored, "embedding": embedding_column(vectors(3))}), tmp_path / "corpus.parquet")
    table = EmbeddingTable.open(str(tmp_path / "corpus"))
    assert table.ids().to_pylist() == [str(name) for name in ids]
    assert next(table.blocks()).ids.to_pylist() == [str(name) for name in ids]


@pytest.mark.parametrize("version", ["V1", "V2", "ARROW_NATIVE"])
def test_tensors_that_ray_data_writes_are_read_where_it_is_imported_too(tmp_path: Path, version: str) -> None:
    # in a process of its own: what is imported there stays away from the other tests
    code = """
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from ray.data import DataContext
from ray.data._internal.tensor_extensions.arrow import ArrowTensorArray, FixedShapeTensorFormat
from smec_core.data.parquet import Block, EmbeddingTable

path, array, version = sys.argv[1:]
DataContext.get_current().arrow_fixed_shape_tensor_format = FixedShapeTensorFormat[version]
x_ND = np.load(array)
tensors = ArrowTensorArray.from_numpy(x_ND)
pq.write_table(pa.table({"id": [f"d{row}" for row in range(len(x_ND))], "embedding": tensors}), path)
assert isinstance(pq.read_schema(path).field("embedding").type, pa.BaseExtensionType)
table = EmbeddingTable.open(path)
for any_row in (False, True):
    found = [Block.of(batch, table.dim).vectors_ND for batch in table.batches(any_row=any_row)]
    np.testing.assert_array_equal(np.concatenate(found), x_ND)
"""
    np.save(tmp_path / "x.npy", vectors(6))
    arguments = [str(tmp_path / "corpus.parquet"), str(tmp_path / "x.npy"), version]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    # and where it is not
    np.testing.assert_array_equal(read(EmbeddingTable.open(str(tmp_path / "corpus"))), vectors(6))


def test_columns_of_other_names_are_read_and_named_in_errors(tmp_path: Path) -> None:
    names = ColumnNames(id="sku", embedding="vector")
    columns = {"sku": ["a", "b"], "vector": embedding_column(vectors(2)), "title": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "corpus.parquet")
    table = EmbeddingTable.open(str(tmp_path / "corpus"), names=names)
    [block] = table.blocks(columns=["title"])
    assert (table.ids().to_pylist(), block.ids.to_pylist()) == (["a", "b"], ["a", "b"])
    assert block.table.column_names == ["id", "embedding", "title"]
    np.testing.assert_array_equal(block.vectors_ND, vectors(2))
    assert table.schema_of(table.files[0]).names == ["id", "embedding", "title"]

    columns["vector"] = pa.array([[1.0] * DIM, None], VARIABLE)
    pq.write_table(pa.table(columns), tmp_path / "corpus.parquet")
    with pytest.raises(InputError, match=r"corpus\.parquet: row 1, column vector: is null"):
        read(EmbeddingTable.open(str(tmp_path / "corpus"), names=names))
    pq.write_table(pa.table({**columns, "id": [1, 2]}), tmp_path / "corpus.parquet")
    with pytest.raises(InputError, match=r"corpus\.parquet: column id: sku is taken for it; rename or remove it"):
        table.schema_of(table.files[0])
    with pytest.raises(
        InputError, match=r"column id is missing; it holds sku, vector \(another name: --set columns\.id=NAME"
    ):
        pq.write_table(pa.table({"sku": ["a"], "vector": embedding_column(vectors(1))}), tmp_path / "corpus.parquet")
        EmbeddingTable.open(str(tmp_path / "corpus"))


@pytest.mark.parametrize("name", ["id", "embedding", "title"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    columns = {"id": pa.array(["a", "b"]), "embedding": embedding_column(vectors(2)), "title": pa.array(["x", "y"])}
    table = pa.Table.from_arrays([*columns.values(), columns[name]], [*columns, name])
    pq.write_table(table, tmp_path / "corpus.parquet")
    with pytest.raises(InputError, match=rf"corpus\.parquet: column {name} is there twice; rename or remove one"):
        EmbeddingTable.open(str(tmp_path / "corpus"))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(bounds=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)), batch_rows=st.integers(1, 9))
def test_any_range_of_rows_is_read_in_order(
    shards: tuple[EmbeddingTable, np.ndarray], bounds: tuple[int, int], batch_rows: int
) -> None:
    table, x_ND = shards
    start, stop = sorted(bounds)
    row = start
    for block in table.blocks(start, stop, batch_rows):
        assert block.row == row
        assert 1 <= len(block.ids) <= batch_rows
        np.testing.assert_array_equal(block.vectors_ND, x_ND[row : row + len(block.ids)])
        assert block.ids.to_pylist() == [f"d{i}" for i in range(row, row + len(block.ids))]
        row += len(block.ids)
    assert row == stop


def test_other_columns_come_along_when_asked_for(tmp_path: Path) -> None:
    extra = {"title": pa.array(["x", None, "z"]), "year": pa.array([1, 2, 3])}
    write_embeddings(str(tmp_path / "corpus.parquet"), ["a", "b", "c"], vectors(3), extra=extra)
    table = EmbeddingTable.open(str(tmp_path / "corpus.parquet"))
    (block,) = table.blocks(1, 3, columns=["title"])
    assert block.table["title"].to_pylist() == [None, "z"]
    assert "year" not in block.table.column_names


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_written_embeddings_are_fixed_size_lists_without_dictionary(tmp_path: Path, dtype: type[np.generic]) -> None:
    path = tmp_path / "out.parquet"
    x_ND = vectors(50).astype(dtype)
    write_embeddings(str(path), pa.array([f"d{row}" for row in range(50)]), x_ND)

    stored = pq.read_table(path)
    assert stored.schema.field("embedding").type == pa.list_(pa.from_numpy_dtype(dtype), DIM)
    assert stored["embedding"].to_pylist() == x_ND.tolist()
    metadata = pq.read_metadata(path).row_group(0)
    columns = [metadata.column(number) for number in range(metadata.num_columns)]
    (embedding,) = (column for column in columns if column.path_in_schema.startswith("embedding"))
    assert not embedding.has_dictionary_page
    assert not {"PLAIN_DICTIONARY", "RLE_DICTIONARY"} & set(embedding.encodings)


def test_a_table_is_a_file_a_name_without_ending_a_folder_or_a_uri(tmp_path: Path) -> None:
    write(tmp_path / "one.parquet", ["a"], embedding_column(vectors(1)))
    write(tmp_path / "many" / "b.parquet", ["b"], embedding_column(vectors(1)))
    write(tmp_path / "many" / "a.parquet", ["a"], embedding_column(vectors(1)))
    for name in ("_manifest.parquet", ".part-0.parquet"):
        write(tmp_path / "many" / name, ["hidden"], embedding_column(vectors(1)))
    (tmp_path / "many" / "notes.txt").write_text("not a table")
    for uri in (tmp_path / "one", tmp_path / "one.parquet", f"file://{tmp_path}/one.parquet"):
        assert EmbeddingTable.open(str(uri)).ids().to_pylist() == ["a"]
    assert EmbeddingTable.open(str(tmp_path / "many")).ids().to_pylist() == ["a", "b"]


def test_an_empty_file_among_others_holds_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "corpus" / "0.parquet", [], embedding_column(vectors(0)))
    write(tmp_path / "corpus" / "1.parquet", ["a", "b"], embedding_column(vectors(2)))
    table = EmbeddingTable.open(str(tmp_path / "corpus"))
    assert table.rows == 2
    np.testing.assert_array_equal(read(table), vectors(2))


def test_unit_rows_keep_directions() -> None:
    x_ND = vectors(5)
    unit_ND = unit_rows(x_ND)
    np.testing.assert_allclose(np.linalg.norm(unit_ND, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit_ND * np.linalg.norm(x_ND, axis=1, keepdims=True), x_ND, rtol=1e-6)


def set_value(rows: list[list[float | None] | None], bad: int, value: float | None) -> None:
    row = rows[bad]
    assert row is not None
    row[2] = value


BAD_ROWS: dict[str, tuple[Callable[[list[list[float | None] | None], int], None], str]] = {
    "null row": (lambda rows, bad: rows.__setitem__(bad, None), "is null"),
    "null value": (lambda rows, bad: set_value(rows, bad, None), "null value"),
    "NaN": (lambda rows, bad: set_value(rows, bad, float("nan")), "NaN"),
    "infinity": (lambda rows, bad: set_value(rows, bad, float("inf")), "infinity"),
    "minus infinity": (lambda rows, bad: set_value(rows, bad, float("-inf")), "infinity"),
    "zero vector": (lambda rows, bad: rows.__setitem__(bad, [0.0] * DIM), "zero vector"),
    "huge norm": (lambda rows, bad: set_value(rows, bad, 3e38), "norm too large"),
    "norm of lost digits": (
        lambda rows, bad: rows.__setitem__(bad, [1e-20] * DIM),
        "norm too small for float32; scale",
    ),
    "tiny norm": (lambda rows, bad: rows.__setitem__(bad, [1e-25] * DIM), "norm too small for float32; scale"),
}
LIST_ONLY: dict[str, tuple[Callable[[list[list[float | None] | None], int], None], str]] = {
    "longer": (lambda rows, bad: rows.__setitem__(bad, [1.0] * (DIM + 1)), "dims"),
    "shorter": (lambda rows, bad: rows.__setitem__(bad, [1.0] * (DIM - 1)), "dims"),
    "empty": (lambda rows, bad: rows.__setitem__(bad, []), "dims"),
}
FIXED, VARIABLE = pa.list_(pa.float32(), DIM), pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("kind", "case", "bad"),
    [(kind, case, bad) for kind in (FIXED, VARIABLE) for case in BAD_ROWS for bad in (0, 8)]
    + [(VARIABLE, case, bad) for case in LIST_ONLY for bad in (0, 8)],
    ids=str,
)
def test_a_bad_vector_is_refused_with_its_place(tmp_path: Path, kind: pa.DataType, case: str, bad: int) -> None:
    spoil, why = {**BAD_ROWS, **LIST_ONLY}[case]
    rows: list[list[float | None] | None] = vectors(12).tolist()
    spoil(rows, bad)
    write(tmp_path / "corpus" / "0.parquet", [f"a{row}" for row in range(5)], embedding_column(vectors(5)))
    write(tmp_path / "corpus" / "1.parquet", [f"b{row}" for row in range(12)], pa.array(rows, kind))
    with pytest.raises(InputError) as refused:
        read(EmbeddingTable.open(str(tmp_path / "corpus")))
    message = str(refused.value)
    assert f"corpus/1.parquet: row {bad}, column embedding: " in message
    assert why in message


@pytest.mark.filterwarnings("error")
def test_a_number_that_float32_cannot_hold_is_not_called_infinity(tmp_path: Path) -> None:
    write(tmp_path / "corpus.parquet", ["a", "b"], pa.array([[1.0, 2.0], [1e300, 1.0]], pa.list_(pa.float64(), 2)))
    with pytest.raises(InputError, match="row 1, column embedding: has a norm too large for float32"):
        read(EmbeddingTable.open(str(tmp_path / "corpus")))


@pytest.mark.parametrize("rows", [[None, [1.0, 2.0]], [[], [1.0, 2.0]]], ids=["null", "empty"])
def test_a_first_row_without_dims_is_the_one_to_blame(tmp_path: Path, rows: list[list[float] | None]) -> None:
    # the dim of a table of lists is that of its first row
    write(tmp_path / "corpus.parquet", ["a", "b"], pa.array(rows, VARIABLE))
    with pytest.raises(InputError, match=r"corpus\.parquet: row 0, column embedding"):
        EmbeddingTable.open(str(tmp_path / "corpus"))


def test_files_of_different_dims_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "corpus" / "0.parquet", ["a"], embedding_column(vectors(1)))
    write(tmp_path / "corpus" / "1.parquet", ["b"], embedding_column(vectors(1)[:, :3]))
    with pytest.raises(InputError, match=r"1\.parquet: row 0, column embedding: 3 dims, but .*0\.parquet has 4"):
        EmbeddingTable.open(str(tmp_path / "corpus"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["a"]}, "column embedding is missing; it holds id"),
        ({"embedding": embedding_column(vectors(1))}, "column id is missing; it holds embedding"),
        (
            {"id": [7.5], "embedding": embedding_column(vectors(1))},
            "id is double; it must be a string or a whole number",
        ),
        ({"id": ["a"], "embedding": [1.5]}, "embedding is double; it must be a list of float16, float32 or float64"),
        ({"id": ["a"], "embedding": ["[1, 2]"]}, "column embedding is string; it must be a list"),
        (
            {"id": ["a"], "embedding": embedding_column(np.ones((1, 4), np.int8))},
            "it must be a list of float16, float32 or float64",
        ),
    ],
)
def test_missing_and_wrongly_typed_columns_are_refused(
    tmp_path: Path, table: dict[str, pa.Array], message: str
) -> None:
    write(tmp_path / "corpus" / "0.parquet", ["a0"], embedding_column(vectors(1)))
    pq.write_table(pa.table(table), tmp_path / "corpus" / "1.parquet")
    with pytest.raises(InputError) as refused:
        EmbeddingTable.open(str(tmp_path / "corpus"))
    assert "corpus/1.parquet: " in str(refused.value)
    assert message in str(refused.value)


def test_a_null_id_is_refused(tmp_path: Path) -> None:
    ids = pa.array(["a", None, "c"], pa.string())
    pq.write_table(pa.table({"id": ids, "embedding": embedding_column(vectors(3))}), tmp_path / "corpus.parquet")
    with pytest.raises(InputError, match=r"corpus\.parquet: row 1, column id: is null"):
        EmbeddingTable.open(str(tmp_path / "corpus")).ids()


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing: there is no such file or folder; expected .*missing\.parquet or"):
        EmbeddingTable.open(str(tmp_path / "missing"))
    with pytest.raises(
        InputError, match=r"missing\.parquet: there is no such .*; expected \S*missing\.parquet/\*\.parquet"
    ):
        EmbeddingTable.open(str(tmp_path / "missing.parquet"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: no Parquet file there"):
        EmbeddingTable.open(str(tmp_path / "folder"))
    write(tmp_path / "empty.parquet", [], embedding_column(vectors(0)))
    with pytest.raises(InputError, match="empty: holds no rows"):
        EmbeddingTable.open(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="nowhere://data: cannot open this URI"):
        EmbeddingTable.open("nowhere://data")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("id,embedding\n")
    (tmp_path / "nothing.parquet").write_bytes(b"")
    write(tmp_path / "cut.parquet", ["a", "b"], embedding_column(vectors(2)))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-30])
    for name in ("text", "nothing", "cut"):
        with pytest.raises(InputError, match=rf"{name}\.parquet: not a readable Parquet file"):
            EmbeddingTable.open(str(tmp_path / name))


@pytest.mark.parametrize("column", [0, 1], ids=["id", "embedding"])
def test_damaged_data_behind_a_good_footer_is_refused(tmp_path: Path, column: int) -> None:
    path = tmp_path / "corpus" / "0.parquet"
    path.parent.mkdir()
    write_embeddings(str(path), [f"d{row}" for row in range(500)], vectors(500))
    chunk = pq.read_metadata(path).row_group(0).column(column)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(SmecError, match=r"corpus/0\.parquet"):
        table = EmbeddingTable.open(str(path.parent))
        table.ids()
        read(table)
