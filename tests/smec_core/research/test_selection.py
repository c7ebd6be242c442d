"""Which dims ADS keeps, where it is known which matter."""

import numpy as np
import pytest
import torch

from smec_core.config import TrainConfig
from smec_core.research.selection import achievement_rate, achievement_rates, ware
from tests.smec_core.generated import generate


def test_ads_keeps_what_matters_and_truncation_does_not() -> None:
    # the dims that matter are the last ones
    data = generate(torch.arange(12, 16), dim=16, docs=300, queries=400, noise_scale=0.3, mixed=False)
    config = TrainConfig.model_validate(
        {"dims": "8,4", "epochs": 40, "batch_size": 64, "negatives": 32, "queue_size": 200, "lr": 0.01}
    )
    records = achievement_rates(data.training_data(), config)
    rate, ndcg = (
        {(one["dims"], one["method"], one["dim"]): one[value] for one in records} for value in ("rate", "ndcg@10")
    )
    assert len(rate) == 2 * 5 * 2
    assert rate["as they are", "WARE", 4] == rate["rotated", "WARE", 8] == 1
    assert ndcg["as they are", "ADS", 4] == ndcg["as they are", "WARE", 4] > ndcg["as they are", "truncation", 4] + 0.3
    assert rate["as they are", "truncation", 4] == 0
    assert rate["as they are", "ADS", 4] == 1
    assert rate["as they are", "PCA", 4] == rate["rotated", "PCA", 4] == 1


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_ware_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    a_MD, b_MD = rng.normal(size=(2, 20, 6))
    expected = []
    for dim in range(6):
        errors = []
        for a, b in zip(a_MD, b_MD, strict=True):
            before, after = cosine(a, b), cosine(np.delete(a, dim), np.delete(b, dim))
            errors.append(abs(before - after) / abs(after))
        expected.append(np.mean(errors))
    found = ware(torch.from_numpy(a_MD), torch.from_numpy(b_MD))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_an_unused_dim_has_no_importance() -> None:
    a_MD, b_MD = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    a_MD[:, 2] = b_MD[:, 2] = 0
    ware_D = ware(a_MD, b_MD)
    assert ware_D[2] == pytest.approx(0, abs=1e-6)
    assert (ware_D[[0, 1, 3]] > 1e-3).all()


def test_pairs_that_live_in_one_dim_give_finite_figures() -> None:
    x_MD = torch.eye(3)[:1]
    assert torch.isfinite(ware(x_MD, x_MD)).all()


def test_achievement_rate_is_the_share_of_the_best_dims_kept() -> None:
    ware_D = torch.tensor([0.1, 0.5, 0.2, 0.9])
    assert achievement_rate(torch.tensor([1, 3]), ware_D) == 1
    assert achievement_rate(torch.tensor([3, 0]), ware_D) == 0.5
    assert achievement_rate(torch.tensor([0, 2]), ware_D) == 0
