"""The cross-batch memory against a plain list of (sequence number, row)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smec_core.memory import CrossBatchMemory, Neighbours

ROWS = 12
# small integers: products are exact and ties are many
VECTOR = st.tuples(*[st.integers(-2, 2)] * 3)
PUSHES = st.lists(st.lists(st.integers(0, ROWS - 1), unique=True, max_size=ROWS), max_size=8)


class ListMemory:
    """What the memory must do, step by step."""

    def __init__(self, slots: int, x_rows: list[tuple[int, ...]]) -> None:
        self.slots, self.x_rows = slots, x_rows
        self.pushed = 0
        self.entries: list[tuple[int, int]] = []

    def push(self, rows: list[int]) -> None:
        for row in rows:
            self.entries = [entry for entry in self.entries if entry[1] != row]
            self.entries.append((self.pushed, row))
            self.pushed += 1
            self.entries = [entry for entry in self.entries if entry[0] >= self.pushed - self.slots]

    def nearest(self, x: tuple[int, ...], own_row: int, top_k: int) -> dict[int, int]:
        """Row and product of the nearest entries, the older first among equals."""
        found = [
            (-sum(a * b for a, b in zip(x, self.x_rows[row], strict=True)), number, row)
            for number, row in self.entries
            if row != own_row
        ]
        return {row: -negative for negative, _, row in sorted(found)[:top_k]}


def push(memory: CrossBatchMemory, x_rows: list[tuple[int, ...]], rows: list[int]) -> None:
    x_ND = torch.tensor([x_rows[row] for row in rows], dtype=torch.float32).view(-1, 3)
    memory.push(torch.tensor(rows, dtype=torch.int64), x_ND, torch.tensor(rows, dtype=torch.float32).view(-1, 1))


def found_by(neighbours: Neighbours, anchor: int) -> dict[int, int]:
    """Row (kept as the item's kept block) and cosine of an anchor's live neighbours."""
    rows = neighbours.kept_UI[neighbours.where_AK[anchor], 0]
    live = neighbours.live_AK[anchor] == 1
    assert len(set(rows[live].tolist())) == int(live.sum()), "an item was returned twice"
    targets = neighbours.target_AK[anchor]
    return {int(row): int(target) for row, target in zip(rows[live], targets[live], strict=True)}


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    slots=st.integers(1, 9),
    top_k=st.integers(1, 10),
    x_rows=st.lists(VECTOR, min_size=ROWS, max_size=ROWS),
    queries=st.lists(VECTOR, min_size=1, max_size=3),
    pushes=PUSHES,
)
def test_memory_equals_a_list(
    slots: int, top_k: int, x_rows: list[tuple[int, ...]], queries: list[tuple[int, ...]], pushes: list[list[int]]
) -> None:
    memory = CrossBatchMemory(slots, ROWS, 3, 1, torch.device("cpu"))
    expected = ListMemory(slots, x_rows)
    anchors = [(x, -1) for x in queries] + [(x_rows[row], row) for row in range(ROWS)]
    x_AD = torch.tensor([x for x, _ in anchors], dtype=torch.float32)
    row_A = torch.tensor([row for _, row in anchors])
    for rows in [[], *pushes]:
        push(memory, x_rows, rows)
        expected.push(rows)
        neighbours = memory.search(x_AD, row_A, top_k)
        for anchor, (x, own_row) in enumerate(anchors):
            assert found_by(neighbours, anchor) == expected.nearest(x, own_row, top_k)


def unit_rows(rows: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)), dim=1)


def test_an_empty_memory_finds_nothing() -> None:
    memory = CrossBatchMemory(4, 10, 8, 2, torch.device("cpu"))
    neighbours = memory.search(unit_rows(3, 8), torch.tensor([-1, 0, 1]), 2)
    assert len(neighbours.kept_UI) == 0
    assert neighbours.live_AK.sum() == 0


def test_unfilled_places_take_no_part() -> None:
    memory = CrossBatchMemory(100, 10, 8, 2, torch.device("cpu"))
    x_ND = unit_rows(2, 8)
    memory.push(torch.tensor([3, 5]), x_ND, torch.ones(2, 2))
    # the opposite of both items: every empty slot (a product of 0) would be nearer
    neighbours = memory.search(-x_ND.sum(0, keepdim=True), torch.tensor([-1]), 10)
    assert neighbours.live_AK.sum() == 2
    assert (neighbours.target_AK[neighbours.live_AK == 1] < 0).all()


def test_an_old_document_that_comes_again_stays_longer() -> None:
    memory = CrossBatchMemory(3, 10, 8, 1, torch.device("cpu"))
    x_ND = unit_rows(10, 8)
    for row in (0, 1, 2, 0, 3):
        memory.push(torch.tensor([row]), x_ND[[row]], torch.tensor([[float(row)]]))
    neighbours = memory.search(x_ND[:1], torch.tensor([-1]), 3)
    assert set(neighbours.kept_UI.flatten().tolist()) == {2, 0, 3}
