"""What is said of a training before it starts, against trainings."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smec_core.config import PAPER_PRESET, TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.model.model import Model
from smec_core.sizing.machine_speed import MachineSpeed, measure_speed
from smec_core.sizing.plan import DataShape, plan_stages, resident_bytes, worker_bytes
from smec_core.sizing.step_cost import step_products
from smec_core.training.candidate import Candidate
from smec_core.training.context import PassContext
from smec_core.training.local import load_training_data
from smec_core.training.step import Step
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train
from smec_core.training.warm import WarmStart
from tests.builders import write_dataset
from tests.smec_core.generated import Records

DIM = 128
SPEED = MachineSpeed(((10.0, 1e9), (1000.0, 5e10)), 1e10, 1e9)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(str(write_dataset(tmp_path_factory.mktemp("data") / "d", docs=700, queries=400, dim=DIM)))


@pytest.fixture(scope="module")
def unjudged(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_dataset(tmp_path_factory.mktemp("data") / "d", docs=700, queries=400, dim=DIM)
    (folder / "qrels" / "train.parquet").unlink()
    return Dataset.open(str(folder))


def small(**changes: Any) -> TrainConfig:
    quick = dict(dims=(32, 16), epochs=6, batch_size=48, negatives=32, queue_size=128, score_steps=8)
    return TrainConfig.model_validate({**quick, **changes})


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "many steps an epoch": {"batch_size": 16, "patience": 2},
    "with memory": {"alpha": 0.1},
    "paper": PAPER_PRESET,
    "parallel": {"schedule": "parallel", "projection": "linear"},
    "rotations": {"projection": "rotation"},
    "selection": {"projection": "selection"},
    "residual_mlp": {"projection": "residual_mlp", "hidden_dim": 24},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_lie_within_what_was_said(name: str, dataset: Dataset) -> None:
    _check_steps(dataset, small(**SETTINGS[name]))


def test_steps_without_judgements_lie_within_what_was_said(unjudged: Dataset) -> None:
    _check_steps(unjudged, small(), skipped=1)


def _check_steps(dataset: Dataset, config: TrainConfig, skipped: int = 0) -> None:
    """`skipped` steps of a stage meet an empty memory and train nothing."""
    records = Records()
    train(load_training_data(dataset, config), config, records)
    taken = Counter((step["pass"], step["stage"], step["projection"]) for step in records.steps)
    stages = plan_stages(DataShape.of(dataset, config), config)
    planned = {(stage.pass_name, stage.shape.dim, kind) for stage in stages for kind in stage.kinds}
    first = {key for key in taken if key[0] == "first"}
    assert first == {key for key in planned if key[0] == "first"}
    for stage in stages:
        assert stage.steps.least <= stage.steps.expected <= stage.steps.most
        for (pass_name, dim, _), steps in taken.items():
            if (pass_name, dim) == (stage.pass_name, stage.shape.dim):
                assert stage.steps.least <= steps + skipped <= stage.steps.most
                assert (steps + skipped) % stage.epoch_steps == 0


def test_a_training_without_a_choice_takes_exactly_what_was_said(dataset: Dataset) -> None:
    config = small(guard=False, projection="rotation")
    trained = train(load_training_data(dataset, config), config, NullTracker())
    stages = plan_stages(DataShape.of(dataset, config), config)
    assert sum(stage.steps.expected for stage in stages) == trained.metrics["training"]["steps"]


def test_a_warm_start_takes_exactly_what_was_said(dataset: Dataset) -> None:
    config = small()
    data = load_training_data(dataset, config)
    first = train(data, config, NullTracker())
    champion = WarmStart.of(Model(first.stages, DIM, {"dims": [DIM, 32, 16]}, first.metrics), "champion")
    warm = train(data, config, NullTracker(), warm_start=champion)
    stages = plan_stages(DataShape.of(dataset, config), config, warm_start=champion)
    assert {stage.pass_name for stage in stages} == {"warm"}
    assert sum(stage.steps.expected for stage in stages) == warm.metrics["training"]["steps"]


def test_added_dims_are_planned_as_rotations_of_the_smallest_block(dataset: Dataset) -> None:
    config = small()
    base = train(load_training_data(dataset, config), config, NullTracker()).stages
    added = plan_stages(DataShape.of(dataset, config), small(dims=(16, 8)), base)
    assert {(stage.shape.d_in, stage.shape.dim, stage.kinds) for stage in added} == {(16, 8, ("rotation",))}


Counted = list[tuple[tuple[str, int, str], Step, int]]
"""Pass, dim and projection of each step, the step, and operations."""


@contextmanager
def counting() -> Iterator[Counted]:
    """Counts the operations of matrix products of every step of a candidate."""
    found: Counted = []
    whole = Candidate.train_step

    def step(candidate: Candidate, run: PassContext, step: Step, noise_I: torch.Tensor) -> None:
        with FlopCounterMode(display=False) as counter:
            whole(candidate, run, step, noise_I)
        key = (run.pass_name, candidate.stage.dim, candidate.kind)
        found.append((key, step, counter.get_total_flops()))

    with patch.object(Candidate, "train_step", step):
        yield found


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_has_the_products_that_were_said(name: str, dataset: Dataset) -> None:
    # alpha: sparse products are counted apart
    config = small(**{**SETTINGS[name], "epochs": 1, "alpha": 0.0})
    with counting() as steps:
        train(load_training_data(dataset, config), config, NullTracker())
    stages = plan_stages(DataShape.of(dataset, config), config)
    compared = 0
    for stage in stages:
        for kind in stage.kinds:
            own = [flops for key, _, flops in steps if key == (stage.pass_name, stage.shape.dim, kind)]
            products = step_products(stage.shape, kind, stage.rows, 1)
            said = sum(2 * rows * inner * columns for rows, inner, columns in products)
            if own:
                compared += 1
                # an epoch's last step is smaller: a mean of products is not the product of means
                assert said == pytest.approx(sum(own) / len(own), rel=0.1)
    assert compared


def test_a_step_has_the_rows_that_were_said(dataset: Dataset) -> None:
    config = small(alpha=0.1, top_k=3, refit=False)
    with counting() as steps:
        train(load_training_data(dataset, config), config, NullTracker())
    said = plan_stages(DataShape.of(dataset, config), config)[0].rows
    # the first step meets an empty memory
    seen = [step for _, step, _ in steps[len(steps) // 2 :]]
    assert said.queries == pytest.approx(sum(step.queries for step in seen) / len(seen), rel=0.05)
    assert said.docs == pytest.approx(sum(step.docs for step in seen) / len(seen), rel=0.05)
    assert said.pairs == pytest.approx(sum(len(step.ranked.query_P) for step in seen) / len(seen), rel=0.05)
    # neighbours of near anchors are often the same
    assert said.items == pytest.approx(sum(step.parts[2] for step in seen) / len(seen), rel=0.3)


def test_more_of_anything_takes_longer_and_more(dataset: Dataset) -> None:
    config = small(alpha=0.1)
    shape = DataShape.of(dataset, config)
    larger = [
        (DataShape(**{**vars(shape), "docs": 10 * shape.docs}), config),
        (DataShape(**{**vars(shape), "dev": 10 * shape.dev}), config),
        (shape, small(alpha=0.1, queue_size=1000, top_k=40)),
    ]
    for data, settings in larger:
        assert _seconds(data, settings, 1) > _seconds(shape, config, 1)
    # a worker holds a copy of dev's queries, and the memory, but none of the rows
    before, more_docs, more_dev, more_memory = (
        worker_bytes(d, c, plan_stages(d, c)) for d, c in [(shape, config), *larger]
    )
    assert before == more_docs
    assert min(more_dev, more_memory) > before
    assert _seconds(shape, small(alpha=0.1, batch_size=300, epochs=60), 2) < _seconds(
        shape, small(alpha=0.1, batch_size=300, epochs=60), 1
    )


def _seconds(data: DataShape, config: TrainConfig, workers: int) -> float:
    return sum(stage.seconds(data, config, workers, SPEED, SPEED).expected for stage in plan_stages(data, config))


def test_resident_rows_are_those_that_a_stage_and_the_next_one_need(dataset: Dataset) -> None:
    config = small(projection="rotation", refit=False)
    data = DataShape.of(dataset, config)
    rows = data.docs + data.queries
    # 128 -> 64 -> 32 -> 16: the rows, the first kept block, and the second while it is made
    held = rows * (128 + 64 + 32) + data.docs * 128
    assert resident_bytes(data, config, plan_stages(data, config)) == 4 * held


def test_a_product_takes_longer_the_larger_it_is() -> None:
    assert 0 < SPEED.product(64, 32, 32) < SPEED.product(64, 128, 128) < SPEED.product(640, 128, 128)
    assert SPEED.product(0, 10, 10) == 0
    assert SPEED.slowed(2).product(64, 64, 64) == pytest.approx(2 * SPEED.product(64, 64, 64))


def test_what_is_measured_is_a_speed() -> None:
    speed = measure_speed(64, DIM, 1, torch.device("cpu"), lambda: 1000)
    sizes, rates = zip(*speed.gemm, strict=True)
    assert sizes == pytest.approx([64, (64 * 128 * 128) ** (1 / 3)])
    for rate in (*rates, speed.bytes_per_s, speed.read_bytes_per_s):
        assert 0 < rate < float("inf")
