"""A scan: the same bits from any cuts in any order, and what it keeps."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.data.fingerprint import check_of, hash_ids, keys_of
from smec_core.data.parquet import EmbeddingTable, unit_rows, write_embeddings
from smec_core.data.scan import Keep, Scanned, TableScan, scan_cut, scan_table
from smec_core.errors import SmecError

ROWS, DIM = 300, 5
X_ND = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
IDS = pa.array([f"doc {row}" for row in range(ROWS)])
HASH_N = hash_ids(IDS)


def scan(keep: Keep, edges: list[int], order: list[int]) -> Scanned:
    found = TableScan(keep, DIM)
    cuts = [slice(*pair) for pair in zip([0, *edges], [*edges, ROWS], strict=True)]
    for place in order:
        rows = cuts[place]
        found.add(scan_cut(IDS[rows.start : rows.stop], X_ND[rows], keep))
    return found.finish(HASH_N)


def rows_of(found: Scanned) -> list[int]:
    return [int(name.removeprefix("doc ")) for name in found.id_K.to_pylist()]


@settings(deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([0, 1, 40, ROWS - 1, ROWS, 10 * ROWS]), st.sets(st.integers(0, ROWS - 1), max_size=9))
def test_any_cuts_in_any_order_give_the_same_bits(data: st.DataObject, sample: int, judged: set[int]) -> None:
    keep = Keep(ROWS, sample, np.sort(HASH_N[sorted(judged)]))
    edges = sorted(data.draw(st.sets(st.integers(1, ROWS - 1), max_size=6)))
    order = data.draw(st.permutations(range(len(edges) + 1)))
    whole, found = scan(keep, [], [0]), scan(keep, edges, order)
    assert (found.check, found.drawn) == (whole.check, whole.drawn) == (whole.check, min(sample, ROWS))
    for name in ("mean_D", "moment_DD", "x_KD"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.id_K == whole.id_K
    unit_ND, row_K = unit_rows(X_ND), rows_of(found)
    np.testing.assert_array_equal(found.x_KD, unit_ND[row_K])
    np.testing.assert_allclose(found.moment_DD, unit_ND.T.astype(float) @ unit_ND / ROWS, atol=1e-6)
    np.testing.assert_allclose(found.mean_D, unit_ND.mean(0), atol=1e-6)
    lowest = np.argsort(keys_of(HASH_N))[:sample]
    assert sorted(row_K[: found.drawn]) == sorted(lowest.tolist())
    assert sorted(row_K[found.drawn :]) == sorted(judged - set(lowest.tolist()))
    if sample >= ROWS:
        assert row_K == list(range(ROWS))


def test_a_sample_is_of_any_corner_and_grows_with_its_size() -> None:
    small, large = (set(rows_of(scan(Keep(ROWS, size), [], [0]))) for size in (100, 200))
    assert small < large
    assert 20 < sum(row < 100 for row in small) < 47 and 20 < sum(row >= 200 for row in small) < 47


@pytest.mark.parametrize("dim", [DIM - 1, DIM])
def test_any_change_of_a_number_or_an_id_changes_the_check(dim: int) -> None:
    x_ND = X_ND[:20, :dim].copy()
    seen = {check_of(HASH_N[:20], x_ND), check_of(HASH_N[1:21], x_ND), check_of(HASH_N[:20], x_ND[::-1].copy())}
    for row in range(20):
        for place in range(dim):
            changed_ND = x_ND.copy()
            changed_ND[row, place] = np.nextafter(changed_ND[row, place], np.float32(9))
            seen.add(check_of(HASH_N[:20], changed_ND))
    assert len(seen) == 3 + 20 * dim


def test_rows_that_are_not_those_of_the_ids_are_refused(tmp_path: Path) -> None:
    write_embeddings(str(tmp_path / "corpus.parquet"), IDS, X_ND)
    table = EmbeddingTable.open(str(tmp_path / "corpus.parquet"))
    keep = Keep(ROWS, ROWS)
    assert scan_table(table, keep, HASH_N).drawn == ROWS
    with pytest.raises(SmecError, match="changed while it was read"):
        scan_table(table, keep, HASH_N[::-1][1:])
    twice = HASH_N.copy()
    twice[3] = twice[4]
    with pytest.raises(SmecError, match="changed while it was read"):
        scan_table(table, keep, twice)
    with pytest.raises(SmecError, match="changed while it was read"):
        scan_table(table, keep, hash_ids(pa.array([f"other {row}" for row in range(ROWS)])))
    with pytest.raises(SmecError, match="300 rows were read of a table of 299"):
        scan_table(table, Keep(ROWS - 1, 10))
