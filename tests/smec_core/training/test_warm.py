"""Trainings that start at a model in service, and those whose queries must still find what it compressed."""

import dataclasses
import re
from typing import Any

import pytest
import torch

from smec_core.config import TrainConfig
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage, Stage, apply_chain
from smec_core.model.model import Model
from smec_core.training.context import TrainingData
from smec_core.training.schedule import prefix_dims
from smec_core.training.tracker import NullTracker
from smec_core.training.trained import Trained
from smec_core.training.trainer import Hooks, train
from smec_core.training.warm import WarmStart
from tests.smec_core.generated import Generated, Records, generate, ndcg_of

DIM, DIMS = 24, (8, 4)
SMALL = dict(dims=DIMS, epochs=5, lr=1e-2, negatives=64)
Champion = tuple[Model, WarmStart]


def small(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**SMALL, **changes})


def model_of(trained: Trained, dims: tuple[int, ...] = DIMS) -> Model:
    return Model(trained.stages, DIM, {"dims": prefix_dims(DIM, dims)}, trained.metrics)


def stage_of(projection: Any, d_in: int, dim: int) -> FrozenStage:
    generator = torch.Generator().manual_seed(d_in)
    weight_II = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator))[0]
    stage = Stage(projection, dim, weight_II, torch.randn(d_in, generator=generator), 6)
    for parameter in stage.projection_parameters()[1:]:
        torch.nn.init.normal_(parameter, generator=generator)
    return stage.freeze(in_place=True)


def untrained(*kinds: Any, dims: tuple[int, ...] = DIMS, epochs: int = 1) -> WarmStart:
    """A champion of random stages: 24 -> 24 of the first kind, then by halves to 4."""
    shapes = [(24, 24), (24, 12), (12, 8), (8, 4)][-len(kinds) :]
    stages = [stage_of(kind, *shape) for kind, shape in zip(kinds, shapes, strict=True)]
    return WarmStart(DIM, (DIM, *dims), stages, [epochs] * len(stages))


@pytest.fixture(scope="module")
def data() -> Generated:
    """300 documents in 24 dims; a third of the space, at an unknown angle, says which queries are about them."""
    return generate(torch.arange(8), DIM, docs=300, queries=600, noise_scale=1.0, mixed=True)


def part_of(data: Generated, share: float) -> TrainingData:
    """The data with a share of its train queries."""
    given = data.training_data()
    assert given.train is not None
    keep_Q = torch.arange(len(given.train)).numpy() < share * len(given.train)
    return dataclasses.replace(given, train=given.train.select(keep_Q))


@pytest.fixture(scope="module")
def champion(data: Generated) -> Champion:
    """A model that has learnt from a sixth of the train queries."""
    # from a closed form it would know most of what there is to learn
    trained = train(part_of(data, 1 / 6), small(init="pca"), NullTracker())
    model = model_of(trained)
    return model, WarmStart.of(model, "champion")


def score(data: Generated, queries: Model, docs: Model) -> dict[int, float]:
    return ndcg_of(docs.encode(data.docs_ND), queries.encode(data.queries_QD), data.test, [DIM, *DIMS])


@pytest.fixture(scope="module")
def challengers(data: Generated, champion: Champion) -> dict[float, Model]:
    """Warm starts on all train queries, long enough to lead far away, by the weight of compatibility."""
    found = {}
    warm_start = dataclasses.replace(champion[1], epochs=[20] * 4)
    for weight in (0.0, 1.0):
        config = small(epochs=20, compatible=weight)
        trained = train(data.training_data(), config, NullTracker(), warm_start=warm_start)
        found[weight] = model_of(trained)
    return found


def test_a_warm_start_learns_from_what_is_new(
    data: Generated, champion: Champion, challengers: dict[float, Model]
) -> None:
    old = score(data, champion[0], champion[0])
    for model in challengers.values():
        new = score(data, model, model)
        assert all(new[dim] > old[dim] + 0.2 for dim in (DIM, *DIMS)), (old, new)


def test_compatible_queries_find_old_documents_at_every_prefix(
    data: Generated, champion: Champion, challengers: dict[float, Model]
) -> None:
    old = score(data, champion[0], champion[0])
    with_old = {weight: score(data, model, champion[0]) for weight, model in challengers.items()}
    assert all(with_old[1.0][dim] > max(old[dim], with_old[0.0][dim]) for dim in (DIM, *DIMS)), (old, with_old)
    assert with_old[0.0][DIM] < old[DIM] < with_old[1.0][DIM] - 0.1


