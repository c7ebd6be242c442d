"""Delta and Iceberg tables, written by their own libraries: the rows of the newest version, or a clear refusal."""

import json
import shutil
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import AddSnapshotUpdate, AssertRefSnapshotId, SetSnapshotRefUpdate
from pyiceberg.typedef import Record

from smec_core.data.dataset import Dataset, dataset_stamp
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.tables import find_values
from smec_core.data.uri import open_filesystem
from smec_core.errors import InputError, SmecError
from tests.builders import write_dataset

DIM = 4


def rows(*names: str, **more: list[Any]) -> pa.Table:
    """Rows of these ids, with vectors that follow from them."""
    x_ND: np.ndarray = np.array([[ord(name[0]), 1, 2, 3] for name in names], np.float32)
    return pa.table({"id": list(names), "embedding": pa.array(list(x_ND), pa.list_(pa.float32())), **more})


def ids_of(uri: Path | str) -> list[str]:
    table = EmbeddingTable.open(str(uri))
    assert [part.path for part in table.files] == sorted(part.path for part in table.files)
    for block in table.blocks():
        assert [chr(int(first)) for first in block.vectors_ND[:, 0]] == [name[0] for name in block.ids.to_pylist()]
    return sorted(table.ids().to_pylist())


def edit(folder: Path, kind: str, change: Callable[[dict[str, Any]], object], version: int = 0) -> None:
    """Changes entries of a kind in a version of a Delta log."""
    path = folder / f"_delta_log/{version:020d}.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if kind in line:
            change(line[kind])
    path.write_text("\n".join(map(json.dumps, lines)))


