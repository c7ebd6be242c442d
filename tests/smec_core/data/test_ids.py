"""Ids of a table: found, hashed and checked without being kept."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from smec_core.data import ids as ids_module
from smec_core.data.fingerprint import hash_ids
from smec_core.data.ids import TableIds
from smec_core.data.parquet import EmbeddingTable, write_embeddings
from smec_core.errors import InputError

ROWS = 900


@pytest.fixture(params=["held", "in files"], autouse=True)
def most_held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in files":
        monkeypatch.setattr(ids_module, "MOST_HELD", 10)


def table(folder: Path, ids: list[str]) -> EmbeddingTable:
    (folder / "corpus").mkdir()
    for number, some in enumerate(np.array_split(np.array(ids), 3)):
        write_embeddings(str(folder / f"corpus/{number}.parquet"), some.tolist(), np.ones((len(some), 2), np.float32))
    return EmbeddingTable.open(str(folder / "corpus"))


def test_rows_that_are_named_are_found(tmp_path: Path) -> None:
    names = [f"d{row * 7 % ROWS}" for row in range(ROWS)]
    wanted = pa.array(["d3", "elsewhere", "d899", "d0"])
    found = TableIds.read(table(tmp_path, names), wanted)
    assert found.rows_of(wanted).tolist() == [names.index("d3"), -1, names.index("d899"), names.index("d0")]
    assert found.rows_of(pa.chunked_array([["d4"], ["d3"]])).tolist() == [-1, names.index("d3")]
    assert found.ids_of(found.rows_of(pa.array(["d899", "d3"]))) == ["d899", "d3"]
    assert found.ids_of(np.empty(0, np.int64)) == []
    if found.hash_M is not None:
        assert np.array_equal(found.hash_M, hash_ids(pa.array(names)))


def test_the_digest_tells_the_order_and_not_the_files(tmp_path: Path) -> None:
    names, none = [f"d{row}" for row in range(ROWS)], pa.array([], pa.string())
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    one = TableIds.read(table(tmp_path / "a", names), none).digest
    assert TableIds.read(table(tmp_path / "b", names[::-1]), none).digest != one
    write_embeddings(str(tmp_path / "c/corpus.parquet"), names, np.ones((ROWS, 2), np.float32))
    assert TableIds.read(EmbeddingTable.open(str(tmp_path / "c/corpus")), none).digest == one


def test_an_id_that_is_there_twice_is_told_with_both_places(tmp_path: Path) -> None:
    names = [f"d{row}" for row in range(ROWS)]
    names[700] = "d5"
    with pytest.raises(
        InputError, match=r"2\.parquet: row 100, column id: 'd5' was seen before in .*0\.parquet: row 5"
    ):
        TableIds.read(table(tmp_path, names), pa.array([], pa.string()))


def test_two_ids_may_share_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "hash_ids", lambda ids: hash_ids(ids) % np.uint64(50))
    names = [f"d{row}" for row in range(ROWS)]
    assert TableIds.read(table(tmp_path, names), pa.array(["d8"])).row_U.tolist() == [8]
