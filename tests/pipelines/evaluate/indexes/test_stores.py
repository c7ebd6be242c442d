"""Every store, the real one, gives what looking at all vectors gives, in the bytes that it says."""

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

from pipelines.evaluate.indexes import lance
from pipelines.evaluate.indexes.store import STORES, Build, Form, NestedVectors, SearchPath, open_store
from pipelines.evaluate.settings import StoreName
from smec_core.config import VectorType
from smec_core.errors import InputError, SmecError

ROWS, QUERIES, DIM, K = 600, 20, 64, 20
SCALE = 0.004
STORE_NAMES: tuple[StoreName, ...] = tuple(STORES)


def nested(rows: int, seed: int) -> np.ndarray:
    """Vectors whose first numbers say most."""
    numbers_ND = np.random.default_rng(seed).standard_normal((rows, DIM)) * np.linspace(1.5, 0.5, DIM)
    return numbers_ND.astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> NestedVectors:
    return NestedVectors(nested(ROWS, seed=0), lambda dim: SCALE * (DIM / dim) ** 0.5)


@pytest.fixture(scope="module")
def q_QD() -> np.ndarray:
    return nested(QUERIES, seed=1)


@pytest.fixture(params=STORE_NAMES)
def name(request: pytest.FixtureRequest) -> Iterator[StoreName]:
    if request.param == "pgvector":
        request.getfixturevalue("postgres")
    yield request.param


def nearest(q_QD: np.ndarray, z_ND: np.ndarray, dim: int, k: int = K) -> np.ndarray:
    """Cosine, one pair at a time."""
    q_Qd, z_Nd = q_QD[:, :dim].astype(np.float64), z_ND[:, :dim].astype(np.float64)
    cosine_QN = np.array([[q @ z / np.sqrt((q @ q) * (z @ z)) for z in z_Nd] for q in q_Qd])
    return np.argsort(-cosine_QN, axis=1)[:, :k]


def overlap(found_Qk: np.ndarray, expected_Qk: np.ndarray) -> float:
    shared = [len(np.intersect1d(*pair)) for pair in zip(found_Qk, expected_Qk, strict=True)]
    return float(np.sum(shared)) / expected_Qk.size


def search(build: Build, path: SearchPath, vectors: NestedVectors, q_QD: np.ndarray, k: int = K) -> np.ndarray:
    with build(path, vectors, 1) as index:
        return index.search(q_QD, k)


@pytest.mark.parametrize("dim", [64, 20])
def test_float32_search_finds_the_nearest(name: StoreName, dim: int, vectors: NestedVectors, q_QD: np.ndarray) -> None:
    found_Qk = search(open_store(name, "float32"), SearchPath(Form(dim, "float32")), vectors, q_QD)
    expected_Qk = nearest(q_QD, vectors.z_ND, dim)
    assert found_Qk.shape == (QUERIES, K)
    if name in ("exact", "lance"):
        np.testing.assert_array_equal(found_Qk, expected_Qk)
    assert overlap(found_Qk, expected_Qk) >= 0.99
    np.testing.assert_array_equal(found_Qk[:, 0], expected_Qk[:, 0])


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.97), ("int8", 0.9)])
@pytest.mark.parametrize("dim", [64, 48, 20])
def test_smaller_numbers_find_nearly_the_same(
    name: StoreName, dtype: VectorType, least: float, dim: int, vectors: NestedVectors, q_QD: np.ndarray
) -> None:
    if dtype in STORES[name].refused:
        with pytest.raises(InputError, match=f"dtype: .* {dtype}"):
            open_store(name, dtype)
        return
    found_Qk = search(open_store(name, dtype), SearchPath(Form(dim, dtype)), vectors, q_QD)
    assert overlap(found_Qk, nearest(q_QD, vectors.z_ND, dim)) >= least


