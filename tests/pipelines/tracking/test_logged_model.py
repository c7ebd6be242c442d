"""The model in MLflow: loaded without this project, and served."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest

from smec_core.model import Model
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


def test_mlflow_models_serve_answers_with_vectors(model: Model, model_folder: Path, tmp_path: Path) -> None:
    recorder = start(tmp_path / "state")
    recorder.finish(model_folder)
    model_uri = f"runs:/{recorder.run_id}/model"
    with serving(["models", "serve", "--model-uri", model_uri, "--env-manager", "local"], tmp_path / "serve") as served:
        question = {"inputs": [[1, 2, 3, 4, 5, 6, 7, 8]], "params": {"dim": 4}}
        request = urllib.request.Request(
            f"http://{served[0]}/invocations", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    expected = model.encode(np.arange(1, 9, dtype=np.float32)[None], 4)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-6)
