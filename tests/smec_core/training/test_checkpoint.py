"""A training that is interrupted, anywhere and again and again, ends as one that is not."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smec_core.errors import InputError
from smec_core.model.adapter import fold
from smec_core.training.checkpoint import STAGE_FILE, Checkpoint, Tree, read_tree, write_tree
from smec_core.training.trained import Trained
from tests.smec_core.interrupted import DIM, Case, Ended, alone, assert_same, checkpoint_at, run_case
from tests.smec_core.ranks import Ranks

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)

PCA = dict(init="pca", unsupervised="cosines", alpha_whole=0.1)
CASES = {
    "defaults": Case(dict(dims=(4, 2), alpha=None)),
    # too small steps to gain anything
    "start_is_kept": Case(dict(dims=(DIM,), lr=1e-12)),
    "another_start": Case(much_gain=-1.0),
    "pca": Case(PCA),
    "stops_early": Case(PCA | dict(epochs=8, patience=1, refit=False, lr=0.2)),
    "residual_mlp": Case(dict(projection="residual_mlp", hidden_dim=4)),
    "fixed_epochs": Case(dict(projection="linear", guard=False, init="random")),
    "unlabelled": Case(dict(top_k=5, batch_size=4, negatives=20), judged=False),
    "base": Case(has_base=True),
    "warm": Case(dict(compatible=0.5), has_champion=True),
    "warm_unlabelled": Case(
        dict(projection="linear", top_k=5, batch_size=4, negatives=20), judged=False, has_champion=True
    ),
    "local": Case(dict(memory="local")),
    "cosines": Case(dict(unsupervised="cosines")),
    "warm_cosines": Case(dict(unsupervised="cosines", alpha_whole=0.1), has_champion=True),
    "all_dims_listwise": Case(dict(alpha_whole=0.1)),
}


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    numbers = draw(st.lists(st.integers(0, 100), min_size=math.prod(shape), max_size=math.prod(shape)))
    tensor = torch.tensor(numbers).reshape(shape).to(dtype)
    # neither whole nor contiguous
    return tensor.T if len(shape) == 2 and draw(st.booleans()) else tensor


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), tensors())
KEYS = st.one_of(st.integers(), st.text(max_size=5), st.sampled_from(["tensor", "dict"]))
TREES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)),
    max_size=4,
)


def same_tree(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_tree(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(same_tree(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(tree=TREES)
def test_a_tree_is_read_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    write_tree(path, tree)
    assert same_tree(tree, read_tree(path))


def test_infinite_numbers_shared_tensors_and_tuples_are_written_too(tmp_path: Path) -> None:
    tensor = torch.arange(6.0)
    tree: Tree = {
        "best": {8: -math.inf},
        "tensors": [tensor, tensor, tensor[2:4]],
        "betas": (0.9, 0.999),
        "nothing": {},
    }
    write_tree(tmp_path / "tree", tree)
    assert same_tree(read_tree(tmp_path / "tree"), {**tree, "betas": [0.9, 0.999]})


@pytest.mark.parametrize("name", CASES)
def test_a_training_killed_after_every_checkpoint_gives_the_same_model(ranks: Ranks, name: str, tmp_path: Path) -> None:
    check_killed_everywhere(partial(alone, ranks), CASES[name], tmp_path)


@pytest.mark.parametrize("name", ["pca", "stops_early", "start_is_kept", "unlabelled", "local", "warm"])
def test_so_does_one_of_two_workers(ranks: Ranks, name: str, tmp_path: Path) -> None:
    check_killed_everywhere(partial(together, ranks, 2), CASES[name], tmp_path)


def together(ranks: Ranks, size: int, *arguments: Any) -> Ended:
    """A training on several ranks, which must all end with the same."""
    first, *others = ranks.run(size, run_case, *arguments)
    for other in others:
        assert (other.trained is None) == (first.trained is None)
        if first.trained is not None:
            assert_same(other, first)
    ended: Ended = first
    return ended


def check_killed_everywhere(run: Callable[..., Ended], case: Case, root: Path) -> None:
    whole = run(case, str(root / "whole"))
    ended = run(case, str(root / "parts"), None, True)
    records, kills = [*ended.records], 0
    while ended.trained is None:
        ended = run(case, str(root / "parts"), kills, True)
        records, kills = records + ended.records, kills + 1
        assert kills <= len(whole.records_before), "it does not get on"
    assert kills == len(whole.records_before)
    assert_same(ended, whole)
    assert records == whole.records, "a record is missing, or came twice"


def place_of(checkpoint: Checkpoint, epoch_steps: int) -> tuple[str, int, str]:
    progress = checkpoint.progress
    assert progress is not None
    if not checkpoint.is_within:
        return progress.pass_name, progress.stage, "before"
    return progress.pass_name, progress.stage, "end of epoch" if progress.batch == epoch_steps else "within epoch"


def test_a_checkpoint_of_the_first_edition_is_read(tmp_path: Path) -> None:
    """It calls a linear map `free`, and keeps the most epochs of a stage, which the plan says now."""
    stage = {"dim": 2, "projection": "free", "tensors": {"weight": torch.eye(2)}}
    outcome = {"d_in": 2, "stage": stage, "tried": {"free": {"epochs": 1}}, "seconds": 1.0}
    counts = dict.fromkeys(("stage", "epoch", "batch", "step", "rows", "seconds", "stage_seconds", "epochs"), 1)
    names = {"pass_name": "first", "dev_scores": {}, "passes": {"first": [outcome]}, "guards": {"free": {}}}
    write_tree(tmp_path / "progress.safetensors", counts | names)
    write_tree(tmp_path / "candidate-free.safetensors", {"stage": {}})
    found = Checkpoint.read(tmp_path)
    assert found.progress is not None
    assert found.is_within
    assert found.stage_of("linear") == {"stage": {}}
    [kept] = found.progress.passes["first"]
    assert kept["stage"]["projection"] == "linear"
    assert kept["epochs"] == 1
    with pytest.raises(InputError, match="an earlier version of smec made it, with linear in training, where this one"):
        found.stage_of("rotation")


def as_two_kinds(folder: Path) -> None:
    """Makes of a checkpoint what earlier versions wrote where they tried two kinds at once."""
    progress, path = read_tree(folder / "progress.safetensors"), folder / STAGE_FILE
    for outcome in (outcome for outcomes in progress["passes"].values() for outcome in outcomes):
        kept = {name: outcome.pop(name) for name in ("epochs", "dev_score", "scores")}
        outcome["tried"] = {"other": kept | {"epochs": -1}, outcome["stage"]["projection"]: kept}
    progress["guards"] = {}
    if path.exists():
        state = read_tree(path)
        path.unlink()
        kind = "rotation" if progress["stage"] else "linear"
        kept = {name: state.pop(name) for name in ("guard", "best")}
        progress["guards"] = {kind: kept, "other": {}}
        for name, tree in {kind: state, "other": {"stage": {}}}.items():
            write_tree(folder / f"candidate-{name}.safetensors", tree)
    write_tree(folder / "progress.safetensors", progress)


def test_a_training_goes_on_from_checkpoints_of_two_kinds(ranks: Ranks, tmp_path: Path) -> None:
    case = CASES["pca"]
    whole = alone(ranks, case, str(tmp_path))
    for number in range(len(whole.records_before)):
        as_two_kinds(tmp_path / str(number))
        assert_same(alone(ranks, case, str(tmp_path), number), whole)


def test_what_is_no_better_than_its_start_gives_the_start(ranks: Ranks, tmp_path: Path) -> None:
    ended = alone(ranks, CASES["start_is_kept"], str(tmp_path))
    assert ended.metrics["start"]["kept"] in ("closed", "pca")


def test_a_training_goes_on_from_any_of_its_checkpoints(ranks: Ranks, tmp_path: Path) -> None:
    case = CASES["pca"]
    whole = alone(ranks, case, str(tmp_path))
    assert [stage["dim"] for stage in whole.metrics["stages"]] == [8, 4]
    found = [checkpoint_at(tmp_path, number) for number in range(len(whole.records_before))]
    everywhere = {
        (pass_name, stage, place)
        for pass_name in ("first", "refit")
        for stage in (0, 1)
        for place in ("before", "within epoch", "end of epoch")
    }
    # before its very first step there is nothing to keep
    assert {place_of(checkpoint, 2) for checkpoint in found} == everywhere - {("first", 0, "before")}
    for number, before in enumerate(whole.records_before):
        again = alone(ranks, case, str(tmp_path), number)
        assert_same(again, whole)
        assert whole.records[:before] + again.records == whole.records


@pytest.mark.parametrize(("name", "before", "after"), [("pca", 3, 2), ("pca", 3, 1), ("unlabelled", 1, 2)])
def test_another_number_of_workers_goes_on_with_a_training(
    ranks: Ranks, name: str, before: int, after: int, tmp_path: Path
) -> None:
    case = CASES[name]
    whole = together(ranks, before, case, str(tmp_path))
    places: dict[Any, int] = {}
    for number in range(len(whole.records_before)):
        places.setdefault(place_of(checkpoint_at(tmp_path, number), 2), number)
    last = max(stage for _, stage, _ in places)
    chosen = {place[0]: number for place, number in places.items() if place[1:] == (last, "within epoch")}
    assert set(chosen) == ({"first", "refit"} if case.judged else {"first"})
    for pass_name, number in chosen.items():
        # to their end, and from the next checkpoint that they write themselves
        theirs = tmp_path / pass_name
        shutil.copytree(tmp_path / str(number), theirs / str(number))
        together(ranks, after, case, str(theirs), number, True)
        for start in (number, number + 1):
            again = together(ranks, after, case, str(theirs), start)
            assert again.choices == whole.choices
            assert again.metrics["training"]["steps"] == whole.metrics["training"]["steps"]
            torch.testing.assert_close(matrix_of(again), matrix_of(whole), atol=1e-4, rtol=0)


def matrix_of(ended: Ended) -> Tensor:
    assert ended.trained is not None
    matrix_DD = fold(ended.trained.stages, DIM)
    assert matrix_DD is not None
    return matrix_DD


def test_a_finished_training_is_read_back(ranks: Ranks, tmp_path: Path) -> None:
    ended = alone(ranks, CASES["residual_mlp"], str(tmp_path))
    assert ended.trained is not None
    ended.trained.write(tmp_path)
    assert_same(replace(ended, trained=Trained.read(tmp_path)), ended)