@pytest.mark.parametrize("dim", [64, 20])
def test_signs_alone_find_less_and_rescoring_mends_it(
    name: StoreName, dim: int, vectors: NestedVectors, q_QD: np.ndarray
) -> None:
    build, expected_Qk = open_store(name, "binary"), nearest(q_QD, vectors.z_ND, dim)
    signs = Form(dim, "binary")
    alone = overlap(search(build, SearchPath(signs), vectors, q_QD), expected_Qk)
    rescored = search(build, SearchPath(signs, Form(dim, STORES[name].rescoring), ROWS), vectors, q_QD)
    # by chance it were K / ROWS
    assert 0.2 < alone < 0.9
    # the shortlist is everything, or what of it the graph reaches
    assert overlap(rescored, expected_Qk) >= 0.93


@pytest.mark.parametrize("dtype", ["float32", "float16", "binary"])
def test_a_funnel_whose_shortlist_is_everything_is_the_exact_search(
    name: StoreName, dtype: VectorType, vectors: NestedVectors, q_QD: np.ndarray
) -> None:
    path = SearchPath(Form(16, dtype), Form(64, "float32"), ROWS)
    found_Qk = search(open_store(name, dtype), path, vectors, q_QD)
    # an HNSW graph may not reach every row
    assert overlap(found_Qk, nearest(q_QD, vectors.z_ND, 64)) >= (1 if name in ("exact", "lance") else 0.98)


def test_the_second_pass_orders_what_the_first_has_found(
    name: StoreName, vectors: NestedVectors, q_QD: np.ndarray
) -> None:
    path = SearchPath(Form(16, "float32"), Form(64, "float32"), 30)
    found_Qk = search(open_store(name, "float32"), path, vectors, q_QD, 30)
    first_Qk = nearest(q_QD, vectors.z_ND, 16, 30)
    assert overlap(found_Qk, first_Qk) >= 0.99
    rank = {
        (q, row): rank for q, rows in enumerate(nearest(q_QD, vectors.z_ND, 64, ROWS)) for rank, row in enumerate(rows)
    }
    for query, rows in enumerate(found_Qk):
        ranks = [rank[query, row] for row in rows]
        assert ranks == sorted(ranks)


def test_fewer_documents_than_asked_for_leave_the_rest_empty(name: StoreName, vectors: NestedVectors) -> None:
    few = NestedVectors(vectors.z_ND[:5], vectors.int8_scale)
    path = SearchPath(Form(16, "float32"), Form(64, "float32"), 100)
    for one in (path, SearchPath(Form(16, "float32"))):
        found_Qk = search(open_store(name, "float32"), one, few, vectors.z_ND[:1], 10)
        assert sorted(found_Qk[0]) == [-1] * 5 + [0, 1, 2, 3, 4]
        assert found_Qk[0, 0] == 0


FUNNEL = SearchPath(Form(16, "float32"), Form(64, "float32"))
RESCORED = {name: SearchPath(Form(64, "binary"), Form(64, STORES[name].rescoring)) for name in STORES}


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("exact", SearchPath(Form(64, "int8")), 64),
        # the prefix is part of the vector; its norm is not
        ("exact", FUNNEL, 4 * 64 + 4),
        ("exact", RESCORED["exact"], 8 + 64),
        ("faiss-hnsw", FUNNEL, 4 * 16 + 4 * 64),
        ("lance", FUNNEL, 4 * 16 + 4 * 64),
        ("lance", RESCORED["lance"], 8 + 64),
        # the table's and the index's
        ("pgvector", SearchPath(Form(64, "float16")), 2 * 64 + 2 * 64),
        ("pgvector", FUNNEL, 4 * 64 + 4 * 16),
        ("pgvector", RESCORED["pgvector"], 2 * 64 + 8),
    ],
    indirect=["name"],
)
def test_bytes_count_all_that_the_search_needs(
    name: StoreName, path: SearchPath, expected: int, vectors: NestedVectors
) -> None:
    with open_store(name, path.first.dtype)(path, vectors, 1) as index:
        assert index.bytes_per_vector == expected
        assert index.index_bytes >= expected * ROWS


