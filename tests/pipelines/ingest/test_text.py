"""Text as it is found and read: BEIR's own format and Parquet as on the Hugging Face hub, without Ray or an encoder."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingest.job import Source
from pipelines.ingest.readers import Place
from pipelines.ingest.text import find_texts, fingerprint, scan
from smec_core.errors import InputError
from tests.builders import DOCUMENTS, QRELS, QUERIES, json_lines, write_beir

JUDGED = {"query-id": ["q1", "q2", "q2"], "corpus-id": ["cat", "sea", "sun"], "score": [2, 1, 0]}
# a column without any value, as the hub's queries have it, has no type
CORPUS = {name: [entry.get(name) for entry in DOCUMENTS] for name in ("_id", "title", "text")}
ASKED = {"_id": [entry["_id"] for entry in QUERIES], "title": [None] * 3, "text": [entry["text"] for entry in QUERIES]}


def write(path: Path, columns: dict[str, Any], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)


def write_tsv(folder: Path, name: str = "test") -> None:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / f"qrels/{name}.tsv").write_text(QRELS)


def part(columns: dict[str, Any], start: int, stop: int | None = None) -> dict[str, Any]:
    return {name: values[start:stop] for name, values in columns.items()}


def renamed(columns: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name.replace("-", "_"), name): values for name, values in columns.items()}


def as_the_hub_has_beir(folder: Path) -> None:
    write(folder / "corpus/corpus-00000-of-00001.parquet", CORPUS)
    write(folder / "queries/queries-00000-of-00001.parquet", ASKED)
    write_tsv(folder)


def as_the_hub_has_mteb(folder: Path) -> None:
    write(folder / "corpus/test-00000-of-00002.parquet", renamed(part(CORPUS, 0, 1), _id="id"))
    write(folder / "corpus/test-00001-of-00002.parquet", renamed(part(CORPUS, 1), _id="id"))
    write(folder / "queries/test-00000-of-00001.parquet", {"id": ASKED["_id"], "text": ASKED["text"]})
    write(folder / "qrels/test-00000-of-00001.parquet", JUDGED | {"score": [2.0, 1.0, 0.0]})


def in_one_file_each(folder: Path) -> None:
    write(folder / "corpus.parquet", {name: pa.array(values, pa.large_string()) for name, values in CORPUS.items()})
    write(folder / "queries.parquet", ASKED)
    write(folder / "qrels/test.parquet", renamed(JUDGED, query_id="query_id", corpus_id="doc_id"))


def in_a_data_folder(folder: Path) -> None:
    for row in range(3):
        write(folder / f"data/corpus-0000{row}-of-00003.parquet", part(CORPUS, row, row + 1))
    write(folder / "data/queries-00000-of-00001.parquet", ASKED)
    write_tsv(folder)


def in_lance(folder: Path) -> None:
    lance.write_dataset(pa.table(CORPUS), folder / "corpus", max_rows_per_file=1)
    lance.write_dataset(pa.table(ASKED), folder / "queries.lance")
    lance.write_dataset(pa.table(JUDGED), folder / "qrels/test.lance")


@pytest.mark.parametrize(
    "layout", [as_the_hub_has_beir, as_the_hub_has_mteb, in_one_file_each, in_a_data_folder, in_lance]
)
def test_parquet_holds_what_the_beir_folder_holds(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path / "hub")
    beir = Source.read(str(write_beir(tmp_path / "beir")), 2)
    found = Source.read(str(tmp_path / "hub"), 2)
    assert found.fingerprints() == beir.fingerprints()
    assert found.qrels["test"].equals(beir.qrels["test"])
    assert [(shard.target, shard.rows, shard.sha256) for shard in found.shards] == [
        (shard.target, shard.rows, shard.sha256) for shard in beir.shards
    ]


def test_validation_is_dev_and_whole_numbers_are_ids(tmp_path: Path) -> None:
    write(tmp_path / "corpus.parquet", {"_id": [7, 8], "text": ["x", "y"]})
    write(tmp_path / "queries.parquet", {"_id": ["1"], "text": ["z"]})
    write(tmp_path / "qrels/validation.parquet", {"query-id": [1], "corpus-id": [8], "score": [1]})
    found = Source.read(str(tmp_path), 10)
    assert found.qrels["dev"].to_pylist() == [{"query_id": "1", "doc_id": "8", "score": 1}]
    assert [text.id for text in found.texts["corpus"].read()] == ["7", "8"]


def test_other_text_other_order_or_other_scores_change_the_fingerprint(tmp_path: Path) -> None:
    first, *others = DOCUMENTS
    changed = {
        "text": {"documents": json_lines([first | {"text": "Other."}, *others])},
        "order": {"documents": json_lines([*others, first])},
        "id": {"documents": json_lines([first | {"_id": "cats"}, *others])},
        "score": {"test": QRELS.replace("\t2\n", "\t1\n")},
    }
    prints = [Source.read(str(write_beir(tmp_path / "beir")), 2).fingerprints()]
    prints += [
        Source.read(str(write_beir(tmp_path / name, **files)), 2).fingerprints() for name, files in changed.items()
    ]
    assert len({json.dumps(one) for one in prints}) == 5


def test_queries_without_judgements_count_where_nothing_else_can_be_learnt_from(tmp_path: Path) -> None:
    judged = Source.read(str(write_beir(tmp_path / "beir", train=QRELS)), 2)
    assert judged.scans["queries"].rows == 2
    assert judged.doubts == []
    other = json_lines([*QUERIES[:2], {"_id": "q9", "text": "not judged either"}])
    same = Source.read(str(write_beir(tmp_path / "same", queries=other, train=QRELS)), 2)
    assert same.fingerprints() == judged.fingerprints()

    tested = Source.read(str(write_beir(tmp_path / "tested")), 2)
    assert tested.scans["queries"].rows == 3
    [doubt] = tested.doubts
    assert "tested/qrels: no judgements for training there (found: test); all queries are encoded" in doubt
    shutil.rmtree(write_beir(tmp_path / "none") / "qrels")
    none = Source.read(str(tmp_path / "none"), 2)
    assert (none.scans["queries"].rows, none.qrels) == (3, {})
    assert "(found: no split at all)" in none.doubts[0]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_shards_hold_every_text_once_in_order(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text(min_size=1), unique=True, min_size=1, max_size=30))
    texts = data.draw(st.lists(st.text(), min_size=len(names), max_size=len(names)))
    judged = frozenset(data.draw(st.sets(st.sampled_from(names), min_size=1)))
    rows_per_file = data.draw(st.integers(1, 8))
    cut = data.draw(st.integers(0, len(names)))
    expected = [name for name in names if name in judged]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(pafs.LocalFileSystem(), folder)
        entries = [{"_id": name, "text": text} for name, text in zip(names, texts, strict=True)]
        (Path(folder) / "corpus.jsonl").write_text("\n".join(json.dumps(entry) + "\n" for entry in entries))
        columns = {"_id": pa.array(names, pa.string()), "text": pa.array(texts, pa.string())}
        for file, (start, stop) in enumerate(((0, cut), (cut, len(names)))):
            rows = {name: values[start:stop] for name, values in columns.items()}
            write(Path(folder) / f"queries/{file}.parquet", rows, row_group_size=data.draw(st.integers(1, 9)))
        found = {kind: find_texts(place, kind) for kind in ("corpus", "queries")}
        scans = {kind: scan(found[kind], kind, rows_per_file, judged) for kind in found}
        assert scans["corpus"].sha256 == scans["queries"].sha256
        for kind, scanned in scans.items():
            read = []
            for shard in scanned.shards:
                kept = [text for text in found[kind].read(shard.start) if text.id in judged][: shard.rows]
                assert fingerprint(kept) == shard.sha256
                read += [text.id for text in kept]
            assert read == expected
            assert [shard.rows for shard in scanned.shards[:-1]] == [rows_per_file] * (len(scanned.shards) - 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"documents": json_lines(DOCUMENTS) + '{"_id": "x", "te\n'}, r"corpus\.jsonl: line 4: not JSON"),
        ({"documents": json_lines(DOCUMENTS) + "\n\n[1]\n"}, r"corpus\.jsonl: line 6: needs an _id"),
        ({"documents": '{"_id": "x", "text": ' + "[" * 200_000}, r"corpus\.jsonl: line 1: not JSON"),
        ({"documents": '{"_id": 7, "text": "x"}\n'}, r"corpus\.jsonl: line 1: needs an _id that is a string"),
        ({"documents": '{"_id": "x", "text": null}\n'}, r"corpus\.jsonl: line 1: text must be a string"),
        ({"documents": '{"_id": "x", "text": "\\ud83d"}\n'}, r"corpus\.jsonl: line 1: holds half of a surrogate pair"),
        ({"documents": json_lines(DOCUMENTS + DOCUMENTS[1:2])}, r"corpus\.jsonl: line 4: id 'sea' was seen before"),
        ({"documents": "\n"}, r"corpus\.jsonl: no rows"),
        ({"queries": json_lines(QUERIES[2:]), "train": QRELS}, r"queries\.jsonl: none of its queries occurs in qrels"),
        ({"test": "query-id\tcorpus-id\tscore\nq1\tcat\n"}, r"qrels/test\.tsv: line 2: needs query_id"),
        ({"test": "q1\tcat\t1\nq2\tsea\thigh\n"}, r"qrels/test\.tsv: line 2: .* 'high' is no score"),
        ({"test": "q1\tcat\t1e99\n"}, r"qrels/test\.tsv: line 1: .* '1e99' is no score"),
        ({"test": "query-id\tcorpus-id\tscore\n"}, r"qrels/test\.tsv: the split is empty"),
        ({"other": QRELS}, r"qrels/other\.tsv: fits no split; name it train, dev \(or validation\) or test"),
        ({"dev": QRELS, "validation": QRELS}, r"qrels: holds dev\.tsv and validation\.tsv; leave one"),
    ],
)
def test_malformed_text_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Source.read(str(write_beir(tmp_path / "beir", **files)), 2)


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("corpus", {"_id": ["x"]}, r"corpus/1\.parquet: column text is missing; it holds _id"),
        ("corpus", {"text": ["x"]}, r"corpus/1\.parquet: column _id or id is missing; it holds text"),
        ("corpus", {"_id": ["a", ""], "text": ["x", "y"]}, r"corpus/1\.parquet: row 1, column _id: is empty"),
        ("corpus", {"_id": ["a", None], "text": ["x", "y"]}, r"corpus/1\.parquet: row 1, column _id: is null"),
        ("corpus", {"_id": ["a", "b"], "text": ["x", None]}, r"corpus/1\.parquet: row 1, column text: is null"),
        ("corpus", {"_id": ["a"], "text": [1.5]}, r"corpus/1\.parquet: column text is double; it must be string"),
        ("corpus", {"_id": [0.5], "text": ["x"]}, r"corpus/1\.parquet: column _id is double; it must be a string or"),
        ("corpus", {"_id": ["y", "x", "y"], "text": ["x"] * 3}, r"corpus/1\.parquet: row 2: id 'y' was seen before"),
        ("corpus", {"_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, r"parquet: no rows"),
        ("qrels", {"query-id": ["q1"], "corpus-id": ["cat"]}, r"qrels/test-1\.parquet: column score is missing"),
        (
            "qrels",
            JUDGED | {"score": [1, float("inf"), 0]},
            r"qrels/test-1\.parquet: row 1, column score: inf is no sc",
        ),
        ("qrels", JUDGED | {"score": [1, None, 0]}, r"qrels/test-1\.parquet: row 1, column score: is null"),
        ("qrels", JUDGED | {"corpus-id": ["a", "b", None]}, r"qrels/test-1\.parquet: row 2, column corpus-id: is null"),
    ],
)
def test_malformed_parquet_is_named(tmp_path: Path, name: str, columns: dict[str, Any], message: str) -> None:
    write(tmp_path / "corpus/1.parquet", CORPUS)
    write(tmp_path / "queries/1.parquet", ASKED)
    write(tmp_path / "qrels/test-1.parquet", JUDGED)
    assert Source.read(str(tmp_path), 2).rows == 6
    write(tmp_path / name / ("test-1.parquet" if name == "qrels" else "1.parquet"), columns)
    with pytest.raises(InputError, match=message):
        Source.read(str(tmp_path), 2)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    plain = Source.read(str(write_beir(tmp_path / "plain")), 2)
    marked = write_beir(tmp_path / "marked")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (marked / name).write_bytes(b"\xef\xbb\xbf" + (marked / name).read_bytes().replace(b"\n", b"\r\n"))
    assert Source.read(str(marked), 2).fingerprints() == plain.fingerprints()


def test_judgements_whose_ids_are_nowhere_are_told_of(tmp_path: Path) -> None:
    assert Source.read(str(write_beir(tmp_path / "sound", train=QRELS)), 2).doubts == []
    source = write_beir(tmp_path / "beir", train=QRELS, test=QRELS + "q2\tgone\t1\nnobody\tsun\t1\nnobody\tgone\t1\n")
    [warned] = Source.read(str(source), 2).doubts
    assert "3 of 6 judgements of test name ids that the text does not hold, first" in warned
    assert f"{source}/qrels/test.tsv: line 5, column doc_id: 'gone'" in warned
    assert "of train" not in warned


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    in_one_file_each(tmp_path)
    content = (tmp_path / "corpus.parquet").read_bytes()
    (tmp_path / "corpus.parquet").write_bytes(content[:-5])
    with pytest.raises(InputError, match=r"corpus\.parquet: not a readable Parquet file"):
        Source.read(str(tmp_path), 2)
    in_one_file_each(tmp_path)
    (tmp_path / "qrels/test.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"qrels/test\.parquet: not a readable Parquet file"):
        Source.read(str(tmp_path), 2)


def test_what_is_missing_or_there_twice_is_named(tmp_path: Path) -> None:
    source = write_beir(tmp_path / "beir")
    write(source / "corpus/corpus-00000-of-00001.parquet", CORPUS)
    with pytest.raises(InputError, match=r"beir: holds corpus\.jsonl and corpus/\*\.parquet; leave one of them there"):
        Source.read(str(source), 2)
    (source / "corpus.jsonl").unlink()
    (source / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"beir: no queries there; expected queries\.jsonl, queries\.parquet, queries"):
        Source.read(str(source), 2)
    write(source / "queries.parquet", ASKED)
    write(source / "qrels/test-00000-of-00001.parquet", JUDGED)
    with pytest.raises(InputError, match=r"qrels: holds test-\*\.parquet and test\.tsv; leave one of them there"):
        Source.read(str(source), 2)
    with pytest.raises(InputError, match=r"nowhere: there is no such folder"):
        Source.read(str(tmp_path / "nowhere"), 2)
