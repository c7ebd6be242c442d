"""The scan by Ray Data: the bits of the scan in one process, and errors that name the row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import scan as scan_module
from pipelines.data.scan import scan
from smec_core.data.columns import ColumnNames
from smec_core.data.fingerprint import hash_ids
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.scan import Keep, scan_table
from smec_core.errors import SmecError

pytestmark = pytest.mark.ray

DIM = 6
NAMES = ColumnNames(id="sku", embedding="vector")


@pytest.fixture(autouse=True)
def no_table_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "SMALL_BYTES", 0)


def write(path: Path, first: int, rows: int, dtype: type = np.float32, as_list: bool = False) -> None:
    """A file with row groups of 700 rows and a column of its own."""
    x_ND: np.ndarray = np.random.default_rng(first).standard_normal((rows, DIM)).astype(dtype)
    column = embedding_column(x_ND)
    vectors = column.cast(pa.list_(column.type.value_type)) if as_list else column
    ids = pa.array(range(first, first + rows))
    table = pa.table({"sku": ids if as_list else ids.cast(pa.string()), "path": ["here"] * rows, "vector": vectors})
    pq.write_table(table, path, row_group_size=700)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several types, whose names have no ending that Ray Data would look for, one of them empty."""
    corpus = tmp_path / "corpus" / "year=2026"
    corpus.mkdir(parents=True)
    write(corpus / "a.parquet", 0, 10_000)
    write(corpus / "b.parquet", 10_000, 1, np.float16)
    write(corpus / "c.parquet", 10_001, 0)
    write(corpus / "d.parquet", 10_001, 9_000, np.float64, as_list=True)
    write(corpus / "e.parquet", 19_001, 8_193)
    return corpus


@pytest.mark.parametrize("sample", [500, 10**6])
def test_the_cluster_gives_the_bits_of_one_process(ray_cluster: None, folder: Path, sample: int) -> None:
    table = EmbeddingTable.open(str(folder), names=NAMES)
    hash_M = hash_ids(table.ids())
    keep = Keep(table.rows, sample, np.sort(hash_M[5::3000]))
    assert keep.is_whole == (sample > table.rows)
    whole, found = scan_table(table, keep, hash_M), scan(table, keep, hash_M)
    assert (found.check, found.drawn) == (whole.check, whole.drawn) == (whole.check, min(sample, table.rows))
    assert found.id_K == whole.id_K
    for name in ("mean_D", "moment_DD", "x_KD"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def bad_number(path: Path) -> None:
    table = pq.read_table(path, partitioning=None)
    x_ND = np.stack(table["vector"].to_numpy())
    x_ND[4321, 2] = np.nan
    pq.write_table(table.set_column(2, "vector", embedding_column(x_ND)), path, row_group_size=700)


def null(path: Path) -> None:
    table = pq.read_table(path, partitioning=None)
    rows = table["vector"].to_pylist()
    rows[4321] = None
    pq.write_table(table.set_column(2, "vector", pa.array(rows, table["vector"].type)), path, row_group_size=700)


def flipped_bit(path: Path) -> None:
    table = pq.read_table(path, partitioning=None)
    options = {"row_group_size": 4300, "compression": "none", "use_dictionary": False}
    pq.write_table(table, path, write_page_checksum=True, **options)
    content, number = bytearray(path.read_bytes()), np.float32(table["vector"][5000].as_py()[3]).tobytes()
    content[content.index(number)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (bad_number, r"a\.parquet: row 4321, column vector: holds NaN"),
        (null, r"a\.parquet: row 4321, column vector: is null"),
        (flipped_bit, r"a\.parquet: rows from \d+ on cannot be read"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_row(
    ray_cluster: None, folder: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(folder / "a.parquet")
    table = EmbeddingTable.open(str(folder), names=NAMES)
    with pytest.raises(SmecError, match=told):
        scan(table, Keep(table.rows, 100))
