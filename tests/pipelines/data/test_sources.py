"""The same rows, as plain Parquet, in tables of Delta and Iceberg and on the Hub: the same to every command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from deltalake import write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from pipelines.cli import app
from pipelines.data import scan as scan_module
from pipelines.storage.publish import current
from smec_core.data.parquet import EmbeddingTable
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


@pytest.mark.parametrize("by", ["one process", "Ray Data"])
def test_every_source_has_the_fingerprint_of_its_rows(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, by: str
) -> None:
    plain = write_dataset(tmp_path / "plain", docs=200, queries=120, dim=DIM, files=1)
    tables = write_tables(plain, tmp_path / "tables")
    hub.push(tables)
    if by == "Ray Data":
        monkeypatch.setattr(scan_module, "SMALL_BYTES", 0)
    checked = []
    for uri in (str(plain), str(tables), f"hf://datasets/{REPO}/v1"):
        smec("check", uri, "--json", str(tmp_path / "check.json"))
        checked.append(json.loads((tmp_path / "check.json").read_text()))
    assert [found["corpus"] for found in checked[1:]] == [{"rows": 200, "files": 2}] * 2
    assert len({found["fingerprint"] for found in checked}) == 1


def test_compress_reads_them_and_tells_of_columns_in_names_of_folders(
    ray_cluster: None, tmp_path: Path, hub: Hub
) -> None:
    plain = write_dataset(tmp_path / "plain", docs=200, queries=120, dim=DIM, files=1)
    tables = write_tables(plain, tmp_path / "tables")
    hub.push(tables)
    Model([], DIM, {"dims": [4]}, {}).save(tmp_path / "model")
    found = []
    for number, uri in enumerate((f"{plain}/corpus", f"{tables}/corpus", f"hf://datasets/{REPO}/v1/corpus")):
        output = str(tmp_path / f"output-{number}")
        told = smec("compress", "--model", str(tmp_path / "model"), "--input", uri, "--output", output, "--dim", "4")
        assert ("column kind is in the names of its folders" in told) == (number > 0)
        table = EmbeddingTable.open(current(output))
        vectors = np.concatenate([block.vectors_ND for block in table.blocks()])
        found.append(dict(zip(table.ids().to_pylist(), vectors.tolist(), strict=True)))
    assert found[0] == found[1] == found[2] and len(found[0]) == 200
