"""A series retrained by jobs on a real cluster that asks for a token, with a real MLflow server: one story."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from smec_core.data.parquet import write_embeddings
from tests.deploy.job_cluster import Cluster
from tests.pipelines.retrain.series import Series
from tests.pipelines.tracking.servers import serving

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """A server with a database, which also keeps the artifacts."""
    backend = ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    with serving(["server", *backend, "--artifacts-destination", str(tmp_path / "artifacts")], tmp_path / "mlflow") as (
        address,
        _,
    ):
        yield f"http://{address}"


def test_first_model_nothing_new_new_data_bad_data_and_rollback(
    cluster: Cluster, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    series = Series(tmp_path / "series")
    env = cluster.client_env | {"MLFLOW_TRACKING_URI": mlflow_server}

    def job(*command: str, id: str | None = None) -> tuple[int, str]:
        started, named = time.monotonic(), [] if id is None else ["--id", id]
        submitted = cluster.submit(*named, "--", *command, "--config", str(series.config), cwd=tmp_path, env=env)
        said = submitted.stdout + submitted.stderr
        print(f"{command}: exit code {submitted.returncode} after {time.monotonic() - started:.1f} s\n{said}")
        return submitted.returncode, said

    def in_force() -> tuple[str, str]:
        champion = series.champion
        assert champion is not None
        assert series.check_whole() == champion.tags["smec.model_fingerprint"]
        return series.version, str(champion.version)

    series.judge(0.6)
    assert job("retrain")[0] == 0
    assert in_force() == ("v0001", "1")

    code, said = job("retrain")
    assert code == 0
    assert "there is nothing to do" in said
    assert in_force() == ("v0001", "1")

    series.judge(1)
    assert job("retrain")[0] == 0
    assert in_force() == ("v0002", "2")

    for shuffled in (("train",), ("train", "test")):
        series.judge(1, shuffled)
        code, said = job("retrain", id="-".join(shuffled))
        assert code == 3
        assert "REFUSED: " in said
        assert in_force() == ("v0002", "2")
    # a scheduler that has lost the answer asks again, and gets the same
    code, said = job("retrain", id="train-test")
    assert code == 3
    assert "job train-test is done already" in said

    series.judge(1)
    broken = series.data / "corpus/part-1.parquet"
    table = pq.read_table(broken)
    x_ND = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).copy()
    x_ND[7, 3] = np.nan
    write_embeddings(str(broken), table["id"].to_pylist(), x_ND)
    code, said = job("retrain")
    assert code == 2
    assert f"{broken}: row 7, column embedding" in said
    assert "Traceback" not in said
    assert in_force() == ("v0002", "2")

    assert job("rollback")[0] == 0
    assert in_force() == ("v0001", "1")
