"""The registry's runs, where the server takes no model."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from pipelines.retrain.registry import Registry
from pipelines.storage.run_folder import RunFolder
from smec_core.errors import SmecError
from smec_core.model.model import Model
from tests.pipelines.tracking.recording import only_run

pytestmark = pytest.mark.server


def test_a_run_whose_model_could_not_be_logged_is_failed_and_the_next_try_makes_it_whole(
    model: Model, model_folder: Path, tmp_path: Path
) -> None:
    client = MlflowClient()
    (tmp_path / "file").write_text("")
    client.create_experiment("smec", f"file://{tmp_path}/file/artifacts")  # no folder can be made there
    run_folder = RunFolder(str(tmp_path / "state"), "nightly")
    run_folder.create()
    run_folder.store_model(model_folder)
    registry = Registry("products")
    with pytest.raises(SmecError, match=r"MLflow's registry at .* fails"):
        registry.register(run_folder, model.fingerprint, {})
    failed = only_run(client)
    assert failed.info.status == "FAILED"

    (tmp_path / "file").unlink()
    version = registry.register(run_folder, model.fingerprint, {"smec.cycle": "1"})
    run_id = client.get_model_version("products", version).run_id
    assert client.get_run(str(run_id)).info.status == "FINISHED"
    served = mlflow.pyfunc.load_model(f"models:/products/{version}")
    x_ND = np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(served.predict(x_ND), model.encode(x_ND))