def test_of_a_delta_table_the_newest_version_is_read(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_deltalake(corpus, rows("a", "b", "c"))
    assert ids_of(corpus) == ["a", "b", "c"]
    write_deltalake(corpus, rows("d", "e"), mode="append")
    DeltaTable(corpus).delete("id = 'b'")
    # a file of a writer that failed is not the table's
    pq.write_table(rows("z"), corpus / "part-orphan.parquet")
    assert ids_of(corpus) == ["a", "c", "d", "e"]
    table = DeltaTable(corpus)
    table.optimize.compact()
    table.create_checkpoint()
    write_deltalake(corpus, rows("f"), mode="append")
    assert ids_of(corpus) == ["a", "c", "d", "e", "f"]
    # what came before the checkpoint may be gone
    (corpus / f"_delta_log/{0:020d}.json").unlink()
    assert ids_of(corpus) == ["a", "c", "d", "e", "f"]
    write_deltalake(corpus, rows("g"), mode="overwrite")
    assert ids_of(corpus) == ["g"]
    DeltaTable(corpus).delete()
    with pytest.raises(InputError, match=r"corpus: the newest version of the table holds no rows"):
        ids_of(corpus)


@pytest.mark.parametrize("hint", ["", "{}", "[]", "null", '{"version": 99}', '{"version": "one"}'])
def test_a_damaged_hint_at_the_last_checkpoint_costs_nothing(tmp_path: Path, hint: str) -> None:
    corpus = tmp_path / "corpus"
    write_deltalake(corpus, rows("a"))
    DeltaTable(corpus).create_checkpoint()
    write_deltalake(corpus, rows("b"), mode="append")
    (corpus / "_delta_log/_last_checkpoint").write_text(hint)
    assert ids_of(corpus) == ["a", "b"]


def test_delta_files_lie_in_partitions_under_escaped_names(tmp_path: Path) -> None:
    corpus = tmp_path / "a b"
    languages = ["x y", "ä/%", "z=1", "z=1"]
    write_deltalake(corpus, rows("a", "b", "c", "d", lang=languages), partition_by=["lang"])
    assert ids_of(corpus) == ["a", "b", "c", "d"]
    # as Spark names it: a space is one on disk, and %20 in the log
    (corpus / "lang=x%20y").rename(corpus / "lang=x y")
    edit(corpus, "add", lambda add: add.update(path=add["path"].replace("x%2520y", "x%20y")))
    assert ids_of(corpus) == ["a", "b", "c", "d"]
    write_deltalake(tmp_path / "by-id", rows("a", "b"), partition_by=["id"])
    with pytest.raises(InputError, match=r"id=a/.*: column id is in the name of a folder only.*without that partition"):
        ids_of(tmp_path / "by-id")


def test_columns_that_partition_a_delta_table_are_added_where_they_are_asked_for(tmp_path: Path) -> None:
    corpus, days = tmp_path / "corpus.parquet", [date(2026, 1, 2), None, date(2026, 1, 2)]
    write_deltalake(
        corpus,
        rows("a", "b", "c", lang=["x y", "ä/%", "x y"], day=days, n=[7, 8, 7]),
        partition_by=["lang", "day", "n"],
    )
    table = EmbeddingTable.open(str(tmp_path / "corpus"))
    found = table.with_values(find_values(table.filesystem, str(tmp_path / "corpus"), table.files[0].path))
    assert [column.names for column in map(table.schema_of, table.files)] == [["id", "embedding"]] * 2
    for part in found.files:
        schema = found.schema_of(part)
        assert dict(zip(schema.names[2:], schema.types[2:], strict=True)) == {
            "lang": pa.string(),
            "day": pa.date32(),
            "n": pa.int64(),
        }
    told = [block.table.drop_columns("embedding").to_pylist() for block in found.blocks(columns=["n", "lang", "day"])]
    assert sorted((row for rows in told for row in rows), key=lambda row: row["id"]) == [
        {"id": "a", "n": 7, "lang": "x y", "day": date(2026, 1, 2)},
        {"id": "b", "n": 8, "lang": "ä/%", "day": None},
        {"id": "c", "n": 7, "lang": "x y", "day": date(2026, 1, 2)},
    ]
    # a plain folder has none
    pq.write_table(rows("a"), tmp_path / "queries.parquet")
    assert find_values(table.filesystem, str(tmp_path / "queries"), str(tmp_path / "queries.parquet")) == {}


def test_delta_tables_on_an_object_store(s3: Callable[[str], str], tmp_path: Path) -> None:
    write_deltalake(tmp_path / "corpus", rows("a", "b", lang=["x y", "z"]), partition_by=["lang"])
    DeltaTable(tmp_path / "corpus").delete("id = 'b'")
    filesystem, path = open_filesystem(s3("data/corpus"))
    pafs.copy_files(str(tmp_path / "corpus"), path, destination_filesystem=filesystem)
    assert ids_of(s3("data/corpus")) == ["a"]


def has_feature(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        protocol = dict(minReaderVersion=3, minWriterVersion=7, readerFeatures=[name], writerFeatures=[name])
        edit(folder, "protocol", lambda entry: entry.update(protocol))

    return change


def has_deletion_vector(folder: Path) -> None:
    has_feature("deletionVectors")(folder)
    assert ids_of(folder) == ["a", "b"]
    vector = dict(storageType="u", pathOrInlineDv="vBn[lx{q8@P<9BNH/isA", offset=1, sizeInBytes=36, cardinality=1)
    edit(folder, "add", lambda entry: entry.update(deletionVector=vector))


def has_column_mapping(folder: Path) -> None:
    edit(folder, "protocol", lambda entry: entry.update(minReaderVersion=2, minWriterVersion=5))

    def change(entry: dict[str, Any]) -> None:
        schema = json.loads(entry["schemaString"])
        for number, field in enumerate(schema["fields"], 1):
            field["metadata"] = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": f"c{number}"}
        entry["schemaString"] = json.dumps(schema)
        entry["configuration"] = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "2"}

    edit(folder, "metaData", change)


def is_shallow_clone(folder: Path) -> None:
    edit(folder, "add", lambda entry: entry.update(path=f"s3://elsewhere/{entry['path']}"))


def lost_file(folder: Path) -> None:
    next(folder.glob("*.parquet")).unlink()


def lost_log(folder: Path) -> None:
    (folder / f"_delta_log/{0:020d}.json").unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (has_deletion_vector, r"has deletion vectors, .*rewrite them \(REORG TABLE"),
        (has_column_mapping, r"has column mapping, .*write it anew without"),
        (has_feature("inventedTomorrow"), r"cannot be read as a Delta table \(.*inventedTomorrow"),
        (is_shallow_clone, r"is a shallow clone, with files elsewhere \(s3://elsewhere/.*make a deep one"),
        (lost_file, r"\.parquet: belongs to the table's newest version, but is not there; restore"),
        (lost_log, r"cannot be read as a Delta table \([^\n]*\); fix or restore"),
    ],
)
def test_what_delta_files_do_not_tell_is_refused(tmp_path: Path, change: Callable[[Path], None], told: str) -> None:
    corpus = tmp_path / "corpus"
    write_deltalake(corpus, rows("a", "b"))
    change(corpus)
    with pytest.raises(InputError, match=rf"{corpus}.*{told}"):
        EmbeddingTable.open(str(corpus))


