"""The model as MLflow serves it: embeddings in, the nested vector cut to `dim` out.

MLflow keeps this file itself with the model (models from code), so nothing is pickled and a stored model can be read.
"""

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

import smec_core
from smec_core import Model


class SmecModel(PythonModel):
    """A model folder behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the model folder that was logged as the artifact `model`."""
        self.model: Model = smec_core.load(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Embeds.

        Args:
            context: not used; part of MLflow's interface.
            model_input: (N, D) float32 embeddings, any length.
            params: `dim`, one of the model's dims; all D of them where it is absent.

        Returns:
            (N, dim) float32, unit norm.
        """
        return self.model.encode(model_input, (params or {}).get("dim"))


set_model(SmecModel())
