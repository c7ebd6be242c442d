"""Every stage is timed, whatever share of the steps its start would leave it."""

from typing import Any

import pytest

from benchmarks.step_time import measure, random_data
from smec_core.config import TrainConfig
from smec_core.distributed.resident import Node


@pytest.mark.training
@pytest.mark.parametrize("changes", [{}, {"batch_size": 1024}, {"init": "pca"}], ids=["closed", "one step", "pca"])
def test_stages_have_their_steps_whatever_they_start_from(changes: dict[str, Any]) -> None:
    config = TrainConfig(**({"dims": (8, 4), "batch_size": 64, "negatives": 16} | changes))
    data = random_data(300, 300, 16, Node())
    rows = measure(data, config, 2)
    assert [row["stage"] for row in rows] == ["16 -> 16", "16 -> 8", "8 -> 4"]
    assert all(row["step"] > 0 for row in rows)