def test_there_is_one_pass_of_the_champions_kinds_and_at_least_a_quarter_of_the_epochs(
    data: Generated, champion: Champion
) -> None:
    records, lines = Records(), list[str]()
    trained = train(data.training_data(), small(), records, Hooks(say=lines.append), warm_start=champion[1])
    assert {record["pass"] for record in records.all} == {"warm"}
    assert not records.epochs, "dev cannot tell it from its start"
    assert min(champion[1].epochs) == 0
    kinds = [stage.projection for stage in champion[1].stages]
    plan = [(kind, max(epochs, 2)) for kind, epochs in zip(kinds, champion[1].epochs, strict=True)]  # of 5
    assert [(stage["projection"], stage["epochs"]) for stage in trained.metrics["stages"]] == plan
    assert lines[0].startswith("warm pass, stage 1 of 4: 24 -> 24 dims, linear, ")
    assert trained.metrics["dev"] == {}
    # of 360 train and 90 dev queries
    assert trained.metrics["training"]["steps"] == 4 * sum(epochs for _, epochs in plan)
    following = WarmStart.of(model_of(trained), "challenger")
    assert [stage.projection for stage in following.stages] == kinds
    assert following.epochs == [epochs for _, epochs in plan]


def test_no_stage_takes_more_epochs_than_the_settings_have(data: Generated, champion: Champion) -> None:
    many = dataclasses.replace(champion[1], epochs=[300] * 4)
    trained = train(data.training_data(), small(epochs=2), NullTracker(), warm_start=many)
    assert [stage["epochs"] for stage in trained.metrics["stages"]] == [2] * 4


@pytest.mark.parametrize("kind", ["linear", "rotation", "residual_mlp"])
def test_a_stage_starts_bit_for_bit_where_the_trained_one_stands(kind: str) -> None:
    old = stage_of(kind, 24, 12)
    stage = Stage.resumed(old).freeze(in_place=True)
    assert (stage.dim, stage.projection) == (old.dim, old.projection)
    assert stage.tensors.keys() == old.tensors.keys()
    assert all(torch.equal(tensor, old.tensors[name]) for name, tensor in stage.tensors.items())


@pytest.mark.parametrize("lookahead", [0, 1])
def test_every_kind_goes_on_in_its_places_and_rotations_stay_rotations(data: Generated, lookahead: float) -> None:
    warm_start = untrained("linear", "rotation", "residual_mlp", "rotation")
    config = small(lookahead=lookahead, lr=1e-4, compatible=1)
    trained = train(data.training_data(), config, NullTracker(), warm_start=warm_start)
    for stage, old in zip(trained.stages, warm_start.stages, strict=True):
        weight_II = stage.tensors["weight"]
        assert not torch.equal(weight_II, old.tensors["weight"])
        torch.testing.assert_close(weight_II, old.tensors["weight"], atol=5e-3, rtol=0)
        if stage.projection == "rotation":
            torch.testing.assert_close(weight_II @ weight_II.T, torch.eye(stage.d_in), atol=1e-5, rtol=0)
    assert not torch.equal(trained.stages[2].tensors["down"], warm_start.stages[2].tensors["down"])


