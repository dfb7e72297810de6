"""The registered model as MLflow runs it: MLflow copies this file into each version and executes the copy.

It may import only mlflow, numpy and torch, so that a version loads where this package is not installed; what the
model computes lives in the exported program beside it (`models.editing`).

**What it trusts**: the version. Who loads one through MLflow (`mlflow.pyfunc.load_model`, `mlflow models serve`) runs
the version's own copy of this file, whatever else its `MLmodel` names, and `torch.export.load`, which unpickles where
the program's archive says so. Whoever may write to the registry or its artifacts can thereby run code here, so load
versions only of those whom you would let run code; MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false does not change that.
`scfegan_ray.serving.editor.FaceEditor` trusts nobody: it reads the version's weights (safetensors) and config (JSON)
alone.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class ServedGenerator(PythonModel):  # type: ignore[misc]
    """Fills holes in faces as mask, sketch and color say."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the exported program, and with it whatever code its archive holds."""
        self._program = torch.export.load(context.artifacts["program"]).module()
        self._noise_probability = float(context.model_config["noise_probability"])

    # `model_input` is a dict of arrays, as the signature says; of any annotation but this MLflow makes a warning.
    def predict(self, context, model_input: np.ndarray, params=None):
        """Fill the holes.

        Args:
            context: unused.
            model_input: image (N, H, W, 3) uint8 RGB; mask (N, H, W, 1) uint8, non-zero marks pixels to fill;
                sketch (N, H, W, 1) uint8, non-zero marks lines; color (N, H, W, 3) uint8 RGB, black where unpainted.
            params: seed: of the noise.

        Returns:
            (N, H, W, 3) uint8 RGB; pixels outside the mask are those of `image`.
        """
        maps = {
            name: np.ascontiguousarray(model_input[name], np.uint8) for name in ("image", "mask", "sketch", "color")
        }
        rng = np.random.default_rng((params or {}).get("seed", 0))
        noise = (rng.random(maps["mask"].shape) < self._noise_probability).astype(np.uint8)
        with torch.no_grad():
            filled = self._program(*(torch.from_numpy(array) for array in (*maps.values(), noise)))
        return np.asarray(filled.numpy())


set_model(ServedGenerator())
