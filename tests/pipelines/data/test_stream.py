"""Tables as streams of unit vectors: what is read in the worker and what Ray Data reads are one table."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data import stream
from smec_core.data.parquet import EmbeddingTable, unit_rows, write_embeddings
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.errors import RowError

DIM, ROW_BYTES = 5, 20
SIZES = (30, 1, 57)


def write_table(folder: Path, bad_row: int | None = None) -> tuple[EmbeddingTable, np.ndarray]:
    """A table of several files and its vectors; one of them is no number, if so asked."""
    x_ND = np.random.default_rng(0).standard_normal((sum(SIZES), DIM), dtype=np.float32)
    if bad_row is not None:
        x_ND[bad_row, 1] = np.nan
    folder.mkdir()
    start = 0
    for number, size in enumerate(SIZES):
        ids = [f"d{row}" for row in range(start, start + size)]
        write_embeddings(str(folder / f"{number}.parquet"), ids, x_ND[start : start + size])
        start += size
    return EmbeddingTable.open(str(folder)), x_ND


@pytest.mark.ray
@pytest.mark.parametrize("head", [0, 30, 40, 87, 88])
def test_rows_arrive_once_and_in_order_wherever_they_are_read(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, head: int
) -> None:
    monkeypatch.setattr(stream, "HEAD_BYTES", head * ROW_BYTES)
    monkeypatch.setattr(stream, "PIECE_ROWS", 10)
    table, x_ND = write_table(tmp_path / "table")
    for start, stop in ((0, 88), (17, 61), (5, 5)):
        pieces = list(stream.stream_of(table)(start, stop))
        assert [row for row_N, _ in pieces for row in row_N.tolist()] == list(range(start, stop))
        for row_N, x in pieces:
            assert torch.equal(x, torch.from_numpy(unit_rows(x_ND))[row_N])


@pytest.mark.ray
@pytest.mark.parametrize("bad_row", [3, 70])
def test_a_bad_row_is_named_wherever_it_is_read(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, bad_row: int
) -> None:
    monkeypatch.setattr(stream, "HEAD_BYTES", 40 * ROW_BYTES)
    table, _ = write_table(tmp_path / "table", bad_row)
    place = {3: "0.parquet: row 3", 70: "2.parquet: row 39"}[bad_row]
    with pytest.raises(RowError, match=f"{place}, column embedding: holds NaN"):
        ResidentRows.filled(stream.stream_of(table), table.rows, table.dim, Node())
