"""The cluster on which the jobs of a test module run."""

from collections.abc import Iterator

import pytest

from tests.deploy.job_cluster import Cluster, start_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A running Ray cluster that asks for a token."""
    with start_cluster() as running:
        yield running
