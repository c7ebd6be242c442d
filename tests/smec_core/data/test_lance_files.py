"""Lance datasets, written by pylance: the rows of the newest version, exactly, or a clear refusal."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from smec_core.data.columns import ColumnNames
from smec_core.data.dataset import Dataset, dataset_stamp
from smec_core.data.lance_files import GROUP_ROWS
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.table_files import states_of
from smec_core.data.tables import find_table
from smec_core.data.uri import open_filesystem
from smec_core.errors import InputError, RowError, SmecError
from tests.builders import write_dataset
from tests.hub import REPO, Hub

DIM = 4


def rows(start: int, stop: int, dtype: type[np.floating] = np.float32) -> pa.Table:
    """Rows d{start} to d{stop}, with vectors that follow from their numbers."""
    x_ND = np.outer(np.arange(start + 1, stop + 1), np.arange(1, DIM + 1)).astype(dtype)
    return pa.table({"id": [f"d{row}" for row in range(start, stop)], "embedding": embedding_column(x_ND)})


def write(folder: Path, table: pa.Table, rows_per_file: int = 10, mode: str = "create") -> lance.LanceDataset:
    return lance.write_dataset(table, folder, mode=mode, max_rows_per_file=rows_per_file)


def ids_of(uri: Path | str) -> list[str]:
    """The ids of a table, whose vectors must be those of their ids."""
    table = EmbeddingTable.open(str(uri))
    ids: list[str] = table.ids().to_pylist()
    read: list[str] = []
    for block in table.blocks():
        assert block.row == len(read)
        numbers_N = [int(name[1:]) + 1 for name in block.ids.to_pylist()]
        assert np.array_equal(block.vectors_ND, np.outer(numbers_N, np.arange(1, DIM + 1)))
        read += block.ids.to_pylist()
    assert read == ids and len(ids) == table.rows
    return ids


def names(*numbers: int) -> list[str]:
    return [f"d{number}" for number in numbers]


def test_the_newest_version_is_read_without_rows_that_are_deleted(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 25))
    assert ids_of(corpus) == names(*range(25))
    write(corpus, rows(25, 27), mode="append")
    lance.dataset(corpus).delete("id in ('d0', 'd7', 'd11')")
    left = [number for number in range(27) if number not in (0, 7, 11)]
    assert ids_of(corpus) == names(*left)
    # a row that is written anew is deleted, and added at the end
    lance.dataset(corpus).merge_insert("id").when_matched_update_all().execute(rows(3, 4))
    assert sorted(ids_of(corpus)) == sorted(names(*left))
    lance.dataset(corpus).optimize.compact_files()
    assert sorted(ids_of(corpus)) == sorted(names(*left))
    lance.dataset(corpus).delete("true")
    with pytest.raises(InputError, match=r"corpus: the newest version of the table holds no rows"):
        ids_of(corpus)
    write(corpus, rows(5, 6), mode="overwrite")
    assert ids_of(corpus) == ["d5"]


@pytest.mark.parametrize("stray", ["extra.parquet", "extra", "more/extra.parquet"])
def test_data_beside_those_of_lance_are_refused(tmp_path: Path, stray: str) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 5))
    (corpus / "README.md").touch()
    (corpus / stray).parent.mkdir(exist_ok=True)
    pq.write_table(rows(5, 9), corpus / stray)
    with pytest.raises(InputError, match=rf"corpus/{stray}: (is no part of the Lance dataset|lies in a subfolder)"):
        ids_of(corpus)


def test_folders_of_lance_itself_are_no_data_beside_it(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 300), rows_per_file=1000)
    lance.dataset(corpus).create_scalar_index("id", "BTREE")
    lance.dataset(corpus).delete("id = 'd7'")
    lance.dataset(corpus).tags.create("first", 1)
    assert len(ids_of(corpus)) == 299


def test_any_rows_are_read_by_their_number(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 40), rows_per_file=20)
    lance.dataset(corpus).delete("id in ('d0', 'd5', 'd30')")
    table, expected = EmbeddingTable.open(str(corpus)), ids_of(corpus)
    for start, stop in ((0, 1), (3, 9), (15, 25), (17, 18), (18, 19), (30, 37)):
        blocks = list(table.blocks(start, stop, batch_rows=3))
        assert [name for block in blocks for name in block.ids.to_pylist()] == expected[start:stop]
        assert blocks[0].row == start
    assert table.locate(18).endswith("corpus/_versions/2/fragment-000001: row 0")


def test_a_large_fragment_has_groups_that_are_read_by_themselves(tmp_path: Path) -> None:
    count = GROUP_ROWS + 10
    write(tmp_path / "corpus", rows(0, count), rows_per_file=1 << 20)
    table = EmbeddingTable.open(str(tmp_path / "corpus"))
    assert [part.groups for part in table.files] == [(GROUP_ROWS, 10)]
    assert ids_of(tmp_path / "corpus") == names(*range(count))


@pytest.mark.parametrize("version", ["legacy", "2.0", "2.1", "2.2"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_type_is_read_as_from_parquet(tmp_path: Path, dtype: type[np.floating], version: Any) -> None:
    """Of ids and vectors that Parquet and this version of Lance's files have."""
    table = rows(0, 30, dtype)
    ids, vectors = table["id"].combine_chunks(), table["embedding"].combine_chunks()
    lists = pa.list_(vectors.type.value_type)
    kinds_of_ids = [ids, ids.cast(pa.large_string()), pa.array(range(30)), ids.dictionary_encode()]
    tensors = pa.FixedShapeTensorArray.from_storage(pa.fixed_shape_tensor(vectors.type.value_type, [DIM]), vectors)
    for number, (key, vector) in enumerate(
        zip(kinds_of_ids, [vectors, vectors.cast(lists), tensors, vectors], strict=True)
    ):
        stored = pa.table({"text": ids, "id": key, "embedding": vector})
        plain, other = tmp_path / f"{number}.parquet", tmp_path / f"{number}.lance"
        pq.write_table(stored, plain)
        lance.write_dataset(stored, other, data_storage_version=version, max_rows_per_file=20)
        read = [EmbeddingTable.open(str(place)) for place in (plain, other)]
        assert read[0].ids().to_pylist() == read[1].ids().to_pylist()
        found = [np.concatenate([block.vectors_ND for block in table.blocks()]) for table in read]
        assert found[0].tobytes() == found[1].tobytes()
        assert read[0].schema_of(read[0].files[0]).equals(read[1].schema_of(read[1].files[0]))