def test_rounding_does_not_add_up_over_warm_starts(champion: Champion) -> None:
    rotations = [number for number, stage in enumerate(champion[0].stages) if stage.projection == "rotation"]
    assert rotations
    stages = list(champion[0].stages)
    for number in rotations:
        tensors = stages[number].tensors
        stages[number] = FrozenStage(stages[number].dim, "rotation", {**tensors, "weight": tensors["weight"] * 1.0005})
    told = [{**stage, "epochs": 1} for stage in champion[0].metrics["stages"]]
    blurred = WarmStart.of(Model(stages, DIM, champion[0].config, {"stages": told}), "champion")
    for number in rotations:
        weight_II = blurred.stages[number].tensors["weight"]
        torch.testing.assert_close(weight_II @ weight_II.T, torch.eye(len(weight_II)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "kinds", [["linear", "rotation", "linear", "rotation"], ["linear", "residual_mlp", "linear", "linear"]]
)
def test_old_documents_are_those_of_the_champions_chain(data: Generated, kinds: list[str]) -> None:
    warm_start, x_ND = untrained(*kinds), data.docs_ND[:50]
    for number, d_in in enumerate((24, 24, 12, 8)):
        expected = apply_chain(warm_start.stages[: number + 1], x_ND)[:, :d_in]
        found = warm_start.project(number, torch.device("cpu"))(x_ND)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_all_dims_at_once_go_on_as_one_stage(data: Generated) -> None:
    config = small(schedule="parallel", projection="linear", init="pca")
    before = model_of(train(part_of(data, 1 / 6), config, NullTracker()))
    warm_start = WarmStart.of(before, "champion")
    assert len(warm_start.stages) == 1
    config = config.model_copy(update={"compatible": 1.0})
    after = model_of(train(data.training_data(), config, NullTracker(), warm_start=warm_start))
    old, new, across = score(data, before, before), score(data, after, after), score(data, after, before)
    assert all(min(new[dim], across[dim]) > old[dim] for dim in DIMS)


def test_without_judgements_neighbours_go_on_being_learnt(data: Generated) -> None:
    config = small(top_k=10, queue_size=200)
    before = train(data.training_data(judged=False), config, NullTracker())
    warm_start = dataclasses.replace(WarmStart.of(model_of(before), "champion"), epochs=[2] * len(before.stages))
    records = Records()
    after = train(data.training_data(judged=False), config, records, warm_start=warm_start)
    assert [stage["epochs"] for stage in after.metrics["stages"]] == [2] * len(before.stages)
    assert records.steps[-1]["unsup_loss"]
    with pytest.raises(InputError, match="compatible: needs judgements to learn from, or leave it 0"):
        config = config.model_copy(update={"compatible": 1.0})
        train(data.training_data(judged=False), config, NullTracker(), warm_start=warm_start)


FREE = untrained("linear", "linear", "linear", "linear")
MIXED = untrained("linear", "linear", "linear", "rotation")


@pytest.mark.parametrize(
    ("warm_start", "changes", "message"),
    [
        (None, dict(compatible=1), "compatible: needs a model to be compatible with; name it with warm_start"),
        (FREE, dict(dims=(8, 2)), "dims: a warm start keeps the dims of its model, 24, 8, 4; give these"),
        (
            untrained("rotation", "rotation", "rotation"),
            {},
            "the model has the stages 24->12 12->8 8->4, these settings with judgements make 24->24 24->12 12->8 8->4",
        ),
        (FREE, dict(schedule="parallel"), "take schedule and projection from its config.json"),
        (MIXED, dict(projection="linear"), "projection: a warm start keeps the kinds of its model, linear, rotation"),
        (dataclasses.replace(FREE, input_dim=32), {}, "warm_start: the model takes 32 dims, the data has 24"),
    ],
)
def test_a_champion_that_does_not_fit_is_refused(
    data: Generated, warm_start: WarmStart | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        train(data.training_data(), small(**changes), NullTracker(), warm_start=warm_start)


def test_a_base_and_a_champion_are_not_for_one_training(data: Generated, champion: Champion) -> None:
    with pytest.raises(InputError, match="warm_start: starts all stages anew"):
        train(data.training_data(), small(dims=(2,)), NullTracker(), base=champion[0].stages, warm_start=champion[1])


def test_a_model_that_does_not_say_how_it_came_about_is_no_champion(data: Generated, champion: Champion) -> None:
    model = champion[0]
    with pytest.raises(InputError, match=r"old/metrics.json does not tell how long each of the 4 stages"):
        WarmStart.of(Model(model.stages, DIM, model.config, {}), "old")
    config = small(dims=(2,))
    added = train(data.training_data(), config, NullTracker(), base=model.stages)
    extended = model.extended(added.stages[4:], {"dims": [2]}, added.metrics)
    with pytest.raises(InputError, match="the model that it extends has its own"):
        WarmStart.of(extended, "old")
    chosen = Model([stage_of("selection", 24, 8)], DIM, {"dims": [24, 8]}, {})
    with pytest.raises(InputError, match="warm_start: old only selects dims"):
        WarmStart.of(chosen, "old")
    with pytest.raises(InputError, match="warm_start: old has no stages"):
        WarmStart.of(Model([], DIM, {"dims": [24]}, {}), "old")
