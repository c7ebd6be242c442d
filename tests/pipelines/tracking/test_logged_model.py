"""The model in MLflow: loaded without this project, and served."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from smec_core.model.model import Model
from tests.pipelines.tracking.recording import start
from tests.pipelines.tracking.servers import PATIENCE_SECONDS, serving

pytestmark = pytest.mark.server


LOADING = """
import json, sys
import mlflow, numpy as np
served = mlflow.pyfunc.load_model(sys.argv[1])
import smec_core
answer = {"code": smec_core.__file__, "whole": served.predict(np.ones((1, 8), np.float32)).tolist()}
answer["pipelines"] = "pipelines" in sys.modules
print(json.dumps(answer))
"""


def test_the_logged_model_brings_its_code_and_asks_for_plain_versions(
    model: Model, model_folder: Path, tmp_path: Path
) -> None:
    recorder = start(tmp_path / "state")
    recorder.finish(model_folder)
    folder = mlflow.artifacts.download_artifacts(f"runs:/{recorder.run_id}/model", dst_path=str(tmp_path / "copy"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-c", LOADING, folder],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=PATIENCE_SECONDS, check=True,
    )  # fmt: skip
    found = json.loads(answer.stdout)
    assert Path(found["code"]).is_relative_to(folder)
    assert not found["pipelines"]
    np.testing.assert_allclose(found["whole"], model.encode(np.ones((1, 8), np.float32)), rtol=1e-6)

    assert mlflow.models.get_model_info(folder).metadata["smec_fingerprint"] == model.fingerprint  # type: ignore[index]
    required = dict(line.split("==") for line in Path(folder, "requirements.txt").read_text().splitlines())
    assert set(required) == {"mlflow", "numpy", "pyarrow", "pydantic", "safetensors", "torch"}
    assert not any("+" in version for version in required.values())
    assert not list(Path(folder).rglob("*.pkl"))


@pytest.fixture(scope="module")
def logged(model_folder: Path, tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    """Folder of a model as it lies in MLflow."""
    folder = tmp_path_factory.mktemp("logged")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        recorder = start(folder / "state")
        recorder.finish(model_folder)
        return mlflow.artifacts.download_artifacts(f"runs:/{recorder.run_id}/model", dst_path=str(folder / "copy"))


X_ND = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
GIVEN: dict[str, Any] = {
    "float32": X_ND,
    "float64": X_ND.astype(np.float64),
    "float16": X_ND.astype(np.float16),
    "integers": np.round(100 * X_ND).astype(np.int64),
    "lists": X_ND.tolist(),
    "one vector": X_ND[0],
    "frame": pd.DataFrame(X_ND.astype(np.float64)),
    "frame of vectors": pd.DataFrame({"embedding": list(X_ND)}),
    "column of vectors": pd.Series(X_ND.tolist()),
}


@pytest.mark.parametrize("given", GIVEN)
def test_the_logged_model_takes_numbers_as_users_have_them(model: Model, logged: str, given: str) -> None:
    x_ND = {"integers": np.round(100 * X_ND), "one vector": X_ND[0]}.get(given, X_ND)
    z_Nd = mlflow.pyfunc.load_model(logged).predict(GIVEN[given], params={"dim": 4})
    assert z_Nd.dtype == np.float32
    np.testing.assert_allclose(z_Nd, model.encode(x_ND, 4), atol=2e-3 if given == "float16" else 1e-6)


@pytest.mark.parametrize("given", [X_ND[:, :7], X_ND[:, :7].tolist(), pd.DataFrame(X_ND[:, :7])])
def test_the_logged_model_refuses_other_dims(logged: str, given: Any) -> None:
    with pytest.raises(MlflowException, match=r"embeddings have shape \(3, 7\); this model takes \(8,\) or \(N, 8\)"):
        mlflow.pyfunc.load_model(logged).predict(given)


def ask(address: str, question: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://{address}/invocations", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_mlflow_models_serve_answers_with_vectors(model: Model, logged: str, tmp_path: Path) -> None:
    one = [1, 2, 3, 4, 5, 6, 7, 8]
    expected = model.encode(np.arange(1, 9, dtype=np.float32)[None], 4)
    with serving(["models", "serve", "--model-uri", logged, "--env-manager", "local"], tmp_path / "serve") as served:
        for inputs in ([one], [[number + 0.0 for number in one]]):
            answer = ask(served[0], {"inputs": inputs, "params": {"dim": 4}})
            np.testing.assert_allclose(answer, expected, rtol=1e-6)
        answer = ask(served[0], {"instances": [one], "params": {"dim": 4}})
        np.testing.assert_allclose(answer, expected, rtol=1e-6)
        frame = {"columns": [f"x{number}" for number in one], "data": [one]}
        answer = ask(served[0], {"dataframe_split": frame, "params": {"dim": 4}})
        np.testing.assert_allclose(answer, expected, rtol=1e-6)
        status, text = ask(served[0], {"inputs": [one[:7]]})
        assert status == 400
        assert "embeddings have shape (1, 7); this model takes (8,) or (N, 8)" in text
