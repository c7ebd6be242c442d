"""The scan by Ray Data: the bits of the scan in one process, and errors that name the row."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pipelines.console import RowProgress
from pipelines.data import scan as scan_module
from pipelines.data.scan import scan
from pipelines.data.scan_state import ScanState
from smec_core.data.columns import ColumnNames
from smec_core.data.fingerprint import hash_ids
from smec_core.data.parquet import EmbeddingTable, ParquetPart, embedding_column
from smec_core.data.scan import Cut, Keep, scan_table
from smec_core.data.uri import open_filesystem
from smec_core.errors import SmecError

pytestmark = pytest.mark.ray

DIM = 6
NAMES = ColumnNames(id="sku", embedding="vector")


@pytest.fixture(autouse=True)
def no_table_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smec_core.data.scan.SMALL_BYTES", 0)


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


def test_fragments_of_lance_give_the_bits_of_the_same_rows_in_parquet(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "TASK_ROWS", 9_000)
    plain, fragments = tmp_path / "plain", tmp_path / "fragments"
    plain.mkdir()
    for name, first, rows in (("a", 0, 10_000), ("b", 10_000, 9_500)):
        write(plain / f"{name}.parquet", first, rows)
        table = pq.read_table(plain / f"{name}.parquet")
        gone = table.slice(0, 50).set_column(0, "sku", pa.array([f"gone {row}" for row in range(50)]))
        table = pa.concat_tables([table.slice(0, 100), gone, table.slice(100)])
        lance.write_dataset(table, fragments, mode="append" if fragments.exists() else "create")
    lance.dataset(fragments).delete("sku like 'gone%'")
    tables = [EmbeddingTable.open(str(folder), names=NAMES) for folder in (plain, fragments)]
    assert [part.rows for part in tables[1].files] == [10_000, 9_500]
    hash_M = hash_ids(tables[0].ids())
    keep = Keep(19_500, 500, np.sort(hash_M[5::3000]))
    expected, found = (scan(table, keep, hash_M) for table in tables)
    assert (found.check, found.drawn, found.id_K) == (expected.check, expected.drawn, expected.id_K)
    for name in ("mean_D", "moment_DD", "x_KD"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    bad = table.slice(0, 3).set_column(2, "vector", embedding_column(np.array([[1] * DIM, [np.nan] * DIM, [1] * DIM])))
    lance.write_dataset(bad.cast(table.schema), fragments, mode="append")
    with pytest.raises(SmecError, match=r"fragment-000002: row 1, column vector: holds NaN"):
        scan(EmbeddingTable.open(str(fragments), names=NAMES), Keep(19_503, 100))


KILLED = """
import os, signal, sys
from pipelines.data import scan, scan_state
from smec_core.data import scan as rules
from smec_core.data.columns import ColumnNames
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.scan import Keep

rules.SMALL_BYTES, scan.SAVE_BYTES = 0, 1000
put = scan_state.ScanState.put
def put_and_die(state, number, piece):
    put(state, number, piece)
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
scan_state.ScanState.put = put_and_die
table = EmbeddingTable.open(sys.argv[1], names=ColumnNames(id="sku", embedding="vector"))
scan.scan(table, Keep(table.rows, 500), storage=sys.argv[2])
"""


def test_a_killed_scan_goes_on_from_its_finished_files(
    ray_cluster: None, folder: Path, storage: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), storage], check=False)
    assert killed.returncode == -signal.SIGKILL

    # one of the three pieces is not as it was written
    filesystem, root = open_filesystem(storage)
    [kept] = [info.path for info in filesystem.get_file_info(pafs.FileSelector(f"{root}/_scans"))]
    with filesystem.open_output_stream(f"{kept}/00001.safetensors") as sink:
        sink.write(b"cut short")

    read, cuts = [], scan_module._cuts

    def noted(table: EmbeddingTable, files: Sequence[ParquetPart], keep: Keep) -> Iterator[Cut]:
        read.append([Path(part.path).name for part in files])
        return cuts(table, files, keep)

    monkeypatch.setattr(scan_module, "_cuts", noted)
    monkeypatch.setattr(scan_module, "SAVE_BYTES", 1000)
    table = EmbeddingTable.open(str(folder), names=NAMES)
    keep = Keep(table.rows, 500)
    found, whole = scan(table, keep, storage=storage), scan_table(table, keep)
    assert read == [["b.parquet", "d.parquet"]]
    told = capfd.readouterr().err
    assert "10,000 rows were read by an earlier start" in told and "8,193 rows were" in told
    assert (found.check, found.id_K) == (whole.check, whole.id_K)
    for name in ("mean_D", "moment_DD", "x_KD"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert filesystem.get_file_info(kept).type == pafs.FileType.NotFound


def test_what_a_scan_has_left_serves_no_other_scan(
    ray_cluster: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "SAVE_BYTES", 1000)
    table, storage = EmbeddingTable.open(str(folder), names=NAMES), str(tmp_path / "storage")
    pieces = scan_module.pieces_of(table)
    state = ScanState(storage, table, Keep(table.rows, 500), pieces)
    state.put(0, scan_module._read(table, pieces[0], Keep(table.rows, 500), RowProgress("read", table.rows)))
    assert state.take(0) is not None
    for keep in (Keep(table.rows, 501), Keep(table.rows, 500, np.array([3], np.uint64))):
        assert ScanState(storage, table, keep, pieces).take(0) is None
    assert ScanState(storage, table, Keep(table.rows, 500), pieces[:-1]).take(0) is None
    os.utime(folder / "a.parquet")
    assert ScanState(storage, table, Keep(table.rows, 500), pieces).take(0) is None


def test_a_storage_that_cannot_be_written_to_costs_no_scan(
    ray_cluster: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scan_module, "SAVE_BYTES", 1000)
    (tmp_path / "storage").write_text("a file, no folder")
    table = EmbeddingTable.open(str(folder), names=NAMES)
    found = scan(table, Keep(table.rows, 500), storage=str(tmp_path / "storage"))
    assert found.check == scan_table(table, Keep(table.rows, 500)).check
    assert capfd.readouterr().err.count("a killed scan would begin anew") == 1


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