def test_cost_of_exact_search(vectors: NestedVectors) -> None:
    build = open_store("exact", "float32")
    with build(SearchPath(Form(64, "float32")), vectors, 1) as index:
        assert index.cost == (ROWS * 64 * 4, ROWS * 64)
    with build(RESCORED["exact"], vectors, 1) as index:
        assert index.cost == (ROWS * 8 + 100 * 64, ROWS * 64 + 100 * 64)
    with build(FUNNEL, vectors, 1) as index:
        assert index.cost == (ROWS * (16 * 4 + 4) + 100 * 64 * 4, ROWS * 16 + 100 * 64)


@pytest.mark.parametrize("dtype", ["float32", "float16", "binary"])
def test_lance_with_an_index_finds_nearly_the_same(
    dtype: VectorType, vectors: NestedVectors, q_QD: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = SearchPath(Form(64, dtype))
    scanned = search(open_store("lance", dtype), path, vectors, q_QD)
    monkeypatch.setattr(lance, "SCAN_ROWS", ROWS - 1)
    with open_store("lance", dtype)(path, vectors, 1) as index:
        assert index.bytes_per_vector == 2 * path.first.nbytes
        # equal Hamming distances come in any order
        assert overlap(index.search(q_QD, K), scanned) >= (0.7 if dtype == "binary" else 0.9)


def test_faiss_builds_the_same_graph_every_time(vectors: NestedVectors, q_QD: np.ndarray) -> None:
    build, path = open_store("faiss-hnsw", "int8"), SearchPath(Form(32, "int8"))
    first_Qk, second_Qk = (search(build, path, vectors, q_QD) for _ in range(2))
    np.testing.assert_array_equal(first_Qk, second_Qk)


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("fails", [False, True])
def test_pgvector_leaves_nothing_behind(fails: bool, vectors: NestedVectors) -> None:
    def schemas() -> list[str]:
        with psycopg.connect() as connection:
            return [name for (name,) in connection.execute("SELECT nspname FROM pg_namespace ORDER BY 1")]

    before = schemas()
    try:
        with open_store("pgvector", "float32")(SearchPath(Form(16, "float32")), vectors, 1):
            assert len(schemas()) == len(before) + 1
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert schemas() == before


@pytest.mark.usefixtures("postgres")
def test_pgvector_asks_for_the_extension(vectors: NestedVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATABASE", "plain")
    with (
        pytest.raises(SmecError, match=r"no extension vector 0\.7 or newer; run CREATE EXTENSION vector"),
        open_store("pgvector", "float32")(SearchPath(Form(16, "float32")), vectors, 1),
    ):
        pass


@pytest.mark.usefixtures("postgres")
def test_a_server_that_refuses_at_once_is_one_line(vectors: NestedVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    asked = "FUNCTION pg_catalog.to_regtype(text)"
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("CREATE ROLE weak")
        connection.execute(f"REVOKE EXECUTE ON {asked} FROM public")
        monkeypatch.setenv("PGOPTIONS", "-c role=weak")
        try:
            with (
                pytest.raises(SmecError, match="pgvector: permission denied for function to_regtype"),
                open_store("pgvector", "float32")(SearchPath(Form(16, "float32")), vectors, 1),
            ):
                pass
        finally:
            connection.execute(f"GRANT EXECUTE ON {asked} TO public")
            connection.execute("DROP ROLE weak")


def test_a_server_that_is_not_there_is_said_without_secrets(
    vectors: NestedVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"PGHOST": "127.0.0.1", "PGPORT": "9", "PGUSER": "me", "PGPASSWORD": "hunter2"}.items():
        monkeypatch.setenv(variable, value)
    with (
        pytest.raises(SmecError, match="pgvector: no connection to the server that PGHOST") as caught,
        open_store("pgvector", "float32")(SearchPath(Form(16, "float32")), vectors, 1),
    ):
        pass
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
