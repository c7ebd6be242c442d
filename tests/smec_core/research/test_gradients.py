"""What is said of gradients, against gradients taken by hand."""

import pytest
import torch
import torch.nn.functional as F

from smec_core.config import TrainConfig
from smec_core.research.gradients import gradient_by_dim, gradient_variance
from tests.smec_core.generated import Generated, generate

CONFIG = TrainConfig.model_validate(
    {"dims": "8,4", "epochs": 3, "batch_size": 64, "negatives": 32, "queue_size": 200, "lr": 0.01}
)


@pytest.fixture(scope="module")
def data() -> Generated:
    return generate(torch.arange(8), dim=24, docs=300, queries=400, noise_scale=1.0, mixed=True)


def test_both_schedules_are_watched_epoch_by_epoch(data: Generated) -> None:
    records = gradient_variance(data.training_data(), CONFIG)
    for schedule, epochs in (("parallel", 4 * 3), ("sequential", 3)):
        some = [one for one in records if one["schedule"] == schedule]
        assert {(one["dim"], one["block"]) for one in some} == {(8, "0-4"), (8, "4-8")}
        assert {one["epoch"] for one in some} <= set(range(epochs)) and any(one["epoch"] == 0 for one in some)
        assert all(one["variance"] > 0 and one["mean_gradient"] > 0 for one in some)
    # MRL has three losses on the first dims, SMRL two
    first = {(one["schedule"], one["block"]): one for one in records if one["epoch"] == 0}
    assert first["parallel", "0-4"]["mean_gradient"] > first["sequential", "0-4"]["mean_gradient"]


def test_delta_is_the_norm_of_the_first_dims(data: Generated) -> None:
    by_dim = {one["dim"]: one for one in gradient_by_dim(data.training_data(), CONFIG)}
    assert list(by_dim) == [24, 8, 4]
    assert by_dim[24]["delta"] == pytest.approx(1, abs=1e-5)
    identity = gradient_by_dim(data.training_data(), CONFIG.model_copy(update={"init": "identity"}))
    both_RD = torch.cat([data.docs_ND, data.queries_QD])
    assert identity[2]["delta"] == pytest.approx(F.normalize(both_RD, dim=1)[:, :4].norm(dim=1).mean().item(), abs=0.02)
    assert all(one["inverse_square"] == pytest.approx(one["delta"] ** -2) for one in identity)
