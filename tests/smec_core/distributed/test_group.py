"""Which rows a rank owns, and what ranks tell each other."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.distributed.group import SMALL_BYTES, Group, rows_of_rank
from tests.smec_core.ranks import MOST, Ranks


@settings(deadline=None, derandomize=True, max_examples=100)
@given(rows=st.integers(0, 10**9), size=st.integers(1, 64))
def test_ranks_share_all_rows_evenly_and_in_order(rows: int, size: int) -> None:
    ranges = [rows_of_rank(rows, rank, size) for rank in range(size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    counts = [stop - start for start, stop in ranges]
    assert max(counts) - min(counts) <= 1


def numbers(rows: int, dim: int, seed: int) -> torch.Tensor:
    """Small integers, whose sums and products are exact."""
    return torch.randint(-5, 6, (rows, dim), generator=torch.Generator().manual_seed(seed)).float()


def gather_and_go_back(group: Group, totals: list[int], dim: int) -> list[Any]:
    """All matrices, and the gradients of a loss that every rank weights in its own way."""
    own = []
    for number, total in enumerate(totals):
        rows = slice(*rows_of_rank(total, group.rank, group.size))
        own.append((numbers(total, dim, number)[rows].requires_grad_(), total))
    gathered = group.gather_rows(*own)
    loss = torch.zeros(())
    for number, matrix in enumerate(gathered):
        loss = loss + (matrix**2 * numbers(len(matrix), dim, 100 * group.rank + number)).sum()
    loss.backward()
    return [[matrix.tolist() for matrix in gathered], [rows.grad.tolist() for rows, _ in own if rows.grad is not None]]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    size=st.integers(2, MOST),
    totals=st.lists(st.integers(0, 11), min_size=1, max_size=3).filter(any),
    dim=st.integers(1, 4),
)
def test_rows_and_gradients_are_those_of_one_process(ranks: Ranks, size: int, totals: list[int], dim: int) -> None:
    whole = [numbers(total, dim, number) for number, total in enumerate(totals)]
    expected = [
        2 * matrix * sum(numbers(total, dim, 100 * rank + number) for rank in range(size))
        for number, (matrix, total) in enumerate(zip(whole, totals, strict=True))
    ]
    for rank, (gathered, grads) in enumerate(ranks.run(size, gather_and_go_back, totals, dim)):
        assert gathered == [matrix.tolist() for matrix in whole]
        own = [slice(*rows_of_rank(total, rank, size)) for total in totals]
        assert grads == [grad[rows].tolist() for grad, rows in zip(expected, own, strict=True)]


def talk(group: Group) -> list[Any]:
    """What a rank hears."""
    own = group.from_first_(torch.tensor([group.rank])).item()
    return [own, *group.gather_objects({"by": group.rank})]


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_hears_the_first_and_all(ranks: Ranks, size: int) -> None:
    assert ranks.run(size, talk) == [[0, *({"by": rank} for rank in range(size))]] * size


def sum_of(group: Group, length: int, value: float) -> list[Any]:
    tensor = torch.full((length,), value) * (group.rank + 1)
    assert group.sum_(tensor) is tensor
    return [tensor[0].item(), bool((tensor == tensor[0]).all())]


@pytest.mark.parametrize("length", [1, 1000, SMALL_BYTES])
def test_small_and_large_sums_are_alike_on_all_ranks(ranks: Ranks, length: int) -> None:
    assert ranks.run(3, sum_of, length, 0.1) == [[pytest.approx(0.6), True]] * 3


def test_one_process_hears_itself() -> None:
    group = Group()
    assert (group.rank, group.size) == (0, 1)
    x = torch.ones(2, 3, requires_grad=True)
    assert group.gather_rows((x, 2)) == [x]
    assert group.gather_objects("x") == ["x"]
