"""The cross-batch memory, in one process and sharded over several, against a plain list of (sequence number, row)."""

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smec_core.distributed.group import Group
from smec_core.training.memory import CrossBatchMemory, MemoryShard, Neighbours
from tests.smec_core.generated import resident
from tests.smec_core.ranks import MOST, Ranks

ROWS = 12
CPU = torch.device("cpu")
Vector = tuple[int, ...]
# small integers: products are exact and ties are many
VECTOR = st.tuples(*[st.integers(-2, 2)] * 3)
VECTORS = st.lists(VECTOR, min_size=ROWS, max_size=ROWS)
PUSHES = st.lists(st.lists(st.integers(0, ROWS - 1), unique=True, max_size=ROWS), max_size=8)
Found = list[dict[int, int]]


class ListMemory:
    """What the memory must do, step by step."""

    def __init__(self, slots: int, x_rows: Sequence[Vector]) -> None:
        self.slots, self.x_rows = slots, x_rows
        self.pushed = 0
        self.entries: list[tuple[int, int]] = []

    def push(self, rows: list[int]) -> None:
        for row in rows:
            self.entries = [entry for entry in self.entries if entry[1] != row]
            self.entries.append((self.pushed, row))
            self.pushed += 1
            self.entries = [entry for entry in self.entries if entry[0] >= self.pushed - self.slots]

    def nearest(self, x: Vector, own_row: int, top_k: int, rank: int = 0, size: int = 1) -> dict[int, int]:
        """Row and product of the nearest entries, of one rank if so asked, the older first among equals."""
        found = [
            (-sum(a * b for a, b in zip(x, self.x_rows[row], strict=True)), number, row)
            for number, row in self.entries
            if row != own_row and number % size == rank
        ]
        return {row: -negative for negative, _, row in sorted(found)[:top_k]}


def found_by(neighbours: Neighbours) -> Found:
    """Row and cosine of each anchor's live neighbours."""
    found = []
    for row_K, target_K, live_K in zip(*neighbours, strict=True):
        rows = row_K[live_K].tolist()
        assert rows == sorted(set(rows)), "an item was returned twice, or out of order"
        found.append({row: int(target) for row, target in zip(rows, target_K[live_K].tolist(), strict=True)})
    return found


def anchors_of(x_rows: Sequence[Vector], queries: Sequence[Vector]) -> list[tuple[Vector, int]]:
    return [(x, -1) for x in queries] + [(x_rows[row], row) for row in range(ROWS)]


def fill_and_search(
    group: Group,
    mode: str,
    slots: int,
    top_k: int,
    x_rows: list[Vector],
    queries: list[Vector],
    pushes: list[list[int]],
    shards: list[MemoryShard] | None = None,
) -> tuple[list[Found], MemoryShard]:
    """What the memory finds after every push, and what a checkpoint of it holds."""
    memory = CrossBatchMemory(slots, 3, group, "local" if mode == "local" else "global", CPU)
    x_ND = torch.tensor(x_rows, dtype=torch.float32)
    if shards is not None:
        memory.restore(shards, resident(x_ND))
    anchors = anchors_of(x_rows, queries)
    x_AD = torch.tensor([x for x, _ in anchors], dtype=torch.float32)
    row_A = torch.tensor([row for _, row in anchors])
    found = []
    for rows in pushes:
        row_N = torch.tensor(rows, dtype=torch.int64)
        memory.push(row_N, x_ND[row_N])
        found.append(found_by(memory.search(x_AD, row_A, top_k)))
    return found, memory.shard()


def expected_from(
    memory: ListMemory, top_k: int, queries: list[Vector], pushes: list[list[int]], rank: int = 0, size: int = 1
) -> list[Found]:
    found = []
    for rows in pushes:
        memory.push(rows)
        anchors = anchors_of(memory.x_rows, queries)
        found.append([memory.nearest(x, own_row, top_k, rank, size) for x, own_row in anchors])
    return found


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    slots=st.integers(1, 9),
    top_k=st.integers(1, 10),
    x_rows=VECTORS,
    queries=st.lists(VECTOR, min_size=1, max_size=3),
    pushes=PUSHES,
)
def test_memory_equals_a_list(
    slots: int, top_k: int, x_rows: list[Vector], queries: list[Vector], pushes: list[list[int]]
) -> None:
    found, _ = fill_and_search(Group(), "global", slots, top_k, x_rows, queries, [[], *pushes])
    assert found == expected_from(ListMemory(slots, x_rows), top_k, queries, [[], *pushes])


@settings(deadline=None, derandomize=True, max_examples=120)
@given(
    size=st.integers(2, MOST),
    slots=st.integers(1, 9),
    top_k=st.integers(1, 10),
    x_rows=VECTORS,
    queries=st.lists(VECTOR, min_size=1, max_size=3),
    pushes=PUSHES,
)
def test_global_memory_of_several_ranks_is_one_memory(
    ranks: Ranks,
    size: int,
    slots: int,
    top_k: int,
    x_rows: list[Vector],
    queries: list[Vector],
    pushes: list[list[int]],
) -> None:
    case = ("global", slots, top_k, x_rows, queries, [[], *pushes])
    alone, _ = fill_and_search(Group(), *case)
    for found, _ in ranks.run(size, fill_and_search, *case):
        assert found == alone


