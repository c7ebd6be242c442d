"""What `smec check` passes, every job reads; what a job refuses, it refuses in one line, before Ray starts."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from click.testing import CliRunner

from pipelines.cli import app
from smec_core.data.parquet import EmbeddingTable, embedding_column
from smec_core.data.versions import current
from smec_core.model.model import Model
from smec_core.yaml_file import dump
from tests.builders import write_dataset
from tests.conftest import GuardedBucket

DIM = 16


def smec(*arguments: str, code: int = 0) -> str:
    """What a command prints; it must end with this exit code."""
    result = CliRunner().invoke(app, arguments)
    printed = result.stdout + result.stderr
    assert result.exit_code == code, printed
    return printed


def write_odd_dataset(folder: Path) -> Path:
    """A sound dataset in which every table has another form, other types and other names of columns."""
    plain = write_dataset(folder / "plain", docs=200, queries=120, dim=DIM, files=1)
    odd = folder / "odd"
    corpus = pq.read_table(plain / "corpus/part-0.parquet")
    x_ND = np.stack(corpus["embedding"].to_numpy())
    rows = [{"sku": row, "vector": x_ND[row], "title": f"t{row}"} for row in range(len(x_ND))]
    # tensors, as Ray Data writes them
    ray.data.from_items(rows).repartition(2).write_parquet(str(odd / "corpus.parquet"))
    queries = pq.read_table(plain / "queries.parquet")
    (odd / "queries").mkdir()
    ids = queries["id"].combine_chunks().dictionary_encode()
    vectors = pa.array(
        np.stack(queries["embedding"].to_numpy()).astype(np.float64).tolist(), pa.large_list(pa.float64())
    )
    pq.write_table(pa.table({"sku": ids, "vector": vectors}), odd / "queries/0.parquet")
    for split, name in (("train", "train/part-0.parquet"), ("test", "test.tsv")):
        judged = pq.read_table(plain / f"qrels/{split}.parquet").to_pydict()
        docs = [int(doc[1:]) for doc in judged["doc_id"]]
        (odd / "qrels/train").mkdir(parents=True, exist_ok=True)
        if name.endswith(".tsv"):
            lines = zip(judged["query_id"], docs, judged["score"], strict=True)
            text = "\ufeff" + "".join(f'"{query}"\t"{doc}"\t{score:.1f}\r\n' for query, doc, score in lines)
            (odd / "qrels" / name).write_text(text)
        else:
            columns = {
                "query_id": pa.array(judged["query_id"]).cast(pa.string_view()),
                "doc_id": pa.array(docs, pa.int32()),
                "score": pa.array(judged["score"], pa.float64()),
            }
            pq.write_table(pa.table(columns), odd / "qrels" / name)
    return odd


@pytest.mark.ray
def test_what_check_passes_every_job_reads(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    data, model, plain_model = write_odd_dataset(tmp_path), tmp_path / "model", tmp_path / "plain-model"
    names = ["--set", "columns.id=sku", "--set", "columns.embedding=vector"]
    assert "unsupervised" not in smec("check", str(data), *names, "--json", str(tmp_path / "check.json"))
    checked = json.loads((tmp_path / "check.json").read_text())
    assert (checked["corpus"], checked["queries"]) == ({"rows": 200, "files": 2}, {"rows": 120, "files": 1})
    assert checked["splits"]["test"]["unknown"] == 0

    short = ["--dims", "8", "--set", "epochs=1", "--set", "refit=false"]
    smec("train", "--data", str(data), *names, *short, "--out", str(model))
    # the same vectors and judgements, plainly written, give the same model
    smec("train", "--data", str(tmp_path / "plain"), *short, "--out", str(plain_model))
    weights = [(folder / "adapter.safetensors").read_bytes() for folder in (model, plain_model)]
    assert weights[0] == weights[1]

    smec("evaluate", "--data", str(data), "--model", str(model), *names, "--json", str(tmp_path / "odd.json"))
    smec("evaluate", "--data", str(tmp_path / "plain"), "--model", str(model), "--json", str(tmp_path / "plain.json"))
    odd, plain = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("odd", "plain"))
    assert odd["ndcg@10"] == pytest.approx(plain["ndcg@10"])

    out = tmp_path / "out"
    for bad_rows in ("fail", "quarantine"):
        options = ["--dim", "8", "--on-bad-row", bad_rows, *names]
        smec("compress", "--model", str(model), "--input", str(data / "corpus"), "--output", str(out), *options)
        published = EmbeddingTable.open(current(str(out)))
        assert published.schema_of(published.files[0]).names == ["id", "embedding", "title"]
        assert sorted(published.ids().to_pylist(), key=int) == [str(row) for row in range(200)]


@pytest.mark.parametrize("name", ["id", "embedding", "title"])
def test_a_column_that_is_there_twice_is_one_line(tmp_path: Path, name: str) -> None:
    Model([], 4, {"dims": [4]}, {}).save(tmp_path / "model")
    columns = {
        "id": pa.array(["a"]),
        "embedding": embedding_column(np.ones((1, 4), np.float32)),
        "title": pa.array(["x"]),
    }
    table = pa.Table.from_arrays([*columns.values(), columns[name]], [*columns, name])
    pq.write_table(table, tmp_path / "corpus.parquet")
    arguments = ["--input", str(tmp_path / "corpus"), "--output", str(tmp_path / "out"), "--dim", "4"]
    printed = smec("compress", "--model", str(tmp_path / "model"), *arguments, code=2)
    assert printed == f"smec: {tmp_path}/corpus.parquet: column {name} is there twice; rename or remove one\n"


def test_check_says_that_there_are_no_judgements(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", docs=40, queries=40, dim=8)
    assert "unsupervised" not in smec("check", str(data))
    (data / "qrels/train.parquet").unlink()
    assert f"{data}: no judgements in qrels/train (found: test); a training is unsupervised" in smec("check", str(data))


def test_a_uri_is_no_place_for_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(tmp_path / "model")
    Model([], 8, {"dims": [8]}, {}).save(model)
    for command in (
        ["check", model, "--json", "s3://bucket/figures.json"],
        ["sample", "s3://bucket/sample"],
        ["report", model, "--out", "s3://bucket/report.html"],
        ["export", "--model", model, "--to", "numpy", "--out", "s3:/bucket/exported"],
    ):
        assert re.fullmatch(r"smec: (json|out): .*must be a path, not a URI.*\n", smec(*command, code=2))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def commands(tmp_path: Path, where: str) -> dict[str, list[str]]:
    """Each command with one of its places somewhere else."""
    data, model = str(tmp_path / "data"), str(tmp_path / "model")
    train = ["train", "--dims", "4", "--out", str(tmp_path / "new")]
    compress = ["compress", "--dim", "8"]
    sound = ["--model", model, "--input", f"{data}/corpus"]
    return {
        "check": ["check", where],
        "train --data": [*train, "--data", where],
        "train --storage": [*train, "--data", data, "--storage", where],
        "train --from": [*train, "--data", data, "--from", where],
        "train --warm-start": [*train, "--data", data, "--warm-start", where],
        "tune --data": ["tune", "--dims", "4", "--data", where, "--out", str(tmp_path / "tuned")],
        "tune --storage": ["tune", "--dims", "4", "--data", data, "--out", str(tmp_path / "tuned"), "--storage", where],
        "evaluate --data": ["evaluate", "--model", model, "--data", where],
        "evaluate --model": ["evaluate", "--model", where, "--data", data],
        "compress --model": [
            *compress,
            "--input",
            f"{data}/corpus",
            "--output",
            str(tmp_path / "out"),
            "--model",
            where,
        ],
        "compress --input": [*compress, "--model", model, "--output", str(tmp_path / "out"), "--input", where],
        "compress --output": [*compress, *sound, "--output", where],
        "compress --upgrade": [
            *compress,
            "--upgrade",
            "--model",
            model,
            "--output",
            str(tmp_path / "o"),
            "--input",
            where,
        ],
        "export": ["export", "--model", where, "--to", "numpy", "--out", str(tmp_path / "exported")],
        "ingest TEXT": ["ingest", where, str(tmp_path / "made"), "--encoder", "none"],
        "ingest DATA": ["ingest", data, where, "--encoder", "none"],
        "experiment": ["experiment", "compare", "--dims", "4", "--data", where, "--out", str(tmp_path / "results")],
        "retrain": ["retrain", "--config", str(tmp_path / "retrain.yaml"), "--set", f"storage='{where}'"],
    }


@pytest.mark.parametrize("command", commands(Path(), ""))
def test_a_place_that_is_closed_or_cannot_be_is_one_line(
    guarded_s3: GuardedBucket, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", refuse)
    write_dataset(tmp_path / "data", docs=40, queries=40, dim=8)
    Model([], 8, {"dims": [8]}, {}).save(tmp_path / "model")
    places = {"data": str(tmp_path / "data"), "publish": {"output": "out", "dim": 4}}
    (tmp_path / "retrain.yaml").write_text(dump({"name": "series", "train": {"dims": 4}, **places}))
    closed = guarded_s3.uri("closed/place")
    for where in (closed, "nowhere://a/b", "s3://bucket/a?nonsense=1", "s3:/bucket/a", "hdfs://h/a", "s3://b/a//b"):
        printed = smec(*commands(tmp_path, where)[command], code=2)
        assert len(printed.splitlines()) == 1, printed
        assert printed.startswith("smec: ")
        assert "unexpected" not in printed
        assert guarded_s3.secret not in printed
