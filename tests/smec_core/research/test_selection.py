"""Which dims ADS keeps, where it is known which matter."""

import torch

from smec_core.config import TrainConfig
from smec_core.research.selection import achievement_rates
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
