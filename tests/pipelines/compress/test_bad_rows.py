"""Rows that are no sound vectors: named, or set apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smec_core
from smec_core.data.parquet import embedding_column
from smec_core.errors import InputError
from tests.pipelines.compress.corpora import DIM, compress, read, unfinish, vectors, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "zero vector")]
)
def test_bad_row_is_named_and_nothing_is_published(tmp_path: Path, model: Path, value: float, why: str) -> None:
    source = write_corpus(tmp_path / "in", [300, 300])
    bad_ND = vectors(300)
    bad_ND[217] = value
    pq.write_table(
        pa.table({"id": [f"x{row}" for row in range(300)], "embedding": embedding_column(bad_ND)}),
        source / "part-01.parquet",
        row_group_size=100,
    )
    with pytest.raises(InputError, match=rf"part-01\.parquet: row 217, column embedding: .*{why}") as caught:
        compress(model, source, tmp_path / "out", batch_rows=50)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_null_id_is_named(tmp_path: Path, model: Path) -> None:
    table = pa.table({"id": ["a", "b", None], "embedding": embedding_column(vectors(3))})
    pq.write_table(table, tmp_path / "corpus.parquet")
    with pytest.raises(InputError, match=r"corpus\.parquet: row 2, column id: is null"):
        compress(model, tmp_path / "corpus", tmp_path / "out")


BAD_ROWS: dict[int, list[float | None] | None] = {
    3: None,
    40: [np.nan] * DIM,
    41: [0.0] * DIM,
    42: [np.inf, *[1.0] * (DIM - 1)],
    99: [1.0, 2.0],
    250: [None] * DIM,
}
REASONS = {
    3: "column embedding: is null; every row needs a vector",
    7: "column id: is null; every row needs an id",
    8: "column id: is empty; every row needs an id",
    40: "column embedding: holds NaN or infinity; fix or remove the row",
    41: "column embedding: is a zero vector, which has no direction; remove the row",
    42: "column embedding: holds NaN or infinity; fix or remove the row",
    99: "column embedding: has 2 dims, but 16 are expected",
    250: "column embedding: holds a null value (as pandas stores NaN); fix or remove the row",
}


def write_bad(folder: Path, fixed: bool) -> Path:
    """A sound file, and one with the bad rows; those of another length only where lists need not be of one."""
    write_corpus(folder, [300, 300], year=lambda count: pa.array(range(count), pa.int16()))
    table = pq.read_table(folder / "part-01.parquet")
    rows = table["embedding"].to_pylist()
    for row, value in BAD_ROWS.items():
        if not fixed or value is None or len(value) == DIM:
            rows[row] = value
    kind = pa.list_(pa.float32(), DIM) if fixed else pa.list_(pa.float32())
    ids = table["id"].to_pylist()
    ids[7], ids[8] = None, ""
    table = pa.table({"id": pa.array(ids, pa.string()), "embedding": pa.array(rows, kind), "year": table["year"]})
    pq.write_table(table, folder / "part-01.parquet", row_group_size=100)
    return folder


@pytest.mark.parametrize("fixed", [False, True], ids=["lists", "fixed-size lists"])
def test_bad_rows_are_set_apart_with_the_reason(tmp_path: Path, model: Path, fixed: bool) -> None:
    source = write_bad(tmp_path / "in", fixed)
    expected = {row: why for row, why in REASONS.items() if not fixed or row != 99}
    figures = compress(model, source, tmp_path / "out", on_bad_row="quarantine", max_bad_rows=0.05, batch_rows=64)
    assert (figures["rows"], figures["quarantined"], figures["files"]) == (600 - len(expected), len(expected), 3)
    assert [path.name for path in (tmp_path / "out/v0001/_quarantine").iterdir()] == ["part-01.parquet"]
    apart = pq.read_table(tmp_path / "out/v0001/_quarantine/part-01.parquet")
    assert dict(zip(apart["row"].to_pylist(), apart["reason"].to_pylist(), strict=True)) == expected
    assert apart["year"].to_pylist() == list(expected)
    assert apart.schema.field("year").type == pa.int16()
    assert apart["embedding"].to_pylist()[3:4] == [pytest.approx([np.nan] * DIM, nan_ok=True)]

    ids, out_Nd = read(figures["path"])
    sound = [row for row in range(300) if row not in expected]
    assert ids == [f"d{row}" for row in range(300)] + [f"d{300 + row}" for row in sound]
    x_ND = np.concatenate([vectors(300, 0), vectors(300, 1)[sound]])
    np.testing.assert_allclose(out_Nd, smec_core.load(model).encode(x_ND, 8), atol=1e-6)
    manifest = json.loads((tmp_path / "out/v0001/_manifest.json").read_text())
    assert (manifest["rows"], manifest["quarantined"]) == (figures["rows"], figures["quarantined"])


def test_too_many_bad_rows_publish_nothing(tmp_path: Path, model: Path) -> None:
    source = write_bad(tmp_path / "in", fixed=False)
    why = (
        r"at least \d+ of \d+ rows are no sound vectors, and max_bad_rows allows \d; "
        r"one of them: .*in/part-01\.parquet: row \d+, column .*; fix them, or allow more"
    )
    for share, workers in ((0.01, 1), (0.001, 2)):
        with pytest.raises(InputError, match=why):
            compress(model, source, tmp_path / "out", on_bad_row="quarantine", max_bad_rows=share, workers=workers)
        assert not (tmp_path / "out/CURRENT").exists()
    # few in each file, too many in all
    pq.write_table(pq.read_table(source / "part-01.parquet").slice(0, 60), source / "part-02.parquet")
    with pytest.raises(InputError, match=why):
        compress(model, source, tmp_path / "out", on_bad_row="quarantine", max_bad_rows=0.013)
    assert not (tmp_path / "out/CURRENT").exists()


def test_a_run_that_may_set_more_rows_apart_goes_on_with_what_is_finished(tmp_path: Path, model: Path) -> None:
    source, out = write_bad(tmp_path / "in", fixed=False), tmp_path / "out"
    with pytest.raises(InputError, match=r"--set max_bad_rows=SHARE"):
        compress(model, source, out, on_bad_row="quarantine", max_bad_rows=0.001)
    sound = out / "v0001/part-00.parquet"
    before = sound.stat().st_mtime_ns
    figures = compress(model, source, out, on_bad_row="quarantine", max_bad_rows=0.05)
    assert (figures["version"], figures["quarantined"]) == ("v0001", len(REASONS))
    assert sound.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_kill_between_the_files_of_a_piece_is_mended(tmp_path: Path, model: Path) -> None:
    source, out = write_bad(tmp_path / "in", fixed=False), tmp_path / "out"
    options: dict[str, Any] = {"on_bad_row": "quarantine", "max_bad_rows": 0.05, "dim": "8,4"}
    whole = compress(model, source, out, **options)
    version = Path(whole["path"])
    manifest = json.loads((version / "_manifest.json").read_text())
    for lost in ("_quarantine", "8", "4"):
        unfinish(version)
        (version / lost / "part-01.parquet").unlink()
        (out / "CURRENT").unlink()
        assert compress(model, source, out, **options)["path"] == whole["path"]
        again = json.loads((version / "_manifest.json").read_text())
        for before, after in zip(manifest["files"], again["files"], strict=True):
            is_same = before["name"].endswith("part-00.parquet")
            assert after == before | ({} if is_same else {"stamp": after["stamp"]}), lost


def test_bad_rows_among_dictionaries_are_set_apart(tmp_path: Path, model: Path) -> None:
    labelled = pa.table(
        {
            "id": [f"x{row}" for row in range(300)],
            "embedding": embedding_column(np.where(np.arange(300)[:, None] == 217, np.nan, vectors(300))),
            "label": pa.array(["a", "b", "c"] * 100).dictionary_encode(),
        }
    )
    pq.write_table(labelled, tmp_path / "corpus.parquet", row_group_size=100)
    figures = compress(model, tmp_path / "corpus.parquet", tmp_path / "out", on_bad_row="quarantine", batch_rows=64)
    assert (figures["rows"], figures["quarantined"]) == (299, 1)
    assert read(figures["path"])[0] == [f"x{row}" for row in range(300) if row != 217]


def test_names_that_bad_rows_need_are_refused(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [3], reason=lambda count: pa.array(range(count)))
    with pytest.raises(
        InputError, match=r"part-00\.parquet: column reason: bad rows that are set apart need this name"
    ):
        compress(model, source, tmp_path / "out", on_bad_row="quarantine")


def test_a_null_in_another_column_of_fixed_size_lists_is_named(tmp_path: Path, model: Path) -> None:
    others = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    source = write_corpus(tmp_path / "in", [3], other=lambda count: others)
    with pytest.raises(InputError, match=r"row 1, column other: a null in a fixed-size list; store it as lists"):
        compress(model, source, tmp_path / "out")


def test_a_file_of_other_dims_is_set_apart_as_a_whole(tmp_path: Path, model: Path) -> None:
    source = write_corpus(tmp_path / "in", [5, 300])
    ids = [f"n{row}" for row in range(5)]
    narrow = pa.table({"id": ids, "embedding": embedding_column(np.ones((5, 3), np.float32))})
    pq.write_table(narrow, source / "part-00.parquet")
    figures = compress(model, source, tmp_path / "out", on_bad_row="quarantine", max_bad_rows=0.1)
    assert (figures["rows"], figures["quarantined"]) == (300, 5)
    assert read(figures["path"])[0] == [f"d{5 + row}" for row in range(300)]
