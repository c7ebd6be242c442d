"""Rows in memory, mapped from disk, or streamed: training reads the same from all of them."""

import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smec_core.distributed import resident
from smec_core.distributed.group import Group
from smec_core.distributed.resident import BLOCK_ROWS, Node, ResidentRows, StreamedRows, choose_residency
from smec_core.errors import SmecError
from smec_core.model.adapter import FrozenStage, fold
from smec_core.model.pca import principal_rotation
from smec_core.training.memory import CrossBatchMemory
from smec_core.training.sampling import Batch, in_reach
from smec_core.training.trainer import train
from tests.smec_core.generated import Records, stream_of
from tests.smec_core.interrupted import DIM, Case, Ended, alone, assert_same, generated, run_case
from tests.smec_core.ranks import Ranks

MOST = 3 * BLOCK_ROWS + 5
# what rounding does to a matrix grows with the rate; a free one without judgements has directions that nothing holds
CASES = {
    "labelled": Case(dict(alpha=0.1, queue_size=12, batch_size=10, negatives=4, lr=5e-3)),
    "unlabelled": Case(dict(queue_size=16, batch_size=4, negatives=4, top_k=5, projection="rotation"), judged=False),
}
HELD = 30


class Source:
    """A source of rows that remembers what was asked of it."""

    def __init__(self, x_ND: Tensor) -> None:
        self.asked: list[tuple[int, int]] = []
        self._stream = stream_of(x_ND, 5000)

    def __call__(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((start, stop))
        return self._stream(start, stop)


class Watched(StreamedRows):
    """Streamed rows that remember how many were prepared."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.prepared: list[int] = []

    def prepare(self, row_N: np.ndarray) -> None:
        self.prepared.append(len(np.unique(row_N)))
        super().prepare(row_N)


def numbered(rows: int) -> Tensor:
    """Rows (N, 2) that tell their number."""
    return torch.stack([torch.arange(rows), torch.arange(rows) % 7], dim=1).float()


def wanted_of(rows: int) -> st.SearchStrategy[list[int]]:
    """Rows about the edges of blocks."""
    edges = st.integers(0, rows // BLOCK_ROWS).map(lambda block: block * BLOCK_ROWS)
    near = st.tuples(edges, st.integers(-2, 9)).map(lambda parts: min(max(sum(parts), 0), rows - 1))
    return st.lists(near, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data(), rows=st.sampled_from([1, 9, BLOCK_ROWS, BLOCK_ROWS + 1, MOST]))
def test_streamed_rows_are_those_of_the_source_and_little_else_is_read(data: st.DataObject, rows: int) -> None:
    x_ND = numbered(rows)
    source = Source(x_ND)
    streamed, whole = StreamedRows(source, rows, 2, Node(), None), ResidentRows(x_ND, Node())
    for wanted in data.draw(st.lists(wanted_of(rows), min_size=1, max_size=3)):
        source.asked.clear()
        streamed.prepare(np.array(wanted, np.int64))
        row_N = torch.tensor(wanted, dtype=torch.int64)
        assert torch.equal(streamed.take(row_N), whole.take(row_N))
        read = [block for start, stop in source.asked for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS))]
        assert len(set(read)) == len(read), "a block was read twice"
        assert set(read) <= {row // BLOCK_ROWS for row in wanted}, "a block was read that holds no wanted row"
        # what is held is not read again
        source.asked.clear()
        streamed.prepare(np.array(wanted[:2], np.int64))
        assert torch.equal(streamed.take(row_N[:2]), whole.take(row_N[:2]))
        assert not source.asked


def stages() -> list[FrozenStage]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 6), (6, 3)]
    return [
        FrozenStage(
            dim, "linear", {"weight": torch.randn(d_in, d_in, generator=generator), "logits": torch.zeros(d_in)}
        )
        for d_in, dim in shapes
    ]


@settings(deadline=None, derandomize=True, max_examples=30)
@given(wanted=st.lists(st.integers(0, 59), max_size=12), through=st.integers(0, 2))
def test_the_blocks_that_stages_keep_are_the_same(wanted: list[int], through: int) -> None:
    x_ND = generated().docs_ND
    frozen = StreamedRows(stream_of(x_ND), 60, DIM, Node(), None)
    streamed: Any = frozen
    whole = ResidentRows(x_ND, Node())
    for stage in stages()[:through]:
        streamed, whole = streamed.project(stage), whole.project(stage)
    assert streamed.dim == whole.dim
    # rows are made ready once, for every stage
    frozen.prepare(np.array(wanted, np.int64))
    row_N = torch.tensor(wanted, dtype=torch.int64)
    torch.testing.assert_close(streamed.take(row_N), whole.take(row_N), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        principal_rotation(streamed, Group()), principal_rotation(whole, Group()), atol=1e-4, rtol=0
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    steps=st.lists(st.sets(st.integers(0, 39), min_size=1, max_size=9), max_size=8),
    slots=st.integers(1, 20),
    most_held=st.integers(1, 45),
    first=st.integers(0, 3),
)
def test_every_step_finds_its_rows_and_no_more_are_held_than_may_be(
    steps: list[set[int]], slots: int, most_held: int, first: int
) -> None:
    x_ND = numbered(40)
    docs = Watched(stream_of(x_ND), 40, 2, Node(), most_held)
    memory = CrossBatchMemory(slots, 2, Group(), "global", torch.device("cpu"))
    none = np.empty(0, np.int64)
    batches = [Batch(none, np.array(sorted(rows)), none, none, none) for rows in steps]
    seen, needed = [], [0]
    for batch in in_reach(iter(batches[first:]), docs, memory):
        rows = np.union1d(batch.doc_row_N, memory.rows())
        needed.append(len(rows))
        assert torch.equal(docs.take(torch.from_numpy(rows)), x_ND[rows])
        doc_row_N = torch.from_numpy(batch.doc_row_N)
        memory.push(doc_row_N, docs.take(doc_row_N))
        seen.append(batch)
    assert seen == batches[first:]
    assert all(count <= most_held or count in needed for count in docs.prepared)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_training_on_streamed_rows_is_that_on_resident_rows(ranks: Ranks, name: str, tmp_path: Path) -> None:
    whole = alone(ranks, CASES[name], str(tmp_path / "whole"))
    case = replace(CASES[name], most_held=HELD)
    streamed = alone(ranks, case, str(tmp_path / "streamed"))
    assert_close(streamed, whole, 1e-5)
    # from some of the checkpoints, at first without any rows held
    for number in range(0, len(streamed.records_before), 9):
        again = alone(ranks, case, str(tmp_path / "streamed"), number)
        assert_close(again, whole, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_training_makes_rows_ready_several_times_an_epoch_and_never_too_many(name: str) -> None:
    case, made, records = CASES[name], generated(), Records()
    docs = Watched(stream_of(made.docs_ND), len(made.docs_ND), DIM, Node(), HELD)
    config = case.config.model_copy(update={"init": "pca"})
    train(replace(case.data(Group()), docs=docs), config, records)
    epochs = {(record["pass"], record["stage"], record["epoch"]) for record in records.steps}
    # dev is drawn once, whatever its size
    in_steps = [count for count in docs.prepared if count != len(made.docs_ND)]
    assert len(docs.prepared) - len(in_steps) == 1
    assert len(in_steps) > 2 * len(epochs)
    assert max(in_steps) <= HELD


def test_two_ranks_stream_what_one_does(ranks: Ranks, tmp_path: Path) -> None:
    whole = alone(ranks, CASES["labelled"], str(tmp_path / "whole"))
    shared = tmp_path / "rows"
    shared.mkdir()
    # each rank reads half of the source for both
    case = replace(CASES["labelled"], most_held=HELD, mapped=str(shared))
    first, second = ranks.run(2, run_case, case, str(tmp_path / "streamed"))
    assert_same(first, second)
    assert_close(first, whole, 1e-4)
    assert not list(shared.iterdir())


def assert_close(found: Ended, expected: Ended, tolerance: float) -> None:
    assert found.choices == expected.choices
    assert found.trained is not None and expected.trained is not None
    matrices = [fold(ended.trained.stages, DIM) for ended in (found, expected) if ended.trained]
    torch.testing.assert_close(*matrices, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_mapped_rows_train_the_same_model_bit_for_bit(ranks: Ranks, size: int, tmp_path: Path) -> None:
    shared = tmp_path / "rows"
    shared.mkdir()
    case = CASES["labelled"]
    in_memory = ranks.run(size, run_case, case, str(tmp_path / "memory"))
    mapped = ranks.run(size, run_case, replace(case, mapped=str(shared)), str(tmp_path / "mapped"))
    for one, other in zip(mapped, in_memory, strict=True):
        assert_same(one, other)
    assert not list(shared.iterdir())


def test_a_row_that_does_not_arrive_is_told() -> None:
    x_ND = numbered(20)

    def stream(start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        row_N = torch.tensor([row for row in range(start, stop) if row != 13], dtype=torch.int64)
        yield row_N, x_ND[row_N]

    with pytest.raises(SmecError, match="row 13 did not arrive; the data changed while it was read"):
        ResidentRows.filled(stream, 20, 2, Node())
    streamed = StreamedRows(stream, 20, 2, Node(), None)
    streamed.prepare(np.array([12, 14]))
    assert torch.equal(streamed.take(torch.tensor([14, 12])), x_ND[[14, 12]])
    with pytest.raises(SmecError, match="row 13 did not arrive; the data changed while it was read"):
        streamed.prepare(np.array([12, 13, 14]))


def map_without_room(group: Group, folder: str) -> str:
    """What a process that may write files of 4096 bytes only is told when it maps more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        node = Node(group, folder=Path(folder))
        small = ResidentRows.filled(stream_of(numbered(512)), 512, 2, node)
        assert torch.equal(small.matrix_ND, numbered(512))
        node.empty(513, 2)
    except SmecError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "it went well"


def test_a_disk_without_room_is_told(ranks: Ranks, tmp_path: Path) -> None:
    (message,) = ranks.run(1, map_without_room, str(tmp_path))
    assert message.startswith(f"{tmp_path}: no room for 0 MiB of resident rows (File too large); free some, ")
    assert "memory_budget" in message and "scratch" in message
    assert not list(tmp_path.iterdir())


def rows_on_unlike_nodes(group: Group, folder: str, rows: int) -> Any:
    """The first rank alone on a node without files, the others together on one with files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    alone = group.rank == 0
    node = Node(group, "one", 0, 1, None) if alone else Node(group, "two", group.rank - 1, group.size - 1, Path(folder))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        matrix = node.empty(rows, 4)
    except SmecError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    low, high = node.share(rows)
    matrix[low:high] = 7.0 if alone else 8.0
    group.wait()
    return matrix.unique().tolist()


def test_nodes_of_different_kinds_make_their_matrices_together(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(3, rows_on_unlike_nodes, str(tmp_path), 10) == [[7.0], [8.0], [8.0]]
    # where one has no room all ranks are told, and none waits for the others
    messages = ranks.run(3, rows_on_unlike_nodes, str(tmp_path), 1 << 20)
    assert len(set(messages)) == 1 and "no room for 16 MiB" in messages[0]


def free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def choose(need: int, budget: int, ranks: int, scratch: Path, tier: Any = None) -> tuple[str, Path | None]:
    """For rows that need so many bytes; 2.5 times a row of 4 bytes."""
    found = choose_residency(need // 10, 0, 1, budget, ranks, scratch, tier)
    assert "budget" in found.reason
    return found.tier, found.folder


MIB = 1 << 20


def test_rows_are_kept_in_memory_up_to_the_budget_then_on_disk_and_streamed_past_that(tmp_path: Path) -> None:
    shared = resident.SHARED_MEMORY
    for ranks in (1, 2):
        assert choose(10 * MIB, 10 * MIB, ranks, tmp_path) == ("memory", shared)
        assert choose(10 * MIB, 10 * MIB - 10, ranks, tmp_path) == ("mapped", tmp_path)
    too_much = 10 * free(tmp_path)
    assert choose(too_much, MIB, 1, tmp_path) == ("streamed", None)
    # ranks of one machine hold what they have streamed together
    assert choose(too_much, MIB, 2, tmp_path) == ("streamed", tmp_path)


def test_what_the_user_insists_on_goes_before_the_budget(tmp_path: Path) -> None:
    shared = resident.SHARED_MEMORY
    assert choose(10 * MIB, MIB, 2, tmp_path, "memory") == ("memory", shared)
    assert choose(MIB, 10 * MIB, 2, tmp_path, "mapped") == ("mapped", tmp_path)
    assert choose(MIB, 10 * MIB, 1, tmp_path, "streamed") == ("streamed", None)
    assert choose(MIB, 10 * MIB, 2, tmp_path, "streamed") == ("streamed", tmp_path)
    assert choose(10 * free(tmp_path), MIB, 2, tmp_path, "mapped") == ("mapped", tmp_path)


def test_without_shared_memory_ranks_of_a_machine_share_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "SHARED_MEMORY", tmp_path / "absent")
    for tier in (None, "memory"):
        # a single rank holds its rows in memory of its own
        assert choose(MIB, 10 * MIB, 1, tmp_path, tier) == ("memory", None)
        assert choose(MIB, 10 * MIB, 2, tmp_path, tier) == ("mapped", tmp_path)
        assert choose(10 * free(tmp_path), 100 * free(tmp_path), 2, tmp_path, tier) == ("streamed", tmp_path)
    reason = choose_residency(100, 0, 8, 10 * MIB, 2, tmp_path).reason
    assert f"but {tmp_path / 'absent'} has 0 MiB free" in reason
