"""Where tables lie: every form that is read, and every other that is refused by name instead of being passed over."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.ingest.job import Source
from smec_core.data.dataset import Dataset, dataset_stamp
from smec_core.data.parquet import EmbeddingTable, write_embeddings
from smec_core.errors import InputError, SmecError, StoreError
from tests.builders import write_beir

DOCS, QUERIES, DIM = 30, 24, 4


def write_rows(path: Path, prefix: str, start: int, stop: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors_ND = np.random.default_rng(start).standard_normal((stop - start, DIM)).astype(np.float32)
    write_embeddings(str(path), [f"{prefix}{row}" for row in range(start, stop)], vectors_ND)


def write_judgements(path: Path, start: int = 0, stop: int = QUERIES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"q{row}", f"d{row}", 1) for row in range(start, stop)]
    if path.suffix == ".tsv":
        path.write_text("".join(f"{query}\t{doc}\t{score}\n" for query, doc, score in rows))
    else:
        query_id, doc_id, score = zip(*rows, strict=True)
        pq.write_table(pa.table({"query_id": query_id, "doc_id": doc_id, "score": score}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound dataset: the corpus in a folder, one train judgement a query."""
    root = tmp_path / "data"
    write_rows(root / "corpus/a.parquet", "d", 0, DOCS)
    write_rows(root / "queries.parquet", "q", 0, QUERIES)
    write_judgements(root / "qrels/train.parquet")
    return root


def corpus_as_spark_writes(root: Path) -> None:
    shutil.rmtree(root / "corpus")
    write_rows(root / "corpus.parquet/part-00000-1f.snappy.parquet", "d", 0, 20)
    write_rows(root / "corpus.parquet/part-00001-1f.snappy.parquet", "d", 20, DOCS)
    (root / "corpus.parquet/_SUCCESS").touch()
    (root / "corpus.parquet/.part-00000-1f.snappy.parquet.crc").write_bytes(b"crc")


def qrels_in_a_folder(root: Path) -> None:
    (root / "qrels/train.parquet").unlink()
    write_judgements(root / "qrels/train/part-0.parquet", 0, 10)
    write_judgements(root / "qrels/train/part-1.parquet", 10, QUERIES)


def qrels_in_a_folder_with_an_ending(root: Path) -> None:
    (root / "qrels/train.parquet").unlink()
    write_judgements(root / "qrels/train.parquet/part-0.parquet")


def qrels_in_shards(root: Path) -> None:
    (root / "qrels/train.parquet").unlink()
    write_judgements(root / "qrels/train-00000-of-00002.parquet", 0, 10)
    write_judgements(root / "qrels/train-00001-of-00002-0123456789abcdef.parquet", 10, QUERIES)


def qrels_as_text(root: Path) -> None:
    (root / "qrels/train.parquet").unlink()
    write_judgements(root / "qrels/train.tsv")


def notes_and_hidden_files_beside(root: Path) -> None:
    (root / "README.md").write_text("notes")
    (root / "corpus.jsonl").write_text('{"_id": "d0", "text": "the text that was embedded"}\n')
    (root / "corpus/LICENSE").write_text("linear")
    (root / "corpus/checksums.txt").write_text("0 a.parquet")
    (root / "qrels/about.md").write_text("who judged")
    write_rows(root / "corpus/_old/a.parquet", "d", 0, 3)
    write_rows(root / "corpus/.trash/a.parquet", "d", 0, 3)
    write_rows(root / "archive/corpus.parquet", "d", 0, 3)
    write_rows(root / "corpus/lost+found/a.parquet", "d", 0, 3)
    (root / "corpus/logs").mkdir()
    (root / "corpus/logs/run.txt").write_text("copied in 3 s")


