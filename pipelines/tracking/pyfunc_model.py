"""The model as MLflow serves it: embeddings in, the nested vector cut to `dim` out.

MLflow keeps this file itself with the model (models from code), so nothing is pickled and a stored model can be read.
"""

from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

import smec_core
from smec_core import Model
from smec_core.errors import InputError


class SmecModel(PythonModel):
    """A model folder behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the model folder that was logged as the artifact `model`."""
        self.model: Model = smec_core.load(context.artifacts["model"])

    def predict(
        self,
        context: PythonModelContext,
        # and what else `encode` takes; MLflow would warn, whenever the model is loaded, of a hint that says so
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Embeds.

        Args:
            context: not used; part of MLflow's interface.
            model_input: embeddings (N, D) or one (D,): numbers of any type, as an array, lists, a frame of D columns,
                or a frame of one column that holds whole vectors.
            params: `dim`, one of the model's dims; all D of them where it is absent.

        Returns:
            (N, dim) or (dim,) float32, unit norm.

        Raises:
            MlflowException: the input is not that; a server answers with status 400 and the message.
        """
        if isinstance(model_input, pd.DataFrame) and model_input.shape[1] == 1:
            model_input = model_input.iloc[:, 0].to_list()
        try:
            return self.model.encode(model_input, (params or {}).get("dim"))
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


set_model(SmecModel())
