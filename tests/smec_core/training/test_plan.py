"""The plan of a training against trainings, and the times that are taken of it."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from smec_core.config import PAPER_PRESET, TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.model.model import Model
from smec_core.training.context import TrainingData
from smec_core.training.plan import plan_training
from smec_core.training.rehearsal import SampledRows, rehearse
from smec_core.training.scanned import load_training_data
from smec_core.training.schedule import TrainingShape
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train
from smec_core.training.warm import WarmStart
from tests.builders import write_dataset
from tests.smec_core.generated import Records

DIM = 128


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


def sampled(data: TrainingData, rows: int) -> TrainingData:
    """The data with its first rows only, as a dry run has it."""
    few = []
    for table in (data.docs, data.queries):
        assert isinstance(table, ResidentRows)
        few.append(SampledRows(table.matrix_ND[:rows], table.rows, Node()))
    return TrainingData(few[0], few[1], data.train, data.dev)


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "many steps an epoch": {"batch_size": 16, "patience": 2},
    "with memory": {"unsupervised": "cosines", "alpha": 0.1},
    "pca": {"init": "pca"},
    "paper": PAPER_PRESET,
    "listwise in all stages": {"alpha_whole": 0.1},
    "all dims at once": {"schedule": "parallel"},
    "parallel": {"schedule": "parallel", "projection": "linear", "init": "pca"},
    "rotations": {"projection": "rotation"},
    "selection": {"projection": "selection"},
    "residual_mlp": {"projection": "residual_mlp", "hidden_dim": 24},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_takes_the_steps_that_its_plan_allows(name: str, dataset: Dataset) -> None:
    _check_steps(dataset, small(**SETTINGS[name]))


def test_a_training_without_judgements_takes_the_steps_that_its_plan_allows(unjudged: Dataset) -> None:
    _check_steps(unjudged, small(), skipped=1)


def _check_steps(dataset: Dataset, config: TrainConfig, skipped: int = 0) -> None:
    """`skipped` steps of a stage meet an empty memory and train nothing."""
    records, data = Records(), load_training_data(dataset, config)
    train(data, config, records)
    taken = Counter((step["pass"], step["stage"], step["projection"]) for step in records.steps)
    plan = plan_training(data.shape(config), config)
    planned = {(stage.pass_name, stage.dim, stage.projection) for stage in plan}
    assert {key for key in taken if key[0] == "first"} == {key for key in planned if key[0] == "first"}
    assert taken.keys() <= planned
    times = rehearse(sampled(data, 100), config, plan)
    assert [time.plan for time in times] == plan
    for time in times:
        assert time.step > 0
        assert time.seconds[0] <= time.seconds[1]
        assert (time.score > 0) == (config.guard and time.plan.pass_name == "first")
        least, most = time.steps
        for (pass_name, dim, _), steps in taken.items():
            if (pass_name, dim) == (time.plan.pass_name, time.plan.dim):
                assert least <= steps + skipped <= most
                assert (steps + skipped) % time.plan.rhythm.epoch_steps == 0


def test_a_training_without_a_choice_takes_exactly_the_planned_steps(dataset: Dataset) -> None:
    config = small(guard=False, projection="rotation")
    data = load_training_data(dataset, config)
    trained = train(data, config, NullTracker())
    plan = plan_training(data.shape(config), config)
    planned = sum(stage.rhythm.most_steps for stage in plan)
    assert planned == trained.metrics["training"]["steps"]


def test_a_warm_start_takes_exactly_the_planned_steps(dataset: Dataset) -> None:
    config = small()
    data = load_training_data(dataset, config)
    first = train(data, config, NullTracker())
    champion = WarmStart.of(Model(first.stages, DIM, {"dims": [DIM, 32, 16]}, first.metrics), "champion")
    warm = train(data, config, NullTracker(), warm_start=champion)
    plan = plan_training(data.shape(config), config, warm=champion)
    assert {stage.pass_name for stage in plan} == {"warm"}
    times = rehearse(sampled(data, 100), config, plan)
    assert {time.steps[0] == time.steps[1] for time in times} == {True}
    assert sum(time.steps[0] for time in times) == warm.metrics["training"]["steps"]


def test_added_dims_are_planned_as_rotations_of_the_smallest_block(dataset: Dataset) -> None:
    config = small()
    data = load_training_data(dataset, config)
    base = train(data, config, NullTracker()).stages
    added = plan_training(data.shape(config), small(dims=(16, 8)), base)
    assert {(stage.d_in, stage.dim, stage.projection) for stage in added} == {(16, 8, "rotation")}


def test_a_plan_says_what_each_projection_learns(dataset: Dataset) -> None:
    config = small()
    shape = load_training_data(dataset, config).shape(config)
    whole, half, *_ = plan_training(shape, config)
    assert (whole.projection, half.projection) == ("linear", "rotation")
    [term] = whole.losses
    assert (term.prefixes, term.is_gated) == (((DIM, 1.0),), False)
    # a rotation changes nothing at its whole block
    [gated] = half.losses
    assert (gated.prefixes, gated.is_gated) == (((64, 1.0), (32, 1.0), (16, 1.0)), True)
    assert [term.is_gated for term in replace(half, projection="linear").losses] == [True, False]
    [parallel, _] = plan_training(shape, small(schedule="parallel"))
    assert [width for width, _ in replace(parallel, projection="rotation").losses[0].prefixes] == [32, 16]
    assert [width for width, _ in parallel.losses[0].prefixes] == [DIM, 32, 16]


def test_a_rehearsal_trains_on_few_rows_and_leaves_no_trace(dataset: Dataset) -> None:
    config = small(alpha=0.1)
    data = load_training_data(dataset, config)
    state = torch.get_rng_state()
    rehearse(sampled(data, 50), config, plan_training(data.shape(config), config))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "judged", "starts"),
    [
        ({}, True, ["closed", "identity", "identity"]),
        ({"epochs": 6}, True, ["closed", "ordered", "ordered"]),
        # without a closed form there is an order to find
        ({}, False, ["pca", "pca"]),
        ({"projection": "rotation"}, True, ["pca", "pca"]),
        ({"init": "pca"}, True, ["identity", "pca", "pca"]),
    ],
)
def test_stages_that_are_not_trained_start_in_order(changes: dict[str, Any], judged: bool, starts: list[str]) -> None:
    config = TrainConfig.model_validate({"dims": (4, 2), "epochs": 0} | changes)
    plan = plan_training(TrainingShape(8, judged), config)
    assert [stage.start for stage in plan if stage.pass_name == "first"] == starts


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("init", ["closed", "pca", "random"])
@pytest.mark.parametrize(
    ("schedule", "judged", "kinds"),
    [
        ("sequential", True, ["linear", "rotation", "rotation"]),
        ("sequential", False, ["rotation", "rotation"]),
        ("parallel", True, ["linear"]),
        ("parallel", False, ["rotation"]),
    ],
)
def test_auto_is_one_projection_a_stage(schedule: str, judged: bool, kinds: list[str], init: str, guard: bool) -> None:
    config = TrainConfig.model_validate({"dims": (4, 2), "schedule": schedule, "init": init, "guard": guard})
    plan = plan_training(TrainingShape(8, judged), config)
    assert [stage.projection for stage in plan if stage.pass_name == "first"] == kinds


def test_without_judgements_all_dims_alone_leave_nothing_to_train() -> None:
    config = TrainConfig(dims=(8,), schedule="parallel")
    assert plan_training(TrainingShape(8, labelled=False), config) == []
    [stage, _] = plan_training(TrainingShape(8, labelled=True), config)
    assert stage.projection == "linear"