@pytest.mark.parametrize(
    "layout",
    [
        lambda root: None,
        corpus_as_spark_writes,
        qrels_in_a_folder,
        qrels_in_a_folder_with_an_ending,
        qrels_in_shards,
        qrels_as_text,
        notes_and_hidden_files_beside,
    ],
)
def test_every_form_is_read_whole(folder: Path, layout: Callable[[Path], None]) -> None:
    layout(folder)
    dataset = Dataset.open(str(folder))
    assert (dataset.corpus.rows, dataset.queries.rows) == (DOCS, QUERIES)
    train = dataset.splits["train"]
    assert (train.query_row_Q.tolist(), train.doc_row_J.tolist()) == ([*range(QUERIES)], [*range(QUERIES)])
    assert dataset.unsupervised is None
    assert len(dataset.fingerprint) == 16


def test_validation_is_dev(folder: Path) -> None:
    write_judgements(folder / "qrels/validation-00000-of-00001.parquet", 0, 5)
    assert {name: len(judged) for name, judged in Dataset.open(str(folder)).splits.items()} == {"train": 24, "dev": 5}


def test_a_training_without_judgements_is_said_to_be_one(folder: Path) -> None:
    (folder / "qrels/train.parquet").rename(folder / "qrels/test.parquet")
    assert Dataset.open(str(folder)).unsupervised == (
        f"{folder}: no judgements in qrels/train (found: test); a training is unsupervised"
    )
    shutil.rmtree(folder / "qrels")
    assert "(found: no split at all)" in (Dataset.open(str(folder)).unsupervised or "")


def as_link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_rows(path: Path) -> None:
    write_rows(path, "e", 0, 3)