@settings(deadline=None, derandomize=True, max_examples=60)
@given(size=st.integers(2, MOST), slots=st.integers(1, 9), top_k=st.integers(1, 5), x_rows=VECTORS, pushes=PUSHES)
def test_local_memory_is_each_ranks_own_part(
    ranks: Ranks, size: int, slots: int, top_k: int, x_rows: list[Vector], pushes: list[list[int]]
) -> None:
    results = ranks.run(size, fill_and_search, "local", slots, top_k, x_rows, [(1, 0, 0)], pushes)
    for rank, (found, _) in enumerate(results):
        assert found == expected_from(ListMemory(slots, x_rows), top_k, [(1, 0, 0)], pushes, rank, size)


def entries_of(shards: list[MemoryShard]) -> list[tuple[int, int]]:
    """All (sequence number, row), oldest first."""
    pairs = [pair for shard in shards for pair in zip(shard.seq_E.tolist(), shard.row_E.tolist(), strict=True)]
    return sorted(pairs)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, MOST), min_size=2, max_size=3),
    slots=st.integers(1, 9),
    x_rows=VECTORS,
    before=PUSHES,
    after=PUSHES,
)
def test_resharding_keeps_content_and_order(
    ranks: Ranks, sizes: list[int], slots: int, x_rows: list[Vector], before: list[list[int]], after: list[list[int]]
) -> None:
    check_resharding(ranks, sizes, slots, x_rows, before, after)


def test_four_ranks_become_two_and_then_three(ranks: Ranks) -> None:
    x_rows: list[Vector] = [(row % 3 - 1, row % 2, row % 5 - 2) for row in range(ROWS)]
    check_resharding(ranks, [4, 2, 3], 7, x_rows, [[0, 1, 2, 3, 4, 5, 6, 7, 8], [2, 10]], [[11, 3], [0, 5, 9]])


def check_resharding(
    ranks: Ranks, sizes: list[int], slots: int, x_rows: list[Vector], before: list[list[int]], after: list[list[int]]
) -> None:
    expected = ListMemory(slots, x_rows)
    expected_from(expected, 3, [], before)
    shards = [shard for _, shard in ranks.run(sizes[0], fill_and_search, "global", slots, 3, x_rows, [], before)]
    for size in sizes[1:]:
        assert entries_of(shards) == expected.entries
        arguments = ("global", slots, 3, x_rows, [(1, 1, 0)], after, shards)
        results = ranks.run(size, fill_and_search, *arguments)
        found = expected_from(expected, 3, [(1, 1, 0)], after)
        assert [rank_found for rank_found, _ in results] == [found] * size
        shards = [shard for _, shard in results]
        for rank, shard in enumerate(shards):
            assert all(number % size == rank for number in shard.seq_E.tolist())
    assert entries_of(shards) == expected.entries


def unit_rows(rows: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)), dim=1)


def test_an_empty_memory_finds_nothing() -> None:
    memory = CrossBatchMemory(4, 8, Group(), "global", CPU)
    neighbours = memory.search(unit_rows(3, 8), torch.tensor([-1, 0, 1]), 2)
    assert not neighbours.live_AK.any()


def test_unfilled_places_take_no_part() -> None:
    memory = CrossBatchMemory(100, 8, Group(), "global", CPU)
    x_ND = unit_rows(2, 8)
    memory.push(torch.tensor([3, 5]), x_ND)
    # the opposite of both items: every empty slot (a product of 0) would be nearer
    neighbours = memory.search(-x_ND.sum(0, keepdim=True), torch.tensor([-1]), 10)
    assert neighbours.live_AK.sum() == 2
    assert (neighbours.target_AK[neighbours.live_AK] < 0).all()


def test_an_old_document_that_comes_again_stays_longer() -> None:
    memory = CrossBatchMemory(3, 8, Group(), "global", CPU)
    x_ND = unit_rows(10, 8)
    for row in (0, 1, 2, 0, 3):
        memory.push(torch.tensor([row]), x_ND[[row]])
    neighbours = memory.search(x_ND[:1], torch.tensor([-1]), 3)
    assert neighbours.row_AK[neighbours.live_AK].tolist() == [0, 2, 3]


def test_the_fill_counts_each_document_once() -> None:
    memory = CrossBatchMemory(4, 8, Group(), "global", CPU)
    x_ND = unit_rows(10, 8)
    fills = []
    for row in (0, 1, 0, 2, 3, 4, 5):
        memory.push(torch.tensor([row]), x_ND[[row]])
        fills.append(float(memory.fill()))
    # the second 0 leaves a hole, which the push of 3 fills
    assert fills == [0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 1.0]