def test_columns_by_the_names_that_they_have_now(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 3))
    lance.dataset(corpus).add_columns({"other": "concat(id, '-')"})
    assert ids_of(corpus) == names(0, 1, 2)
    before = states_of(*files_of(corpus))
    renames: list[Any] = [{"path": "id", "name": "old"}, {"path": "other", "name": "id"}]
    lance.dataset(corpus).alter_columns(*renames)
    assert EmbeddingTable.open(str(corpus)).ids().to_pylist() == ["d0-", "d1-", "d2-"]
    assert states_of(*files_of(corpus)) != before
    named = EmbeddingTable.open(str(corpus), names=ColumnNames(id="old"))
    assert named.ids().to_pylist() == names(0, 1, 2)


def files_of(folder: Path) -> tuple[pafs.FileSystem, list[str]]:
    filesystem = pafs.LocalFileSystem()
    return filesystem, find_table(filesystem, str(folder))


def test_a_fragment_that_stays_is_the_same_in_the_next_version(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 20))
    first = states_of(*files_of(corpus))
    write(corpus, rows(20, 25), mode="append")
    second = states_of(*files_of(corpus))
    assert second[:2] == first and len(second) == 3
    lance.dataset(corpus).delete("id = 'd12'")
    third = states_of(*files_of(corpus))
    assert [one == other for one, other in zip(second, third, strict=True)] == [True, False, True]
    # the same rows at the same place are other files
    shutil.rmtree(corpus)
    write(corpus, rows(0, 20))
    assert not {state.stamp for state in states_of(*files_of(corpus))} & {state.stamp for state in first}


