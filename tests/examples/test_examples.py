"""The examples as a reader runs them: real stores, and the results of exact search."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psycopg
import pytest

from pipelines.compress import CompressSettings, run
from smec_core.dataset import Dataset
from smec_core.evaluation import read_rows
from smec_core.model import Model, load
from tests.builders import write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS, QUERIES, DIM, FIRST, K = 300, 40, 32, 8, 10
STORES = {"faiss": ["--folder"], "lancedb": ["--database"], "pgvector": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `model`, and `out`, where two versions of its vectors are published, of 16 and of 24 dims."""
    folder = tmp_path_factory.mktemp("examples")
    write_dataset(folder / "data", DOCS, 100, DIM)
    Model([], DIM, {"dims": [DIM, 24, 16, FIRST]}, {}).save(folder / "model")
    return folder


def publish(folder: Path, dim: int) -> None:
    source = str(folder / "data" / "corpus")
    run(CompressSettings(model=str(folder / "model"), input=source, output=str(folder / "out"), dim=dim, workers=1))


def example(store: str, folder: Path, shortlist: int) -> dict[str, list[str]]:
    words = [sys.executable, str(REPOSITORY / "examples" / f"{store}_search.py"), "--compressed", str(folder / "out")]
    words += ["--data", str(folder / "data"), "--model", str(folder / "model"), "--first", str(FIRST), "--k", str(K)]
    words += ["--shortlist", str(shortlist), *STORES[store], *([str(folder / store)] if STORES[store] else [])]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
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
    for dim in (16, 24):
        publish(folder, dim)
        # twice: the second start finds what the first has loaded
        for shortlist in (60, 20):
            assert example(store, folder, shortlist) == exact(folder, dim, shortlist)


@pytest.mark.usefixtures("postgres")
def test_pgvector_keeps_the_old_version_beside_the_new(folder: Path) -> None:
    publish(folder, 16)
    example("pgvector", folder, 20)
    publish(folder, 24)
    example("pgvector", folder, 20)
    with psycopg.connect() as connection:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'documents%'"
        assert len(connection.execute(query).fetchall()) >= 2
        # the planner takes the index for the view's statement
        connection.execute("SET enable_seqscan = off")
        prefix = f"subvector(embedding, 1, {FIRST})::vector({FIRST})"
        vector = "[" + ",".join("1" * FIRST) + "]"
        plan = connection.execute(f"EXPLAIN SELECT id FROM documents ORDER BY {prefix} <=> '{vector}' LIMIT 5")
        assert any("Index Scan using" in line for (line,) in plan)


@pytest.mark.parametrize("store", STORES)
def test_example_refuses_another_model(store: str, folder: Path) -> None:
    publish(folder, 16)
    Model([], DIM, {"dims": [DIM]}, {}).save(folder / "other")
    words = [sys.executable, str(REPOSITORY / "examples" / f"{store}_search.py"), "--compressed", str(folder / "out")]
    words += ["--data", str(folder / "data"), "--model", str(folder / "other")]
    words += [*STORES[store], *([str(folder / store)] if STORES[store] else [])]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "was made by the model" in done.stderr
