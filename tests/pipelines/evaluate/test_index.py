"""`smec evaluate --index`: what a user asks for, reads and is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.cli import app
from pipelines.evaluate.index import search_paths
from pipelines.evaluate.settings import EvaluateSettings
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import write_embeddings
from smec_core.evaluation.evaluate import evaluate
from smec_core.model.model import Model
from smec_core.model.quantize import learn_int8_scales
from tests.builders import all_vectors, write_dataset

DIM = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("index") / "data", docs=400, queries=200, dim=DIM)


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    """Cuts the vectors, nothing else; with int8 scales."""
    made = Model([], DIM, {"dims": [32, 16, 8]}, {})
    made.config["int8_scales"] = learn_int8_scales(made, all_vectors(Dataset.open(str(data)).corpus))
    made.save(data.parent / "model")
    return data.parent / "model"


def smec(data: Path, model: Path, *more: str) -> tuple[int, str, str, dict[str, Any]]:
    out = data.parent / "figures.json"
    out.unlink(missing_ok=True)
    words = ["evaluate", "--data", str(data), "--model", str(model), "--json", str(out), *more]
    result = CliRunner().invoke(app, words)
    figures = json.loads(out.read_text()) if out.exists() else {}
    return result.exit_code, result.stdout, result.stderr, figures


def test_exact_search_scores_as_evaluate_does(data: Path, model: Path) -> None:
    code, printed, _, figures = smec(data, model, "--index", "exact")
    assert code == 0
    plain = smec(data, model)[3]
    for name in ("ndcg@10", "recall@100"):
        found = {str(one["first"]["dim"]): one[name] for one in figures["paths"]}
        assert found == pytest.approx(plain[name], abs=1e-9)
    assert (figures["queries"], figures["corpus"], figures["split"]) == (plain["queries"], 400, "test")
    assert [one["bytes_per_vector"] for one in figures["paths"]] == [128, 64, 32]
    assert all(0 < one["ms_p50"] <= one["ms_p99"] for one in figures["paths"])
    assert f"{figures['paths'][0]['ndcg@10']:.4f}" in printed


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("index", ["exact", "faiss-hnsw", "lance", "pgvector"])
def test_a_funnel_is_shown_beside_what_it_is_made_of(index: str, data: Path, model: Path) -> None:
    code, _, _, figures = smec(data, model, "--index", index, "--funnel", "8:32", "--shortlist", "200")
    assert code == 0
    small, large, funnel = figures["paths"]
    assert (small["path"], large["path"], funnel["path"]) == ("8 float32", "32 float32", "8 float32, 32 float32")
    assert small["ndcg@10"] < funnel["ndcg@10"]
    expected = evaluate(Dataset.open(str(data)), Model([], DIM, {"dims": [32, 8]}, {}), "test")["ndcg@10"]
    assert small["ndcg@10"] == pytest.approx(expected["8"], abs=0.02)
    assert funnel["ndcg@10"] == pytest.approx(expected["32"], abs=0.02)
    assert (funnel["bytes_read"] is not None) == (index == "exact")


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("index", ["exact", "faiss-hnsw", "lance", "pgvector"])
def test_binary_vectors_are_rescored(index: str, data: Path, model: Path) -> None:
    code, _, _, figures = smec(data, model, "--index", index, "--dtype", "binary", "--shortlist", "300")
    assert code == 0
    kind = "float16" if index == "pgvector" else "int8"
    assert [one["path"] for one in figures["paths"]] == [f"{dim} binary, {dim} {kind}" for dim in (32, 16, 8)]
    expected = smec(data, model)[3]["ndcg@10"]
    # a shortlist of most of the corpus leaves only the rounding of int8
    assert figures["paths"][0]["ndcg@10"] == pytest.approx(expected["32"], abs=0.03)


def test_the_query_itself_is_no_result(tmp_path: Path) -> None:
    # each document asks for its nearest other one
    x_ND = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    ids = [f"d{row}" for row in range(len(x_ND))]
    data = write_dataset(tmp_path / "data", docs=60, queries=60, dim=8)
    for file in (data / "corpus").iterdir():
        file.unlink()
    write_embeddings(str(data / "corpus" / "all.parquet"), ids, x_ND)
    write_embeddings(str(data / "queries.parquet"), ids, x_ND)
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    nearest = (unit_ND @ unit_ND.T - 2 * np.eye(len(x_ND))).argmax(1)
    (data / "qrels" / "train.parquet").unlink()
    judged = {"query_id": ids, "doc_id": [ids[row] for row in nearest], "score": [1] * len(ids)}
    pq.write_table(pa.table(judged), data / "qrels" / "test.parquet")
    Model([], 8, {"dims": [8]}, {}).save(tmp_path / "model")
    for more in (["--index", "exact"], ["--index", "lance", "--funnel", "4:8", "--shortlist", "59"]):
        assert smec(data, tmp_path / "model", *more)[3]["paths"][-1]["ndcg@10"] < 0.7
        assert smec(data, tmp_path / "model", *more, "--exclude-self")[3]["paths"][-1]["ndcg@10"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--funnel", "8:32"], "funnel: needs --index, the store to search"),
        (["--dtype", "int8"], "dtype: needs --index"),
        (["--index", "exact", "--funnel", "8-32"], "funnel: must be two dims, as 48:384 (given '8-32' by flag)"),
        (["--index", "exact", "--funnel", "32:8"], "funnel: the first dims must be fewer than the second"),
        (["--index", "exact", "--funnel", "8:64"], "funnel: 64 dims, but the model has 32"),
        (["--index", "exact", "--shortlist", "5"], "shortlist: Input should be greater than or equal to 10"),
        (
            ["--index", "pgvector", "--funnel", "8:32", "--shortlist", "1001"],
            "shortlist: is 1001, but pgvector gives 1000",
        ),
        (["--index", "exact", "--baselines"], "index: goes without --baselines"),
        (["--index", "elsewhere"], "index: Input should be 'exact', 'faiss-hnsw', 'lance' or 'pgvector'"),
        (["--index", "lance", "--dtype", "int8"], "dtype: LanceDB searches no int8 vectors"),
        (["--index", "pgvector", "--dtype", "int8"], "dtype: pgvector has no int8 type"),
        (["--index", "exact", "--split", "dev"], "there is no qrels/dev; splits present: train, test"),
        (["--index", "exact", "--funnel", "10:32", "--dtype", "int8"], "dim is 10, but for int8 vectors"),
    ],
)
def test_what_does_not_fit_is_refused_with_one_line(
    arguments: list[str], message: str, data: Path, model: Path
) -> None:
    code, printed, errors, _ = smec(data, model, *arguments)
    assert (code, printed) == (2, "")
    line = errors.strip().splitlines()[-1]
    assert line.startswith("smec: ")
    assert message in line


def test_an_older_model_without_scales_is_refused_for_int8(data: Path, tmp_path: Path) -> None:
    Model([], DIM, {"dims": [32]}, {}).save(tmp_path / "model")
    code, _, errors, _ = smec(data, tmp_path / "model", "--index", "exact", "--dtype", "int8")
    assert code == 2
    assert "train again" in errors


def test_a_store_that_is_not_installed_is_named_with_its_extra(
    data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.evaluate.indexes.store.find_spec", lambda name: None)
    code, _, errors, _ = smec(data, model, "--index", "pgvector")
    assert code == 1
    assert errors.strip() == (
        "smec: smec evaluate --index pgvector needs psycopg and pgvector: pip install -e '.[stores]' in the clone of "
        "smec, or 'FILE.whl[stores]' of the wheel"
    )


def test_dims_that_a_store_cannot_index_are_left_out_with_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wide = Model([], 2500, {"dims": [2500, 96]}, {})
    settings = EvaluateSettings(data="data", model="model", index="pgvector")
    assert [str(path) for path in search_paths(settings, wide)] == ["96 float32"]
    assert "indexes float32 vectors of 2000 dims at most; 2500 dims are left out" in capsys.readouterr().err
    half = settings.model_copy(update={"dtype": "float16"})
    assert [str(path) for path in search_paths(half, wide)] == ["2500 float16", "96 float16"]