@pytest.mark.parametrize(
    ("package", "what"),
    [("deltalake", "a Delta table"), ("pyiceberg", "an Iceberg table"), ("pylance", "a Lance dataset")],
)
def test_without_the_package_no_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, what: str
) -> None:
    if package == "deltalake":
        write_deltalake(tmp_path / "corpus", rows("a"))
    elif package == "pylance":
        lance.write_dataset(rows("a"), tmp_path / "corpus")
    else:
        iceberg(tmp_path).append(rows("a"))
    module = "lance" if package == "pylance" else package
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"corpus: is {what}, which needs {package}.*pip install -e '\.\[sources\]'"):
        EmbeddingTable.open(str(tmp_path / "corpus"))


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "corpus/.hoodie").mkdir(parents=True)
    pq.write_table(rows("a"), tmp_path / "corpus/0.parquet")
    with pytest.raises(InputError, match=r"corpus: is a Hudi table, which is not read; write the table as Parquet fil"):
        EmbeddingTable.open(str(tmp_path / "corpus"))


def iceberg(folder: Path, name: str = "corpus") -> Table:
    """An empty Iceberg table in a folder of this name."""
    catalog = SqlCatalog("tests", uri=f"sqlite:///{folder}/catalog.db", warehouse=str(folder))
    catalog.create_namespace_if_not_exists("n")
    return catalog.create_table(f"n.{name}", rows("a").schema, location=str(folder / name))


def delete_rows(table: Table, content: DataFileContent) -> None:
    """Adds a file of deletes, which pyiceberg reads and does not write."""

    class DeletesWriter(ManifestWriterV2):
        def content(self) -> ManifestContent:
            return ManifestContent.DELETES

        @property
        def _meta(self) -> dict[str, str]:
            return {**super()._meta, "content": "deletes"}

    current, metadata = table.current_snapshot(), table.metadata
    assert current is not None
    path = next(iter(table.scan().plan_files())).file.file_path
    deleted = pa.table({"file_path": [path], "pos": pa.array([0], pa.int64())})
    if content == DataFileContent.EQUALITY_DELETES:
        deleted = pa.table({"id": ["a"]})
    target, number, sequence = f"{table.location()}/data/deletes.parquet", 12345, table.last_sequence_number + 1
    pq.write_table(deleted, target)
    file = DataFile.from_args(
        content=content,
        file_path=target,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=Path(target).stat().st_size,
        equality_ids=[1] if content == DataFileContent.EQUALITY_DELETES else None,
    )
    output = table.io.new_output(f"{table.location()}/metadata/deletes.avro")
    with DeletesWriter(metadata.spec(), metadata.schema(), output, number, "deflate") as writer:
        writer.add_entry(ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=number, data_file=file))
    manifests = [*current.manifests(table.io), writer.to_manifest_file()]
    location = f"{table.location()}/metadata/snap-deletes.avro"
    with write_manifest_list(
        2, table.io.new_output(location), number, current.snapshot_id, sequence, "deflate"
    ) as manifest_list:
        manifest_list.add_manifests(manifests)
    snapshot = Snapshot(
        snapshot_id=number,
        parent_snapshot_id=current.snapshot_id,
        sequence_number=sequence,
        manifest_list=location,
        summary=Summary(Operation.DELETE),
        schema_id=metadata.current_schema_id,
    )
    table._do_commit(
        (
            AddSnapshotUpdate(snapshot=snapshot),
            SetSnapshotRefUpdate.model_validate(
                {"ref-name": "main", "type": "branch", "snapshot-id": number, "action": "set-snapshot-ref"}
            ),
        ),
        (AssertRefSnapshotId(ref="main", snapshot_id=current.snapshot_id),),
    )


