"""Run by MLflow, never imported: a copy of this file inside the model's folder says what the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow

from bundle.exporting.mlflow_model import RestorationService, load_service, refusal

if TYPE_CHECKING:
    import pandas as pd


class RestorationModel(mlflow.pyfunc.PythonModel):
    """`RestorationService` under the names that MLflow calls."""

    def __init__(self) -> None:
        self._service: RestorationService | None = None

    def load_context(self, context: Any) -> None:
        """Build the network once, when the model is loaded."""
        self._service = load_service(context.artifacts, context.model_config["device"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        """Restored pictures; see mlflow_model.py for columns and parameters."""
        assert self._service is not None
        try:
            return self._service.predict(model_input, params)
        except ValueError as error:
            raise refusal(error) from error


mlflow.models.set_model(RestorationModel())
