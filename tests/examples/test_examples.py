"""The examples as a reader runs them: real stores, and the results of exact search of what was published."""

import json
import runpy
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smec_core
from pipelines.storage.publish import promote
from smec_core.config import VectorType
from smec_core.data.versions import in_force
from smec_core.model.model import Model
from tests.builders import write_dataset
from tests.publishing import publish

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS, DIM, FIRST, SHORTLIST, K = 200, 64, 24, 100, 10
STORES = ["faiss", "lancedb", pytest.param("pgvector", marks=pytest.mark.server), "qdrant", "sqlite_vec"]
KEPT = {"lancedb", "qdrant", "sqlite_vec"}
"""Those that are told where to keep what they hold."""
VERSIONS: dict[str, tuple[VectorType, int, str]] = {
    "v0001": ("float32", 32, "corpus"),
    "v0002": ("float32", 48, "corpus"),
    "v0003": ("float16", 48, "numbered"),
    "v0004": ("int8", 48, "corpus"),
    # no whole bytes of signs
    "v0005": ("binary", 60, "numbered"),
}
ROUNDING = {("faiss", "int8"): 0.01, ("pgvector", "float16"): 0.001, ("pgvector", "int8"): 0.001}
"""How far a store's own rounding may move a cosine of the first numbers: eight bits in FAISS, queries as halfvec."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, whose corpus is there with numbers as ids, too, and `out`, where every number type is published."""
    folder = tmp_path_factory.mktemp("examples")
    write_dataset(folder / "data", DOCS, 30, DIM)
    (folder / "data/numbered").mkdir()
    for file in (folder / "data/corpus").iterdir():
        table = pq.read_table(file)
        numbers = pa.array([int(name[1:]) for name in table["id"].to_pylist()])
        pq.write_table(table.set_column(0, "id", numbers), folder / "data/numbered" / file.name)
    dims = [DIM, 60, 48, 32, FIRST]
    Model([], DIM, {"dims": dims, "int8_scales": {str(dim): 0.004 for dim in dims}}, {}).save(folder / "model")
    for dtype, dim, table in VERSIONS.values():
        publish(folder / "out", folder / "model", folder / "data" / table, dim, dtype=dtype)
    return folder


class Search(NamedTuple):
    """One query: the documents that a shortlist may hold, those that it must, and cosines of the whole vectors."""

    possible: set[str | int]
    certain: set[str | int]
    cosines: dict[str | int, float]

    def check(self, found: list[str | int]) -> None:
        """The best of a shortlist, in their order."""
        assert len(found) == len({*found}) == K
        assert {*found} <= self.possible
        cosines = [self.cosines[name] for name in found]
        # stores add up in orders of their own
        assert all(before > after - 1e-6 for before, after in pairwise(cosines))
        assert all(self.cosines[name] < cosines[-1] + 1e-6 for name in self.certain - {*found})


def searches(store: str, folder: Path) -> dict[str, Search]:
    """What a store must find in the version in force, by looking at every document."""
    version, queries = smec_core.published(folder / "out"), pq.read_table(folder / "data/queries.parquet")
    binary = version.dtype == "binary"
    ids, first, docs = version.read("embedding", "rescore" if binary else "embedding")
    signs = np.unpackbits(first, axis=1, count=version.dim) if binary else np.empty(0)
    whole = docs.astype(np.float64)
    found, slack = {}, ROUNDING.get((store, version.dtype), 1e-6)
    q_Qd = version.model.encode(queries["embedding"].to_numpy(), version.dim)
    for name, q_d in zip(queries["id"].to_pylist(), q_Qd, strict=True):
        if binary and store != "qdrant":
            scores = -(signs != (q_d > 0)).sum(axis=1).astype(float)
        else:
            cut = whole[:, :FIRST]
            scores = cut @ q_d[:FIRST] / np.linalg.norm(cut, axis=1) / np.linalg.norm(q_d[:FIRST])
        last = np.sort(scores)[-SHORTLIST]
        cosines = whole @ q_d / np.linalg.norm(whole, axis=1)
        found[name] = Search(
            {*ids[scores >= last - slack].tolist()},
            {*ids[scores > last + slack].tolist()},
            dict(zip(ids.tolist(), cosines.tolist(), strict=True)),
        )
    return found


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    """A store whose database runs, where it has one."""
    if request.param == "pgvector":
        request.getfixturevalue("postgres")
    name: str = request.param
    return name