def test_of_an_iceberg_table_the_newest_version_is_read(tmp_path: Path) -> None:
    corpus, table = tmp_path / "corpus", iceberg(tmp_path)
    with pytest.raises(InputError, match=r"corpus: the newest version of the table holds no rows"):
        ids_of(corpus)
    table.append(rows("a", "b", "c"))
    table.append(rows("d", "e"))
    # pyiceberg writes the files anew that held a row
    table.delete("id = 'b'")
    assert ids_of(corpus) == ["a", "c", "d", "e"]
    table.overwrite(rows("f"))
    assert ids_of(corpus) == ["f"]


def test_an_iceberg_table_is_read_where_it_was_copied_to(tmp_path: Path, s3: Callable[[str], str]) -> None:
    table = iceberg(tmp_path)
    table.append(rows("a", "b"))
    filesystem, path = open_filesystem(s3("data/corpus"))
    pafs.copy_files(str(tmp_path / "corpus"), path, destination_filesystem=filesystem)
    (tmp_path / "corpus").rename(tmp_path / "moved here")
    assert ids_of(s3("data/corpus")) == ids_of(tmp_path / "moved here") == ["a", "b"]


def test_iceberg_files_elsewhere(tmp_path: Path, s3: Callable[[str], str]) -> None:
    """Files that were added to a table as they lay."""
    table = iceberg(tmp_path)
    pq.write_table(rows("a", "b"), tmp_path / "found.parquet")
    table.add_files([f"file://{tmp_path}/found.parquet"])
    assert ids_of(tmp_path / "corpus") == ["a", "b"]
    filesystem, path = open_filesystem(s3("data/corpus"))
    pafs.copy_files(str(tmp_path / "corpus"), path, destination_filesystem=filesystem)
    with pytest.raises(InputError, match=r"data/corpus: the Iceberg table has a file elsewhere \(file://.*rewrite it"):
        ids_of(s3("data/corpus"))


def test_which_iceberg_version_is_the_newest(tmp_path: Path) -> None:
    corpus, table = tmp_path / "corpus", iceberg(tmp_path)
    hint = corpus / "metadata/version-hint.text"
    for name in "abc":
        table.append(rows(name))
    names = {path.name[:5]: path for path in (corpus / "metadata").glob("*.metadata.json")}
    hint.write_text(f"{names['00002'].name}\n")
    assert ids_of(corpus) == ["a", "b"]
    hint.write_text(names["00001"].name.removesuffix(".metadata.json"))
    assert ids_of(corpus) == ["a"]
    # as Hadoop's tables have it: the hint may lag behind
    for number in ("00000", "00001", "00002", "00003"):
        shutil.copy(names[number], corpus / f"metadata/v{int(number) + 10}.metadata.json")
    hint.write_text("12")
    assert ids_of(corpus) == ["a", "b", "c"]
    for text in ("99", "gone"):
        hint.write_text(text)
        with pytest.raises(InputError, match=r"version-hint.text: names .*, which is not there; restore"):
            ids_of(corpus)
    hint.unlink()
    assert ids_of(corpus) == ["a", "b", "c"]
    shutil.copy(names["00001"], corpus / "metadata/00013-other.metadata.json")
    with pytest.raises(InputError, match=r"00013-other.metadata.json and v13.metadata.json: only the catalog knows"):
        ids_of(corpus)


