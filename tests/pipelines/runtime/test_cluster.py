from typing import Any

import pytest

from pipelines.runtime import cluster
from pipelines.runtime.settings import ClusterSettings


@pytest.mark.parametrize(
    ("changes", "cores", "address", "expected"),
    [
        ({}, 8, "", 2),
        ({}, 1, "", 1),
        ({}, 8, "10.0.0.1:6379", 1),
        ({"workers": "2"}, 8, "", 1),
        ({"workers": "1:2"}, 8, "", 1),
        ({"cpus_per_worker": 5}, 1, "10.0.0.1:6379", 5),
    ],
)
def test_one_worker_takes_two_cpus_of_a_machine_that_is_its_own(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], cores: int, address: str, expected: int
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "cpu_count", lambda: cores)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster.threads_of(ClusterSettings(**changes)) == expected
