"""Rows that ranks read at random: once on a node, in memory or mapped, and drawn from the sample alone."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.distributed import resident
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node, ResidentRows, folder_for
from smec_core.errors import InputError, SmecError
from smec_core.evaluation.dev_set import dev_rows
from smec_core.model.adapter import FrozenStage
from smec_core.model.pca import mean_of_squares
from smec_core.training.trainer import train
from tests.smec_core.generated import Records
from tests.smec_core.interrupted import DIM, Case, assert_same, generated, run_case
from tests.smec_core.ranks import Ranks

CASE = Case(dict(alpha=0.1, queue_size=12, batch_size=10, negatives=4, lr=5e-3))


def numbered(rows: int) -> Tensor:
    """Rows (N, 2) that tell their number."""
    return torch.stack([torch.arange(rows), torch.arange(rows) % 7], dim=1).float()


def test_what_is_drawn_is_of_the_sample_and_what_is_judged_is_there() -> None:
    made = generated()
    rows = ResidentRows(made.docs_ND, Node(), drawn=20)
    assert (rows.rows, rows.drawn) == (60, 20)
    kept = rows.project(FrozenStage(DIM, "linear", {"weight": torch.eye(DIM).flip(0)}))
    assert (kept.rows, kept.drawn) == (60, 20)
    sample = ResidentRows(made.docs_ND[:20], Node())
    assert torch.equal(mean_of_squares(rows, Group()), mean_of_squares(sample, Group()))
    data = made.training_data(True, Node())
    assert data.dev is not None
    dev = dev_rows(data.dev, np.empty(0, np.int64), 20, TrainConfig(dims=(4,)))
    assert dev.tolist() == sorted({*range(20), *data.dev.doc_row_J.tolist()})


def test_a_training_draws_from_the_sample_alone() -> None:
    made, drawn = generated(), 20
    data = CASE.data(Group())

    class Watched(ResidentRows):
        def take(self, row_N: Tensor) -> Tensor:
            taken.update(row_N.tolist())
            return super().take(row_N)

    taken = set[int]()
    assert data.train is not None and data.dev is not None
    # only the judgements of a few documents: those behind the sample are met by these alone
    few = data.train.select(np.isin(np.arange(len(data.train)), np.arange(12)))
    docs = Watched(made.docs_ND, Node(), drawn)
    config = CASE.config.model_copy(update={"init": "pca", "guard": False, "refit": False})
    train(replace(data, docs=docs, train=few, dev=None), config, Records())
    assert taken - set(range(drawn)) == set(few.doc_row_J[few.doc_row_J >= drawn].tolist())
    assert len(taken & set(range(drawn))) > drawn // 2


@pytest.mark.parametrize("size", [1, 2])
def test_mapped_rows_train_the_same_model_bit_for_bit(ranks: Ranks, size: int, tmp_path: Path) -> None:
    shared = tmp_path / "rows"
    shared.mkdir()
    in_memory = ranks.run(size, run_case, CASE, str(tmp_path / "memory"))
    mapped = ranks.run(size, run_case, replace(CASE, mapped=str(shared)), str(tmp_path / "mapped"))
    for one, other in zip(mapped, in_memory, strict=True):
        assert_same(one, other)
    assert not list(shared.iterdir())


def map_without_room(group: Group, folder: str) -> str:
    """What a process that may write files of 4096 bytes only is told when it maps more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        node = Node(group, folder=Path(folder))
        small = ResidentRows(numbered(512), node).project(FrozenStage(2, "linear", {"weight": torch.eye(2)}))
        assert torch.equal(small.matrix_ND, numbered(512))
        node.empty(513, 2)
    except SmecError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "it went well"


def test_a_disk_without_room_is_told(ranks: Ranks, tmp_path: Path) -> None:
    (message,) = ranks.run(1, map_without_room, str(tmp_path))
    assert message.startswith(f"{tmp_path}: no room for 0 MiB of rows (File too large); free some, ")
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


def test_blocks_lie_in_shared_memory_where_that_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [folder_for(1 << 20, ranks, tmp_path) for ranks in (1, 2)] == [resident.SHARED_MEMORY] * 2
    # a single rank keeps them to itself
    assert [folder_for(1 << 60, ranks, tmp_path) for ranks in (1, 2)] == [None, tmp_path]
    monkeypatch.setattr(resident, "SHARED_MEMORY", tmp_path / "absent")
    assert [folder_for(1 << 20, ranks, tmp_path) for ranks in (1, 2)] == [None, tmp_path]


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{tmp_path}/file: a file of rows cannot be made there .*; .*set scratch"):
        Node(size=2, folder=tmp_path / "file").empty(4, 2)