def as_text(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("q0\td0\t1\n")


UNREAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "corpus/sub/b.parquet": (as_rows, r"corpus/sub/b\.parquet: lies in a subfolder, and subfolders are not read"),
    "corpus/lang=en/b.parquet": (as_rows, r"corpus/lang=en/b\.parquet: lies in a subfolder"),
    "corpus/a/b/c.parquet": (as_rows, r"corpus/a/b/c\.parquet: lies in a subfolder"),
    "queries.parquet/lang=en/b.parquet": (as_rows, r"lies in a subfolder"),
    "corpus.parquet": (as_rows, r"data: holds corpus/\*\.parquet and corpus\.parquet; leave one of them there"),
    "corpus.parquet/part-0.parquet": (as_rows, r"holds corpus/\*\.parquet and corpus\.parquet/\*\.parquet; leave one"),
    "queries/a.parquet": (as_rows, r"holds queries/\*\.parquet and queries\.parquet; leave one of them there"),
    "Corpus/a.parquet": (as_rows, r"data/Corpus: would not be read; name it corpus\.parquet or corpus/\*\.parquet"),
    "corpus-00000-of-00002.parquet": (as_rows, r"corpus-00000-of-00002\.parquet: would not be read; name it corpus"),
    "Queries.parquet": (as_rows, r"Queries\.parquet: would not be read; name it queries\.parquet or"),
    "qrels.tsv": (as_text, r"qrels\.tsv: would not be read; name it qrels/train\.parquet"),
    "corpus/b.PARQUET": (as_rows, r"corpus/b\.PARQUET: would not be read; give it a name that ends in \.parquet"),
    "corpus/b.parq": (as_rows, r"corpus/b\.parq: would not be read"),
    "corpus/part-r-00000": (as_rows, r"corpus/part-r-00000: would not be read"),
    "corpus/b.csv": (as_text, r"corpus/b\.csv: would not be read"),
    "corpus/b.parquet.gz": (as_text, r"corpus/b\.parquet\.gz: would not be read"),
    "corpus/b.parquet": (as_link("nowhere.parquet"), r"corpus/b\.parquet: is a broken link; fix or remove it"),
    "corpus/here": (as_link("."), r"corpus/here/a\.parquet: lies in a subfolder"),
    "corpus/pipe.parquet": (as_pipe, r"corpus/pipe\.parquet: would not be read"),
    "qrels/Train.parquet": (as_rows, r"qrels/Train\.parquet: fits no split; did you mean train\.parquet\?"),
    "qrels/training.parquet": (as_rows, r"qrels/training\.parquet: fits no split; did you mean train\.parquet\?"),
    "qrels/clicks.parquet": (as_rows, r"qrels/clicks\.parquet: fits no split; name it train, dev \(or validation\)"),
    "qrels/train-old.parquet": (as_rows, r"qrels/train-old\.parquet: fits no split"),
    "qrels/test.csv": (as_text, r"qrels/test\.csv: fits no split"),
    "qrels/train.txt": (
        as_text,
        r"qrels/train\.txt: fits no split; write it as Parquet, train\.parquet, or .* train\.tsv",
    ),
    "qrels/dev.csv": (
        as_text,
        r"qrels/dev\.csv: fits no split; write it as Parquet, dev\.parquet, or separated by tabs",
    ),
    "qrels/train.pq": (as_rows, r"qrels/train\.pq: fits no split; did you mean train\.parquet\?"),
    "qrels/run.trec": (as_text, r"qrels/run\.trec: fits no split; write it as Parquet, train\.parquet, or"),
    "qrels_train.parquet": (as_rows, r"qrels_train\.parquet: would not be read; name it qrels/train\.parquet"),
    "qrels-test.tsv": (as_text, r"qrels-test\.tsv: would not be read; name it qrels/train\.parquet"),
    "qrels/2026/test.parquet": (as_rows, r"qrels/2026/test\.parquet: lies in a subfolder"),
    "qrels/train/part-0.parquet": (as_rows, r"qrels: holds train/\*\.parquet and train\.parquet; leave one of them"),
    "qrels/train.tsv": (
        as_text,
        r"qrels: holds train\.parquet and train\.tsv; leave one of them there, to be the train",
    ),
    "qrels/train-00000-of-00001.parquet": (as_rows, r"qrels: holds train-\*\.parquet and train\.parquet; leave one"),
    "qrels/train": (Path.mkdir, r"qrels/train: holds no Parquet file; add the judgements, or remove the folder"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_would_be_passed_over_is_refused_by_name(folder: Path, name: str) -> None:
    write, message = UNREAD[name]
    if name.startswith("queries.parquet/"):
        (folder / "queries.parquet").rename(folder / "q.parquet")
        write_rows(folder / "queries.parquet/a.parquet", "q", 0, QUERIES)
    write(folder / name)
    with pytest.raises(InputError, match=message):
        Dataset.open(str(folder))


@pytest.mark.parametrize("name", ["queries.parquet", "queries.lance", "queries"])
def test_a_folder_without_files_is_not_told_as_missing(folder: Path, name: str) -> None:
    (folder / "queries.parquet").unlink()
    (folder / name).mkdir()
    with pytest.raises(InputError, match=rf"data/{name}: no Parquet file there; expected .*queries\.parquet or"):
        Dataset.open(str(folder))


def test_two_forms_of_dev_are_refused(folder: Path) -> None:
    write_judgements(folder / "qrels/dev.parquet", 0, 5)
    write_judgements(folder / "qrels/validation.tsv", 0, 5)
    with pytest.raises(InputError, match=r"qrels: holds dev\.parquet and validation\.tsv; leave one of them there"):
        Dataset.open(str(folder))


@pytest.mark.parametrize("left_out", ["qrels", "queries.parquet"])
@pytest.mark.parametrize("corpus", ["corpus", "corpus.parquet"])
def test_a_dataset_given_for_one_of_its_tables_is_refused(folder: Path, corpus: str, left_out: str) -> None:
    if corpus != "corpus":
        (folder / "corpus/a.parquet").rename(folder / corpus)
        shutil.rmtree(folder / "corpus")
    shutil.move(folder / left_out, folder.parent / "elsewhere")
    with pytest.raises(InputError, match=r"data: is a dataset, and one table of it is wanted; give .*data/corpus$"):
        EmbeddingTable.open(str(folder))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("corpus/a.parquet", r"a\.parquet: is a file; give the folder that holds corpus, queries and qrels"),
        ("corpus/a.parquet/x", r"a\.parquet/x: there is no such folder; give the folder that holds corpus"),
        ("corpus", r"data/corpus: is the corpus of a dataset; give the folder that holds .*: .*data$"),
        ("qrels", r"data/qrels: is the qrels of a dataset; give the folder that holds .*: .*data$"),
        ("nowhere", r"nowhere: there is no such folder; give the folder that holds corpus"),
    ],
)
def test_what_is_no_folder_is_no_dataset(folder: Path, place: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset.open(str(folder / place))


@pytest.mark.parametrize(
    "name", ["qrels/train/part-1.parquet", "qrels/test-00000-of-00001.parquet", "corpus/b.parquet"]
)
def test_a_file_more_is_another_stamp_and_another_fingerprint(folder: Path, name: str) -> None:
    qrels_in_a_folder(folder)
    before = dataset_stamp(str(folder)), Dataset.open(str(folder)).fingerprint
    if name.startswith("qrels"):
        write_judgements(folder / name, 1, 9)
    else:
        write_rows(folder / name, "e", 0, 3)
    after = dataset_stamp(str(folder)), Dataset.open(str(folder)).fingerprint
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qrels/Test.tsv", r"qrels/Test\.tsv: fits no split; did you mean test\.tsv\?"),
        ("qrels/sub/test.tsv", r"qrels/sub/test\.tsv: lies in a subfolder"),
        ("Corpus.jsonl", r"Corpus\.jsonl: would not be read; name it corpus\.parquet"),
        ("queries-0.jsonl", r"queries-0\.jsonl: would not be read; name it queries\.parquet"),
        ("corpus/more.jsonl", r"corpus/more\.jsonl: would not be read"),
    ],
)
def test_the_same_holds_for_text(tmp_path: Path, name: str, message: str) -> None:
    source = write_beir(tmp_path / "beir")
    assert Source.read(str(source), 10).rows == 6
    as_text(source / name)
    with pytest.raises(InputError, match=message):
        Source.read(str(source), 10)


