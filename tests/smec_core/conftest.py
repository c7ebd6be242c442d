"""Processes that the tests of several ranks share: starting them takes seconds."""

from collections.abc import Iterator

import pytest

from tests.smec_core.ranks import Ranks, start_ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with start_ranks(tmp_path_factory.mktemp("ranks")) as started:
        yield started
