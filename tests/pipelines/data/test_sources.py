"""The same rows, as plain Parquet, in tables of Delta, Iceberg and Lance and on the Hub: the same to every command."""

import json
import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from deltalake import write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from pipelines.cli import app
from pipelines.data import scan as scan_module
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.versions import current
from smec_core.model.model import Model
from tests.builders import write_dataset
from tests.hub import REPO, Hub

pytestmark = pytest.mark.ray

DIM = 8


def smec(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def write_tables(plain: Path, folder: Path) -> Path:
    """Corpus as a Delta table in partitions, queries as an Iceberg table, each with rows and files that are gone."""
    corpus = pq.read_table(plain / "corpus/part-0.parquet")
    kind = pa.array(["b c", "a%"] * (len(corpus) // 2))
    write_deltalake(folder / "corpus", corpus.append_column("kind", kind), partition_by=["kind"])
    write_deltalake(folder / "corpus", corpus.append_column("kind", kind), partition_by=["kind"], mode="overwrite")
    queries = pq.read_table(plain / "queries.parquet")
    queries = queries.set_column(1, "embedding", queries["embedding"].cast(pa.list_(pa.float32())))
    catalog = SqlCatalog("tests", uri=f"sqlite:///{folder.parent}/catalog.db", warehouse=str(folder.parent))
    catalog.create_namespace("n")
    table = catalog.create_table("n.queries", queries.schema, location=str(folder / "queries"))
    table.append(queries)
    table.overwrite(queries)
    shutil.copytree(plain / "qrels", folder / "qrels")
    # the plain rows in the order of the table's files
    rows = [pq.read_table(part.path, partitioning=None) for part in EmbeddingTable.open(str(folder / "corpus")).files]
    pq.write_table(pa.concat_tables(rows), plain / "corpus/part-0.parquet")
    return folder


def write_lance(plain: Path, folder: Path) -> Path:
    """Corpus and queries as datasets of Lance, each of two fragments of which rows are deleted."""
    for name, file in (("corpus", "corpus/part-0"), ("queries", "queries")):
        rows = pq.read_table(plain / f"{file}.parquet")
        half = len(rows) // 2
        for piece in (rows.slice(0, half), rows.slice(half)):
            doubled = piece.set_column(0, "id", pa.array([f"{key}-gone" for key in piece["id"].to_pylist()]))
            mixed = pa.concat_tables([doubled.slice(0, 7), piece, doubled.slice(7)])
            lance.write_dataset(mixed, folder / name, mode="append" if (folder / name).exists() else "create")
        lance.dataset(folder / name).delete("id like '%-gone'")
    shutil.copytree(plain / "qrels", folder / "qrels")
    return folder


@pytest.mark.parametrize("by", ["one process", "Ray Data"])
def test_every_source_has_the_fingerprint_of_its_rows(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, by: str
) -> None:
    plain = write_dataset(tmp_path / "plain", docs=200, queries=120, dim=DIM, files=1)
    tables = write_tables(plain, tmp_path / "tables")
    hub.push(tables)
    if by == "Ray Data":
        monkeypatch.setattr("smec_core.data.scan.SMALL_BYTES", 0)
        monkeypatch.setattr(scan_module, "TASK_ROWS", 64)
    checked = []
    for uri in (str(plain), str(tables), str(write_lance(plain, tmp_path / "lance")), f"hf://datasets/{REPO}/v1"):
        smec("check", uri, "--json", str(tmp_path / "check.json"))
        checked.append(json.loads((tmp_path / "check.json").read_text()))
    assert [found["corpus"] for found in checked[1:]] == [{"rows": 200, "files": 2}] * 3
    assert len({found["fingerprint"] for found in checked}) == 1


def test_compress_reads_them_and_keeps_columns_that_partition_a_table(
    ray_cluster: None, tmp_path: Path, hub: Hub
) -> None:
    plain = write_dataset(tmp_path / "plain", docs=200, queries=120, dim=DIM, files=1)
    tables = write_tables(plain, tmp_path / "tables")
    hub.push(tables)
    Model([], DIM, {"dims": [4]}, {}).save(tmp_path / "model")
    found = []
    for number, uri in enumerate((f"{plain}/corpus", f"{tables}/corpus", f"hf://datasets/{REPO}/v1/corpus")):
        output = str(tmp_path / f"output-{number}")
        smec("compress", "--model", str(tmp_path / "model"), "--input", uri, "--output", output, "--dim", "4")
        kept = pa.concat_tables([pq.read_table(part.path) for part in EmbeddingTable.open(current(output)).files])
        assert kept.column_names == ["id", "embedding", *(["kind"] if number else [])]
        if number:
            expected = ["a%" if int(key[1:]) % 2 else "b c" for key in kept["id"].to_pylist()]
            assert kept["kind"].to_pylist() == expected
        table = EmbeddingTable.open(current(output))
        vectors = np.concatenate([block.vectors_ND for block in table.blocks()])
        found.append(dict(zip(table.ids().to_pylist(), vectors.tolist(), strict=True)))
    assert found[0] == found[1] == found[2] and len(found[0]) == 200


def test_compress_reads_lance_and_takes_over_fragments_that_stay(ray_cluster: None, tmp_path: Path) -> None:
    plain = write_dataset(tmp_path / "plain", docs=200, queries=120, dim=DIM, files=1)
    corpus = write_lance(plain, tmp_path / "lance") / "corpus"
    lance.dataset(corpus).add_columns({"kind": "concat('of ', id)"})
    model = Model([], DIM, {"dims": [4]}, {})
    model.save(tmp_path / "model")
    output = str(tmp_path / "out")
    command = ["compress", "--model", str(tmp_path / "model"), "--input", str(corpus), "--output", output, "--dim", "4"]
    command += ["--set", "on_bad_row=quarantine", "--set", "max_bad_rows=0.1"]

    def compressed() -> pa.Table:
        files = EmbeddingTable.open(current(output)).files
        return pa.concat_tables([pq.read_table(part.path) for part in files])

    smec(*command)
    rows = pq.read_table(plain / "corpus/part-0.parquet")
    x_ND: np.ndarray = np.stack(rows["embedding"].to_numpy())
    found = compressed()
    assert found["id"].to_pylist() == rows["id"].to_pylist()
    assert np.array_equal(np.stack(found["embedding"].to_numpy()), model.encode(x_ND, 4))
    assert found["kind"].to_pylist() == [f"of {key}" for key in rows["id"].to_pylist()]
    bad = pa.array([None, [1.0] * DIM], pa.list_(pa.float32(), DIM))
    lance.write_dataset(pa.table({"id": ["new", "newer"], "embedding": bad}), corpus, mode="append")
    lance.dataset(corpus).delete("id = 'd3'")
    told = smec(*command)
    assert "compressed 100 rows to 4 dims, 100 taken from v0001" in told
    assert compressed()["id"].to_pylist() == [key for key in rows["id"].to_pylist() if key != "d3"] + ["newer"]
    [apart] = Path(current(output)).glob("_quarantine/*.parquet")
    [bad_row] = pq.read_table(apart).to_pylist()
    assert (bad_row["id"], bad_row["row"], bad_row["embedding"]) == ("new", 0, None)
    assert bad_row["file"].endswith("corpus/_versions/6/fragment-000002")
