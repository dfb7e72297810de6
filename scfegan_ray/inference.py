"""Editing: set an image once, edit it as often as wanted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scfegan_ray import storage, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import DataError, ModelError
from scfegan_ray.models.editing import EditingModel
from scfegan_ray.models.generator import Generator
from scfegan_ray.training import checkpoint


class FaceEditor:
    """Fills a hole in a face so that it obeys a sketch and colors.

    Args:
        generator: trained generator.
        config: of its training.
        device: where to compute.
    """

    def __init__(self, generator: Generator, config: Config, device: torch.device | str = "cpu") -> None:
        self.config = config
        self._device = torch.device(device)
        generator.silence_untrained_taps(config.data.size_px)
        self._model = EditingModel(generator).requires_grad_(False).eval().to(self._device)
        self._image: NDArray[np.uint8] | None = None

    @classmethod
    def from_uri(cls, uri: str, *, tracking_uri: str | None = None, device: torch.device | str = "cpu") -> FaceEditor:
        """Load a model.

        Args:
            uri: `models:/scfegan-generator/1` or another MLflow URI; or a checkpoint's folder.
            tracking_uri: registry to ask; default `MLFLOW_TRACKING_URI`.
            device: where to compute.

        Raises:
            ModelError: there is no such model, or it does not fit.
            CheckpointError: the folder is no checkpoint.
        """
        if uri.startswith(("models:", "runs:", "mlflow-artifacts:")):
            return cls(*_read_model(tracking.download_model(uri, tracking_uri)), device)
        with storage.local_copy(uri) as folder:
            return cls(*checkpoint.load_generator(folder), device)

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Choose the photograph to edit.

        Args:
            image: (H, W, 3) uint8 RGB; both sides divisible by 2 to the power of the model's downsamples.

        Raises:
            DataError: shape, type or size do not fit.
        """
        _check("image", image, 3)
        divisor = 2**self.config.model.num_downsamples
        height, width = image.shape[:2]
        if height % divisor or width % divisor or not height or not width:
            raise DataError(f"the image is {width}x{height}; this model needs sides divisible by {divisor}: resize it")
        self._image = image.copy()

    def edit(
        self,
        mask: NDArray[np.uint8],
        sketch: NDArray[np.uint8],
        color: NDArray[np.uint8],
        seed: int = 0,
    ) -> NDArray[np.uint8]:
        """Fill the hole.

        Args:
            mask: (H, W) or (H, W, 1) uint8 or bool; non-zero marks pixels to fill.
            sketch: (H, W) or (H, W, 1) uint8 or bool; non-zero marks lines.
            color: (H, W, 3) uint8 RGB; black (0, 0, 0) means unpainted.
            seed: of the noise; another seed gives another variant.

        Returns:
            (H, W, 3) uint8 RGB; pixels outside the mask are bit-identical to the image's.

        Raises:
            DataError: no image was set, or a map does not fit it.
        """
        if self._image is None:
            raise DataError("no image to edit; call set_image first")
        size = self._image.shape[:2]
        planes = {"mask": _plane("mask", mask, size), "sketch": _plane("sketch", sketch, size)}
        _check("color", color, 3, size)
        rng = np.random.default_rng(seed)
        noise = (rng.random((1, *size, 1)) < self.config.masks.noise_probability).astype(np.uint8)
        arrays = (self._image[None], planes["mask"], planes["sketch"], color[None], noise)
        with torch.no_grad():
            filled = self._model(*(torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for a in arrays))
        result: NDArray[np.uint8] = filled[0].cpu().numpy()
        return result


def _read_model(folder: Path) -> tuple[Generator, Config]:
    try:
        config = Config.from_dict(json.loads((folder / "artifacts" / "config.json").read_text()))
        state = torch.export.load(folder / "artifacts" / "generator.pt2").state_dict
        generator = Generator(config.model)
        generator.load_state_dict({name.removeprefix("generator."): value for name, value in state.items()})
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the model at {folder} cannot be used: {reason}; register it anew") from error
    return generator, config


def _plane(name: str, plane: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    flat = plane[..., None] if plane.ndim == 2 else plane
    _check(name, flat.view(np.uint8) if flat.dtype == np.bool_ else flat, 1, size)
    binary: NDArray[np.uint8] = np.not_equal(flat, 0).astype(np.uint8)[None]
    return binary


def _check(name: str, array: NDArray[np.uint8], channels: int, size: tuple[int, int] | None = None) -> None:
    wanted = (*(size or array.shape[:2]), channels)
    if array.dtype != np.uint8 or array.shape != wanted:
        shape = "(H, W, 3)" if size is None else str(wanted)
        raise DataError(f"{name} is {array.dtype} of shape {array.shape}; give uint8 of shape {shape}")
