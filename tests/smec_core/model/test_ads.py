"""Adaptive dimension selection: its straight-through gate, and that it finds the dims that matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.config import TrainConfig
from smec_core.model.adapter import fold
from smec_core.model.ads import gumbel, initial_logits, sample_selection
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train
from tests.smec_core.generated import generate

DIM = 12


def logits_of(seed: int) -> torch.Tensor:
    return 2 * torch.randn(DIM, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=st.integers(0, 10_000), dim=st.integers(1, DIM))
def test_without_noise_the_strongest_logits_are_kept(seed: int, dim: int) -> None:
    logits_I = logits_of(seed)
    order, _ = sample_selection(logits_I, dim, 1.0, torch.zeros(DIM))
    assert order.tolist() == logits_I.argsort(descending=True).tolist()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=st.integers(0, 10_000), dim=st.integers(1, DIM), tau=st.sampled_from([0.01, 0.1, 10.0, 100.0]))
def test_tau_never_changes_which_dims_are_kept(seed: int, dim: int, tau: float) -> None:
    logits_I, noise_I = logits_of(seed), gumbel(DIM, torch.Generator().manual_seed(seed))
    order, _ = sample_selection(logits_I, dim, tau, noise_I)
    at_one, _ = sample_selection(logits_I, dim, 1.0, noise_I)
    assert set(order[:dim].tolist()) == set(at_one[:dim].tolist())


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_gate_is_one_forward_and_a_softmax_backward(tau: float) -> None:
    logits_I = logits_of(0).requires_grad_()
    noise_I = gumbel(DIM, torch.Generator().manual_seed(1))
    value_I = torch.randn(DIM, generator=torch.Generator().manual_seed(2))
    dim = 4

    order, gate_d = sample_selection(logits_I, dim, tau, noise_I)
    assert sorted(order.tolist()) == list(range(DIM))
    assert gate_d.tolist() == [1.0] * dim

    (gate_d * value_I[order[:dim]]).sum().backward()
    # the relaxed selection d * softmax((w + noise) / tau), by hand: every logit moves, the dropped ones too
    soft_I = torch.softmax((logits_I.detach() + noise_I) / tau, 0)
    kept = order[:dim]
    total = (soft_I[kept] * value_I[kept]).sum()
    is_kept_I = torch.isin(torch.arange(DIM), kept).float()
    expected_I = dim / tau * soft_I * (is_kept_I * value_I - total)
    assert logits_I.grad is not None
    assert (logits_I.grad != 0).all()
    torch.testing.assert_close(logits_I.grad, expected_I)


def test_noise_explores_and_comes_from_the_generator() -> None:
    logits_I = initial_logits(DIM, ordered=False)
    generator = torch.Generator().manual_seed(0)
    kept: set[int] = set()
    for _ in range(50):
        order, _ = sample_selection(logits_I, 3, 1.0, gumbel(DIM, generator))
        kept |= set(order[:3].tolist())
    assert kept == set(range(DIM))
    one, again = (gumbel(DIM, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, again)
    # mean and variance of the standard Gumbel distribution
    many = gumbel(20_000, generator)
    assert many.mean().item() == pytest.approx(0.577, abs=0.05)
    assert many.var().item() == pytest.approx(1.645, abs=0.1)


def test_selection_finds_the_informative_dims() -> None:
    dim, kept_dim = 48, 16
    informative = torch.randperm(dim, generator=torch.Generator().manual_seed(100))[:kept_dim]
    data = generate(informative, dim, docs=400, queries=500, noise_scale=1.0, mixed=False)

    config = TrainConfig(dims=(kept_dim,), projection="selection")
    trained = train(data.training_data(), config, NullTracker())

    matrix_DD = fold(trained.stages, dim)
    assert matrix_DD is not None
    # every output is one of the inputs as it is
    assert torch.equal(matrix_DD.max(dim=1)[0], torch.ones(dim))
    assert matrix_DD.count_nonzero() == dim
    found = torch.isin(matrix_DD[:kept_dim].argmax(1), informative).double().mean().item()
    truncated = torch.isin(torch.arange(kept_dim), informative).double().mean().item()
    assert found >= 0.9
    # what truncation keeps of them is left to chance: about a third
    assert truncated < 0.5
