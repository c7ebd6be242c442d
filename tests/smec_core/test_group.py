"""Which rows a rank owns."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.group import Group, rows_of_rank
from smec_core.resident import ResidentRows


@settings(deadline=None, derandomize=True, max_examples=100)
@given(rows=st.integers(0, 10**9), size=st.integers(1, 64))
def test_ranks_share_all_rows_evenly_and_in_order(rows: int, size: int) -> None:
    ranges = [rows_of_rank(rows, rank, size) for rank in range(size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    counts = [stop - start for start, stop in ranges]
    assert max(counts) - min(counts) <= 1


def test_a_rank_must_hold_the_rows_it_owns() -> None:
    with pytest.raises(ValueError, match="rank 0 holds 3 rows, but owns 4 of 4"):
        ResidentRows(torch.zeros(3, 2), 4, Group())
