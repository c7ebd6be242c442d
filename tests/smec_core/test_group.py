"""Which rows a rank owns."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.group import rows_of_rank


@settings(deadline=None, derandomize=True, max_examples=100)
@given(rows=st.integers(0, 10**9), size=st.integers(1, 64))
def test_ranks_share_all_rows_evenly_and_in_order(rows: int, size: int) -> None:
    ranges = [rows_of_rank(rows, rank, size) for rank in range(size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    counts = [stop - start for start, stop in ranges]
    assert max(counts) - min(counts) <= 1