def test_example_finds_what_exact_search_finds_in_every_version(
    store: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = str(REPOSITORY / f"examples/{store}_search.py")
    place = [str(folder / store)] if store in KEPT else []
    monkeypatch.setattr("sys.argv", [script, str(folder / "out"), str(folder / "data/queries.parquet"), *place])
    # in the end back to the first, which is loaded already
    for name in (*VERSIONS, "v0001"):
        promote(str(folder / "out"), name, in_force(str(folder / "out")))
        capsys.readouterr()
        runpy.run_path(script, run_name="__main__")
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        expected = searches(store, folder)
        assert [line["query"] for line in lines] == list(expected)
        for line in lines:
            expected[line["query"]].check(line["documents"])
    if store == "pgvector":
        check_database(folder)


@pytest.mark.parametrize("dtype", ["float32", "binary"])
def test_few_dims_and_a_column_that_is_called_first(
    store: str,
    dtype: VectorType,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "corpus").mkdir()
    for file in (folder / "data/corpus").iterdir():
        table = pq.read_table(file)
        pq.write_table(table.append_column("first", table["id"]), tmp_path / "corpus" / file.name)
    Model([], DIM, {"dims": [DIM, 12], "int8_scales": {"12": 0.004}}, {}).save(tmp_path / "model")
    publish(tmp_path / "out", tmp_path / "model", tmp_path / "corpus", 12, dtype=dtype)
    script = str(REPOSITORY / f"examples/{store}_search.py")
    place = [str(tmp_path / store)] if store in KEPT else []
    monkeypatch.setattr("sys.argv", [script, str(tmp_path / "out"), str(folder / "data/queries.parquet"), *place])
    runpy.run_path(script, run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 30 and all(len({*line["documents"]}) == K for line in lines)


@pytest.mark.parametrize("store", ["faiss", "lancedb", "pgvector", "qdrant", "sqlite_vec"])
def test_what_was_given_wrongly_is_told_in_one_line(
    store: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(REPOSITORY / f"examples/{store}_search.py")
    place = [str(tmp_path / store)] if store in KEPT else []

    def ended(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
        [line] = str(end.value.code).splitlines()
        return line

    out, queries = str(folder / "out"), str(folder / "data/queries.parquet")
    assert ended() == ended(out, queries, *place, "more")
    assert f"python examples/{store}_search.py compressed DATA/queries.parquet" in ended()
    assert "no version is published there" in ended(str(folder / "data"), queries, *place)
    assert "nowhere" in ended(out, f"{folder}/nowhere", *place)
    assert "magic bytes" in ended(out, f"{folder}/out/CURRENT", *place)
    asked = pq.read_table(queries)
    cut = {"shape (0,)": asked.slice(0, 0), '"embedding"': asked.drop(["embedding"]), '"id"': asked.drop(["id"])}
    for told, table in cut.items():
        pq.write_table(table, folder / "cut.parquet")
        assert told in ended(out, str(folder / "cut.parquet"), *place)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there_is_told_with_what_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(REPOSITORY / "examples/pgvector_search.py")
    monkeypatch.setattr("sys.argv", [script, str(folder / "out"), str(folder / "data/queries.parquet")])
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", "1")
    with pytest.raises(SystemExit, match=r"^no connection to the server that PGHOST, .* name \(.*\)$"):
        runpy.run_path(script, run_name="__main__")


def check_database(folder: Path) -> None:
    """Each version has a table of its own type, and the view's statement goes by the index."""
    with psycopg.connect() as connection:
        found = set()
        for name in VERSIONS:
            key = smec_core.published(folder / "out", version=name).key
            columns = connection.execute(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attnum > 0 AND attrelid = %s::regclass ORDER BY attnum",
                (f"documents_{key}_{FIRST}",),
            ).fetchall()
            found.add((name, *(kind for (kind,) in columns)))
        assert found == {
            ("v0001", "text", "vector(32)", "bit(32)"),
            ("v0002", "text", "vector(48)", "bit(48)"),
            ("v0003", "bigint", "halfvec(48)", "bit(48)"),
            ("v0004", "text", "halfvec(48)", "bit(48)"),
            ("v0005", "bigint", "halfvec(60)", "bit(60)"),
        }
        # a small table would be read whole
        connection.execute("SET enable_seqscan = off")
        order = f"subvector(embedding, 1, {FIRST})::vector({FIRST}) <=> '[{','.join('1' * FIRST)}]'"
        plan = connection.execute(f"EXPLAIN SELECT id FROM documents ORDER BY {order} LIMIT 5".encode())
        assert any("Index Scan using" in line for (line,) in plan)
