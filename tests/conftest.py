"""Shared fixtures: the data folder, one Ray cluster for all tests, and an MLflow store of the test run's own."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Ray reads these once, when it is first imported; its workers and the processes that tests start inherit them.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# A cluster that the developer happens to be connected to is not the tests' to use.
os.environ.pop("RAY_ADDRESS", None)
# One thread a process: tests run several at once, and figures do not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """Finds a dataset of the data folder by name: $SMEC_DATA, by default ../shared/data beside the repository.

    Without it a test is skipped, or fails where SMEC_REQUIRE_DATA=1 says that the data must be there.
    """
    root = Path(os.environ.get("SMEC_DATA", REPOSITORY / ".." / "shared" / "data"))

    def find(name: str) -> Path:
        folder = root / name
        if not folder.is_dir():
            reason = f"no dataset {name!r} in {root}; point SMEC_DATA at the folder that holds it"
            if os.environ.get("SMEC_REQUIRE_DATA") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        return folder

    return find


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with four logical CPUs, shared by all tests that ask for it."""
    import ray

    # "local": never the cluster that a developer may have running on this machine
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def _mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield
