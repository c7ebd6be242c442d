"""On a real S3 server, what is wrong with a file or a folder is told by its URI."""

import io
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smec_core.clicks.log import ClickColumns, ClickLog
from smec_core.clicks.reading import read_log
from smec_core.clicks.rules import ClickRules
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.qrels import read_qrels
from smec_core.data.tables import check_names, find_qrels, find_texts, find_values
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.errors import InputError, SmecError

Uri = Callable[[str], str]


def parquet(**columns: object) -> bytes:
    """A file with these columns."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def corpus(uri: str) -> None:
    EmbeddingTable.open(f"{uri.replace('?', '/corpus?')}")


def qrels(uri: str) -> None:
    filesystem, root = open_filesystem(uri)
    for table in find_qrels(filesystem, root).values():
        read_qrels(filesystem, table)


def texts(uri: str) -> None:
    find_texts(*open_filesystem(uri), "corpus")


def names(uri: str) -> None:
    check_names(*open_filesystem(uri))


def clicks(uri: str) -> None:
    read_log(ClickLog(uri, ClickColumns()), ClickRules())


class Wrong(NamedTuple):
    """Some files of a folder, who refuses them, and the place that is named first."""

    files: dict[str, bytes]
    read: Callable[[str], None]
    place: str


VECTORS = parquet(id=["a"], embedding=embedding_column(np.ones((1, 4), np.float32)))
CASES = {
    "no table": Wrong({"x": b""}, corpus, "/corpus: there is no such file or folder"),
    "two forms": Wrong({"corpus.parquet": VECTORS, "corpus/0.parquet": VECTORS}, corpus, ": holds corpus"),
    "a subfolder": Wrong({"corpus/a/0.parquet": VECTORS}, corpus, "/corpus/a/0.parquet: lies in a subfolder"),
    "another ending": Wrong({"corpus/0.csv": b"id"}, corpus, "/corpus/0.csv: would not be read"),
    "a Hudi table": Wrong({"corpus/.hoodie/x": b"x"}, corpus, "/corpus: is a Hudi table"),
    "a Delta table": Wrong(
        {"corpus/_delta_log/00000000000000000000.json": b"x"}, corpus, "/corpus: cannot be read as a"
    ),
    "an Iceberg table": Wrong(
        {"corpus/metadata/v1.metadata.json": b"x"}, corpus, "/corpus/metadata/v1.metadata.json, or"
    ),
    "an Iceberg hint": Wrong(
        {"corpus/metadata/v1.metadata.json": b"x", "corpus/metadata/version-hint.text": b"7"},
        corpus,
        "/corpus/metadata/version-hint.text: names version 7",
    ),
    "a Lance dataset": Wrong({"corpus/_versions/1.manifest": b"LANC"}, corpus, "/corpus: cannot be read as a Lance"),
    "no text": Wrong({"x": b""}, texts, ": no corpus there"),
    "a near name": Wrong({"Corpus.parquet": VECTORS}, names, "/Corpus.parquet: would not be read"),
    "no split": Wrong({"qrels/trian.tsv": b""}, qrels, "/qrels/trian.tsv: fits no split"),
    "an empty split": Wrong({"qrels/train.tsv": b"\n"}, qrels, "/qrels/train.tsv: the split is empty"),
    "an empty folder": Wrong({"qrels/train/note.md": b"x"}, qrels, "/qrels/train: holds no Parquet file"),
    "two splits": Wrong({"qrels/train.tsv": b"", "qrels/train.parquet": b""}, qrels, "/qrels: holds"),
    "unfinished": Wrong({"qrels/_unfinished.json": b"{}"}, qrels, "/qrels: smec judge has not finished"),
    "a short line": Wrong({"qrels/train.tsv": b"a\tb\n"}, qrels, "/qrels/train.tsv: line 1: needs"),
    "no UTF-8": Wrong({"qrels/train.tsv": b"\xff"}, qrels, "/qrels/train.tsv: is not UTF-8"),
    "an open quote": Wrong({"qrels/train.tsv": b'"a\tb\t1\n'}, qrels, "/qrels/train.tsv: line 1: needs"),
    "no score": Wrong(
        {"qrels/train.parquet": parquet(query_id=["a"], doc_id=["b"])}, qrels, "/qrels/train.parquet: co"
    ),
    "a null": Wrong(
        {"qrels/train.parquet": parquet(query_id=["a"], doc_id=pa.array([None], pa.string()), score=[1])},
        qrels,
        "/qrels/train.parquet: row 0, column doc_id",
    ),
    "no log": Wrong({"x.md": b""}, clicks, ": no file of a log"),
    "two kinds of log": Wrong({"a.csv": b"", "b.jsonl": b""}, clicks, ": holds s3://"),
    "a log without ids": Wrong({"a.csv": b"x\n1\n"}, clicks, "/a.csv: column query_id is missing"),
    "a near column": Wrong({"a.csv": b"query_id,doc_id,Rank\na,b,1\n"}, clicks, "/a.csv: column Rank would be"),
    "a partition": Wrong({"count=1/a.csv": b"query_id,doc_id\na,b\n"}, clicks, "/count=1/a.csv: lies in"),
    "logs that differ": Wrong(
        {"a.csv": b"query_id,doc_id\na,b\n", "b.csv": b"query_id,doc_id,rank\na,b,1\n"},
        clicks,
        "/a.csv: column rank is missing, but s3://",
    ),
    "no JSON": Wrong({"a.jsonl": b"{\n"}, clicks, "/a.jsonl: line 1: is not JSON"),
    "a list as an id": Wrong({"a.jsonl": b'{"query_id": [], "doc_id": "b"}\n'}, clicks, "/a.jsonl: line 1, column"),
    "a bad row": Wrong({"a.csv": b"query_id,doc_id,rank\na,b,0\n"}, clicks, "/a.csv: row 0, column rank"),
    "a short row": Wrong({"a.csv": b"query_id,doc_id\na\n"}, clicks, "/a.csv: cannot be read"),
    "no click": Wrong({"a.csv": b"query_id,doc_id,clicked\na,b,0\n"}, clicks, "/a.csv: no click in the log"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_told_by_its_uri(s3: Uri, name: str) -> None:
    wrong, uri = CASES[name], s3("data")
    filesystem, root = open_filesystem(uri)
    for file, content in wrong.files.items():
        filesystem.create_dir(f"{root}/{file}".rpartition("/")[0])
        with filesystem.open_output_stream(f"{root}/{file}") as sink:
            sink.write(content)
    with pytest.raises(InputError) as refused:
        wrong.read(uri)
    told = str(refused.value)
    assert told.startswith(f"{public_uri(uri)}{wrong.place}"), told
    # nor does any other place in it lack the scheme
    assert not re.search(rf"(?<!s3://){re.escape(root)}", told), told


def test_a_table_that_changed_is_told_by_its_uri(s3: Uri) -> None:
    filesystem, root = open_filesystem(s3("corpus"))
    filesystem.create_dir(root)
    with filesystem.open_output_stream(f"{root}/0.parquet") as sink:
        sink.write(VECTORS)
    table = EmbeddingTable.open(s3("corpus"))
    assert find_values(filesystem, root, table.files[0].path) == {}
    with pytest.raises(SmecError) as changed:
        table.with_values({"other": {}})
    assert str(changed.value).startswith(f"{public_uri(s3('corpus'))}/0.parquet: the table has changed")
