"""Which stages the user's dims ask for, and the learning rates of a stage."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smec_core.config import TrainConfig
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage
from smec_core.training.plan import plan_training
from smec_core.training.sampling import steps_per_epoch
from smec_core.training.schedule import Rhythm, TrainingShape, chain_dims, one_cycle, prefix_dims
from smec_core.training.warm import WarmStart


@pytest.mark.parametrize(
    ("input_dim", "dims", "chain"),
    [
        (768, [100], [768, 384, 192, 100]),
        (768, [384, 192, 96], [768, 384, 192, 96]),
        (768, [96, 384, 192], [768, 384, 192, 96]),
        (768, [768, 96], [768, 384, 192, 96]),
        (768, [700, 690], [768, 700, 690]),
        (1000, [100], [1000, 500, 250, 125, 100]),
        (5, [1], [5, 2, 1]),
        (64, [64], [64]),
    ],
)
def test_the_chain_goes_by_halves_to_every_dim(input_dim: int, dims: list[int], chain: list[int]) -> None:
    assert chain_dims(input_dim, dims) == chain


@settings(deadline=None, derandomize=True, max_examples=100)
@given(input_dim=st.integers(2, 4096), data=st.data())
def test_no_step_of_a_chain_is_longer_than_a_half(input_dim: int, data: st.DataObject) -> None:
    dims = data.draw(st.lists(st.integers(1, input_dim), min_size=1, max_size=6, unique=True))
    chain = chain_dims(input_dim, dims)
    assert chain[0] == input_dim
    assert set(dims) <= set(chain)
    assert chain[-1] == min(dims)
    assert all(below < above <= 2 * below + 1 for above, below in itertools.pairwise(chain))
    assert prefix_dims(input_dim, dims) == tuple(sorted({input_dim, *dims}, reverse=True))


def test_a_dim_above_the_data_is_refused() -> None:
    with pytest.raises(InputError, match=r"dims: 800 is more than the 768 dims of the data"):
        chain_dims(768, [96, 800])


@pytest.mark.parametrize(
    ("epochs", "times", "most", "patience"),
    [(20, 1, 20, 7), (20, 0.2, 4, 2), (20, 0.4, 8, 3), (5, 0.2, 2, 2), (1, 0.2, 1, 2), (0, 0.2, 0, 2), (20, 4, 80, 27)],
)
def test_a_stage_may_take_a_share_of_a_full_one(epochs: int, times: float, most: int, patience: int) -> None:
    rhythm = Rhythm.of(TrainingShape(24, True, epoch_steps=3), TrainConfig(dims=(4,), epochs=epochs), times)
    assert (rhythm.epochs, rhythm.patience) == (most, patience)


def test_a_chain_from_a_closed_form_has_its_own_lengths_but_not_in_a_warm_start() -> None:
    shape, config = TrainingShape(32, True), TrainConfig(dims=(16, 8, 4), epochs=20)
    plan = [stage for stage in plan_training(shape, config) if stage.pass_name == "first"]
    assert [stage.rhythm.epochs for stage in plan] == [80, 4, 8, 8]
    stages = [FrozenStage(stage.dim, stage.projection, {"weight": torch.eye(stage.d_in)}) for stage in plan]
    warm = WarmStart(32, (32, 16, 8, 4), stages, [20] * 4)
    assert [stage.rhythm.epochs for stage in plan_training(shape, config, warm=warm)] == [20] * 4


@pytest.mark.parametrize(("items", "batch_size", "steps"), [(1, 128, 1), (128, 128, 1), (129, 128, 2)])
def test_an_epoch_has_a_last_short_step(items: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(items, batch_size) == steps


@settings(deadline=None, derandomize=True, max_examples=100)
@given(epochs=st.integers(1, 20), epoch_steps=st.integers(1, 20))
@example(epochs=3, epoch_steps=3)
@example(epochs=1, epoch_steps=1)
def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing(epochs: int, epoch_steps: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 0.5}])
    schedule = one_cycle(optimizer, epochs, epoch_steps)
    rates = []
    for _ in range(epochs * epoch_steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 0.5 for rate in rates)
    if len(rates) >= 20:
        assert max(rates) > 0.45
        assert rates.index(max(rates)) <= 0.15 * len(rates)
        assert rates[-1] < 0.05
