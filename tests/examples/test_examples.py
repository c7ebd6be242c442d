"""The examples as a reader runs them: real stores, and the results of exact search."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psycopg
import pytest
import torch
from psycopg import sql

from pipelines.compress.job import run
from pipelines.compress.settings import CompressSettings
from smec_core.data.dataset import Dataset
from smec_core.evaluation.corpus_search import read_rows
from smec_core.model.adapter import FrozenStage
from smec_core.model.files import load
from smec_core.model.model import Model
from tests.builders import write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS, DIM, FIRST, K = 300, 32, 8, 10
STORES = {"faiss": ["--folder"], "lancedb": ["--database"], "pgvector": []}


VERSIONS = {"v0001": 16, "v0002": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `model`, and `out`, where the model's vectors are published at each of the dims of VERSIONS."""
    folder = tmp_path_factory.mktemp("examples")
    write_dataset(folder / "data", DOCS, 100, DIM)
    Model([], DIM, {"dims": [DIM, 24, 16, FIRST]}, {}).save(folder / "model")
    source = str(folder / "data" / "corpus")
    for dim in VERSIONS.values():
        run(CompressSettings(model=str(folder / "model"), input=source, output=str(folder / "out"), dim=dim, workers=1))
    return folder


def promote(folder: Path, version: str) -> int:
    """Returns the version's dims."""
    (folder / "out" / "CURRENT").write_text(f"{version}\n")
    return VERSIONS[version]


def example(store: str, folder: Path, model: str, *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(REPOSITORY / "examples" / f"{store}_search.py"), "--compressed", str(folder / "out")]
    words += ["--data", str(folder / "data"), "--model", str(folder / model), "--first", str(FIRST), *more]
    words += [*STORES[store], *([str(folder / store)] if STORES[store] else [])]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


def results(store: str, folder: Path, shortlist: int) -> dict[str, list[str]]:
    done = example(store, folder, "model", "--shortlist", str(shortlist), "--k", str(K))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["query"]: line["documents"] for line in lines}


def exact(folder: Path, dim: int, shortlist: int) -> dict[str, list[str]]:
    """A funnel by looking at every document."""
    dataset, model = Dataset.open(str(folder / "data")), load(folder / "model")
    docs_ND, q_QD = (read_rows(table, np.arange(table.rows)).numpy() for table in (dataset.corpus, dataset.queries))
    doc_ids, query_ids = dataset.corpus.ids().to_pylist(), dataset.queries.ids().to_pylist()
    found = {}
    for query, name in enumerate(query_ids):

        def order(rows: np.ndarray, kept: int, query: int = query) -> np.ndarray:
            cosine = model.encode(docs_ND[rows], kept) @ model.encode(q_QD[query : query + 1], kept)[0]
            ordered: np.ndarray = rows[np.argsort(-cosine)]
            return ordered

        shortlist_S = order(np.arange(len(doc_ids)), FIRST)[:shortlist]
        found[name] = [doc_ids[row] for row in order(shortlist_S, dim)[:K]]
    return found


@pytest.mark.parametrize("store", STORES)
@pytest.mark.usefixtures("postgres")
def test_example_gives_the_results_of_exact_search_and_follows_a_new_version(store: str, folder: Path) -> None:
    # the second start finds what the first has loaded
    for version, shortlist in (("v0001", 60), ("v0001", 20), ("v0002", 20)):
        dim = promote(folder, version)
        assert results(store, folder, shortlist) == exact(folder, dim, shortlist)
    if store == "pgvector":
        check_database()


def check_database() -> None:
    """The old version's table is still there, and the view's statement goes by the index."""
    with psycopg.connect() as connection:
        for version, dim in VERSIONS.items():
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE tablename LIKE %s", (f"documents_{version}_%_{FIRST}",)
            ).fetchall()
            assert len(tables) == 1
            statement = sql.SQL("SELECT count(*), max(vector_dims(embedding)) FROM {}")
            found = connection.execute(statement.format(sql.Identifier(*tables[0]))).fetchone()
            assert found == (DOCS, dim)
        # a small table would be read whole
        connection.execute("SET enable_seqscan = off")
        order = f"subvector(embedding, 1, {FIRST})::vector({FIRST}) <=> '[{','.join('1' * FIRST)}]'"
        plan = connection.execute(f"EXPLAIN SELECT id FROM documents ORDER BY {order} LIMIT 5")
        assert any("Index Scan using" in line for (line,) in plan)


@pytest.mark.parametrize("store", STORES)
def test_example_refuses_another_model(store: str, folder: Path) -> None:
    turned = FrozenStage(DIM, "rotation", {"weight": torch.eye(DIM).flip(0), "logits": torch.zeros(DIM)})
    Model([turned], DIM, {"dims": [DIM]}, {}).save(folder / "other")
    done = example(store, folder, "other")
    assert done.returncode == 1
    assert "was made by the model" in done.stderr