def test_an_iceberg_table_in_the_place_of_one_that_was_dropped(tmp_path: Path) -> None:
    corpus, dropped = tmp_path / "corpus", iceberg(tmp_path)
    for name in "abc":
        dropped.append(rows(name))
    dropped.catalog.drop_table(dropped.name())
    table = dropped.catalog.create_table(dropped.name(), rows("z").schema, location=str(corpus))
    table.append(rows("z"))
    with pytest.raises(InputError, match=r"metadata: holds metadata of several tables.*into version-hint.text there"):
        ids_of(corpus)
    (corpus / "metadata/version-hint.text").write_text(Path(table.metadata_location).name)
    assert ids_of(corpus) == ["z"]


@pytest.mark.parametrize("content", [DataFileContent.POSITION_DELETES, DataFileContent.EQUALITY_DELETES])
def test_iceberg_deletes_are_refused(tmp_path: Path, content: DataFileContent) -> None:
    table = iceberg(tmp_path)
    table.append(rows("a", "b"))
    delete_rows(table, content)
    with pytest.raises(InputError, match=r"corpus: the Iceberg table has delete files.*rewrite_data_files"):
        EmbeddingTable.open(str(tmp_path / "corpus"))


def test_iceberg_columns_that_were_renamed_are_refused_until_rewritten(tmp_path: Path) -> None:
    corpus, table = tmp_path / "corpus", iceberg(tmp_path)
    table.append(rows("a", "b"))
    with table.update_schema() as update:
        update.add_column("other", table.schema().find_type("embedding"))
    assert ids_of(corpus) == ["a", "b"]
    with table.update_schema() as update:
        update.rename_column("embedding", "old")
    with table.update_schema() as update:
        update.rename_column("other", "embedding")
    with pytest.raises(InputError, match=r"\.parquet: column embedding was written before the table's columns were re"):
        EmbeddingTable.open(str(corpus))
    table.overwrite(rows("c").append_column("old", rows("c")["embedding"]))
    assert ids_of(corpus) == ["c"]


def test_other_files_of_iceberg_are_refused(tmp_path: Path) -> None:
    table = iceberg(tmp_path)
    orc.write_table(rows("a"), tmp_path / "corpus/a.orc")
    file = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"{tmp_path}/corpus/a.orc",
        file_format=FileFormat.ORC,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=(tmp_path / "corpus/a.orc").stat().st_size,
    )
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(file)
    with pytest.raises(InputError, match=r"\.orc: is ORC, and the table's files must be Parquet; rewrite it"):
        EmbeddingTable.open(str(tmp_path / "corpus"))


def test_a_folder_of_metadata_makes_no_iceberg_table(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "metadata").mkdir(parents=True)
    (corpus / "metadata/notes.json").write_text("{}")
    pq.write_table(rows("a"), corpus / "0.parquet")
    assert ids_of(corpus) == ["a"]
    (corpus / "metadata/00000-x.metadata.json").write_text("{}")
    with pytest.raises(InputError, match=r"00000-x.metadata.json: cannot be read as an Iceberg table \("):
        ids_of(corpus)


def test_a_new_version_is_new_data(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", docs=60, queries=40, dim=8, files=1)
    corpus, judged = pq.read_table(data / "corpus/part-0.parquet"), pq.read_table(data / "qrels/train.parquet")
    shutil.rmtree(data / "corpus")
    write_deltalake(data / "corpus", corpus)
    # judgements, too
    (data / "qrels/train.parquet").unlink()
    write_deltalake(data / "qrels/train", judged)
    opened, stamp = Dataset.open(str(data)), dataset_stamp(str(data))
    assert opened.unknown_judgements["train"] == 0
    # a version of the same files is the same data
    DeltaTable(data / "corpus").alter.set_table_properties({"delta.logRetentionDuration": "interval 30 days"})
    opened.check_unchanged()
    write_deltalake(data / "corpus", corpus.slice(0, 1).set_column(0, "id", pa.array(["new"])), mode="append")
    assert dataset_stamp(str(data)) != stamp
    with pytest.raises(SmecError, match="changed while it was used"):
        opened.check_unchanged()
