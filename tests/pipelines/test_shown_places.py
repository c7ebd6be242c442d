"""On a real S3 server, jobs tell of a file by its URI."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.compress.actor import QUARANTINE, CompressPiece, Job, cut
from pipelines.ingest.readers import Place
from pipelines.ingest.text import find_texts, read_judgements, scan
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.errors import InputError
from smec_core.model.model import Model

Uri = Callable[[str], str]


def put(uri: str, content: bytes | pa.Table) -> None:
    """Writes a file, or a table as Parquet."""
    filesystem, path = open_filesystem(uri)
    filesystem.create_dir(path.rpartition("/")[0])
    if isinstance(content, pa.Table):
        pq.write_table(content, path, filesystem=filesystem)
        return
    with filesystem.open_output_stream(path) as sink:
        sink.write(content)


def test_ingest_names_text_by_its_uri(s3: Uri) -> None:
    filesystem, root = open_filesystem(s3("text"))
    source = Place(filesystem, root)
    put(s3("text/corpus.jsonl"), b"{\n")
    put(s3("text/queries/0.parquet"), pa.table({"id": ["", "b"], "text": ["x", "y"]}))
    put(s3("text/queries/1.parquet"), pa.table({"id": ["c"]}))
    told = []
    for kind in ("corpus", "queries"):
        with pytest.raises(InputError) as refused:
            scan(find_texts(source, kind), kind, 10)
        told.append(str(refused.value))
    put(s3("text/queries/0.parquet"), pa.table({"id": ["a"], "text": pa.array([None], pa.string())}))
    for change in (None, pa.table({"id": ["a"], "text": ["x"]})):
        if change is not None:
            put(s3("text/queries/0.parquet"), change)
        with pytest.raises(InputError) as refused:
            scan(find_texts(source, "queries"), "queries", 10)
        told.append(str(refused.value))
    put(s3("text/queries/1.parquet"), pa.table({"id": ["c"], "text": ["z"]}))
    with pytest.raises(InputError) as refused:
        scan(find_texts(source, "queries"), "queries", 10, frozenset())
    told.append(str(refused.value))
    put(s3("text/qrels/test.tsv"), b"a\n")
    with pytest.raises(InputError) as refused:
        read_judgements(source)
    told.append(str(refused.value))
    places = [
        "/corpus.jsonl: line 1: not JSON",
        "/queries/0.parquet: row 0, column id: is empty",
        "/queries/0.parquet: row 0, column text: is null",
        "/queries/1.parquet: column text is missing",
        "/queries: none of its queries",
        "/qrels/test.tsv: line 1: needs query_id",
    ]
    folder = public_uri(s3("text"))
    assert [one[: len(folder) + len(place)] for one, place in zip(told, places, strict=True)] == [
        f"{folder}{place}" for place in places
    ]


def test_compress_names_its_input_by_its_uri(s3: Uri) -> None:
    x_ND = np.eye(4, dtype=np.float32)
    x_ND[2] = 0
    put(s3("in/0.parquet"), pa.table({"id": list("abcd"), "embedding": embedding_column(x_ND)}))
    place = f"{public_uri(s3('in'))}/0.parquet"
    table, (filesystem, folder) = EmbeddingTable.open(s3("in")), open_filesystem(s3("out"))
    model = Model([], 4, {"dims": [4, 2]}, {})
    job = Job(model, table, filesystem, folder, (2,), "float32", False, 1, 16)
    [piece] = cut(table, 10)
    records = [*CompressPiece(job, False)(piece._asdict())]
    assert not any("error" in one and one["error"] for one in records), records
    bad = pq.read_table(f"{folder}/{QUARANTINE}/0.parquet", filesystem=filesystem)
    assert (bad["file"].to_pylist(), bad["row"].to_pylist()) == ([place], [2])
    for few in (None, 0):
        job = job._replace(max_bad_rows=few, folder=f"{folder}-{few}")
        [error] = [one["error"] for one in CompressPiece(job, False)(piece._asdict()) if one.get("error")]
        assert f"{place}: row 2" in str(error)