@pytest.mark.parametrize("folder", ["a b", "a#b", "a%20b", "ä+&"])
def test_on_an_object_store_under_any_name(s3: Callable[[str], str], tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "corpus", rows(0, 15))
    lance.dataset(tmp_path / folder / "corpus").delete("id = 'd3'")
    filesystem, path = open_filesystem(s3(f"{folder}/corpus"))
    pafs.copy_files(str(tmp_path / folder / "corpus"), path, destination_filesystem=filesystem)
    expected = names(*(number for number in range(15) if number != 3))
    assert ids_of(s3(f"{folder}/corpus")) == ids_of(tmp_path / folder / "corpus") == expected
    states = states_of(filesystem, find_table(filesystem, path))
    assert len(states) == 2 and all(isinstance(state.stamp, str) and state.bytes for state in states)


def test_on_other_file_systems_it_is_refused(hub: Hub, tmp_path: Path) -> None:
    write(tmp_path / "corpus", rows(0, 2))
    hub.push(tmp_path)
    with pytest.raises(InputError, match=r"v1/corpus: is a Lance dataset, which is read from disks and s3:// only; "):
        EmbeddingTable.open(f"hf://datasets/{REPO}/v1/corpus")


def test_names_of_lancedb(tmp_path: Path) -> None:
    write(tmp_path / "corpus.lance", rows(0, 3))
    assert ids_of(tmp_path / "corpus") == ids_of(tmp_path / "corpus.lance") == names(0, 1, 2)
    pq.write_table(rows(0, 3), tmp_path / "corpus.parquet")
    with pytest.raises(InputError, match=r"holds corpus\.parquet and corpus\.lance; leave one of them"):
        ids_of(tmp_path / "corpus")


def test_a_folder_of_versions_makes_no_lance_dataset(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "_versions").mkdir(parents=True)
    (corpus / "_versions/notes.txt").write_text("1")
    (corpus / "_versions/1.manifest").write_text("another's")
    pq.write_table(rows(0, 2), corpus / "0.parquet")
    assert ids_of(corpus) == ["d0", "d1"]
    # one that has lost its versions is told by its files
    shutil.rmtree(corpus)
    write(corpus, rows(0, 2))
    for manifest in (corpus / "_versions").iterdir():
        manifest.unlink()
    with pytest.raises(InputError, match=r"corpus/data/\w+\.lance: lies in a subfolder"):
        ids_of(corpus)


def lost_file(corpus: Path) -> None:
    next((corpus / "data").iterdir()).unlink()


def lost_deletions(corpus: Path) -> None:
    next((corpus / "_deletions").iterdir()).unlink()


def damaged_version(corpus: Path) -> None:
    for manifest in (corpus / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"damaged")


def is_shallow_clone(corpus: Path) -> None:
    corpus.rename(corpus.parent / "elsewhere")
    lance.dataset(corpus.parent / "elsewhere").shallow_clone(corpus, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lost_file, r"/data/\w+\.lance: belongs to the table's newest version, but is not there; restore"),
        (lost_deletions, r"/_deletions/\S+: belongs to the table's newest version, but is not there; restore"),
        (damaged_version, r": cannot be read as a Lance dataset \([^/]*\); restore it"),
        (is_shallow_clone, r": the Lance dataset is a shallow clone, with files elsewhere; make a deep one"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, change: Callable[[Path], None], told: str) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 3))
    lance.dataset(corpus).delete("id = 'd1'")
    change(corpus)
    with pytest.raises(InputError, match=rf"{corpus}{told}"):
        EmbeddingTable.open(str(corpus))