def test_text_is_read_from_folders_with_an_ending_and_judgements_from_shards(tmp_path: Path) -> None:
    plain = Source.read(str(write_beir(tmp_path / "plain")), 10)
    source = write_beir(tmp_path / "beir")
    judged = plain.qrels["test"]
    (source / "qrels/test.tsv").unlink()
    for number in range(len(judged)):
        pq.write_table(judged.slice(number, 1), source / f"qrels/test-0000{number}-of-00003.parquet")
    (source / "corpus.jsonl").unlink()
    documents = list(plain.texts["corpus"].read())
    rows = {"_id": [one.id for one in documents], "text": [one.text for one in documents]}
    (source / "corpus.parquet").mkdir()
    pq.write_table(pa.table(rows), source / "corpus.parquet/part-0.parquet")
    assert Source.read(str(source), 10).fingerprints() == plain.fingerprints()


def test_a_file_that_changed_with_the_same_size_and_time_is_another_stamp(folder: Path) -> None:
    dataset, path = Dataset.open(str(folder)), next((folder / "corpus").glob("*.parquet"))
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    with pytest.raises(SmecError, match="changed while it was used; nothing of it is kept, run again"):
        dataset.check_unchanged()


def test_a_store_that_refuses_at_the_end_is_not_taken_for_a_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str) -> str:
        raise StoreError(f"{uri}: access denied")

    opened = Dataset.open(str(folder))
    monkeypatch.setattr("smec_core.data.dataset.dataset_stamp", refuse)
    with pytest.raises(StoreError, match="access denied"):
        opened.check_unchanged()
