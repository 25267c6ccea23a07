"""What MLflow runs when a logged encoder is loaded, by `mlflow.pyfunc.load_model` or a server. Not imported here: it
travels with the model, beside the exported encoder, and knows nothing of this package.

`predict` takes sentences (a list, a Series, a table's first column, an array of texts) or images (an array uint8
[n, height, width] or [n, height, width, channels]) and returns embeddings, float32 [n, width].
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Encoder(PythonModel):
    """An encoder that `orchestrator export` wrote."""

    def load_context(self, context: Any) -> None:
        """Load the encoder by the `embed.py` of its folder."""
        folder = Path(context.artifacts["encoder"])
        spec = importlib.util.spec_from_file_location("embed", folder / "embed.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._embed = module.load(folder)

    # MLflow reads the types: of an array it converts and refuses nothing, so what is given arrives as it is.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:  # noqa: ARG002
        """Compute embeddings [n, width]."""
        values = model_input.iloc[:, 0] if hasattr(model_input, "iloc") and model_input.ndim == 2 else model_input
        array = np.asarray(values)
        if array.dtype.kind in "OU":
            return self._embed([str(text) for text in array.reshape(-1)])
        return self._embed(array)


set_model(Encoder())