def test_bad_rows_are_named_by_their_number_among_those_that_are_left(tmp_path: Path) -> None:
    corpus, kind = tmp_path / "corpus", pa.list_(pa.float32(), DIM)
    vectors = pa.array([[1.0] * DIM, [2.0] * DIM, None, [3.0] * DIM], kind)
    write(corpus, pa.table({"id": ["a", "b", "c", "d"], "embedding": vectors, "other": vectors}))
    lance.dataset(corpus).delete("id = 'a'")
    table = EmbeddingTable.open(str(corpus))
    with pytest.raises(RowError, match=r"_versions/2/fragment-000000: row 1, column embedding: is null; every row"):
        list(table.blocks())
    [batch] = table.batches(any_row=True)
    assert batch.rows["embedding"].to_pylist() == [[2.0] * DIM, None, [3.0] * DIM]
    # it could be written to Parquet, and not be read again
    with pytest.raises(RowError, match=r"fragment-000000: row 1, column other: a null in a fixed-size list; store it"):
        list(table.batches(columns=["other"]))


def test_a_fragment_that_breaks_off_is_told_of(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 5000), rows_per_file=5000)
    table = EmbeddingTable.open(str(corpus))
    [file] = (corpus / "data").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        SmecError, match=r"fragment-000000: rows from 0 on cannot be read \([^/]*\); run again, or resto"
    ):
        list(table.blocks())


def test_a_version_that_is_gone_asks_for_another_try(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, rows(0, 5))
    table = EmbeddingTable.open(str(corpus))
    write(corpus, rows(5, 6), mode="overwrite").cleanup_old_versions(timedelta(0), delete_unverified=True)
    with pytest.raises(SmecError, match=r"corpus: version 1 cannot be read \([^/]*.*\); run again") as failed:
        list(table.blocks())
    assert not isinstance(failed.value, InputError)


def test_a_dataset_without_rows_is_told(tmp_path: Path) -> None:
    write(tmp_path / "corpus", rows(0, 1).slice(0, 0))
    with pytest.raises(InputError, match=r"corpus: the newest version of the table holds no rows"):
        EmbeddingTable.open(str(tmp_path / "corpus"))


def test_a_dataset_of_lance_is_that_of_its_rows(tmp_path: Path) -> None:
    plain = write_dataset(tmp_path / "plain", docs=60, queries=40, dim=8, files=1)
    data = tmp_path / "data"
    for name, file in (("corpus", "corpus/part-0"), ("queries", "queries")):
        write(data / name, pq.read_table(plain / f"{file}.parquet"), rows_per_file=25)
    for split in ("train", "test"):
        write(data / f"qrels/{split}.lance", pq.read_table(plain / f"qrels/{split}.parquet"), rows_per_file=25)
    opened, expected = Dataset.open(str(data)), Dataset.open(str(plain))
    stamp, fingerprint = opened.stamp, opened.fingerprint
    for split in ("train", "test"):
        read, judged = opened.splits[split], expected.splits[split]
        assert np.array_equal(read.doc_row_J, judged.doc_row_J) and np.array_equal(read.score_J, judged.score_J)
    # a version of the same rows is the same data
    lance.dataset(data / "corpus").update_config({"some": "setting"})
    opened.check_unchanged()
    assert Dataset.open(str(data)).fingerprint == fingerprint
    lance.dataset(data / "qrels/test.lance").delete("score > 0 and query_id < 'q3'")
    assert dataset_stamp(str(data)) != stamp
    with pytest.raises(SmecError, match="changed while it was used"):
        opened.check_unchanged()
    # what was opened stays as it was
    lance.dataset(data / "corpus").delete("id = 'd1'")
    assert "d1" in opened.corpus.ids().to_pylist()
    assert Dataset.open(str(data)).fingerprint != fingerprint
