"""Editing: set an image once, edit it as often as wanted."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from scfegan_ray.config import Config
from scfegan_ray.data import decoding
from scfegan_ray.errors import DataError
from scfegan_ray.models import editing
from scfegan_ray.models.generator import Generator
from scfegan_ray.precision import check_available
from scfegan_ray.serving import loading, runtimes

logger = logging.getLogger(__name__)

_OPAQUE_MODES = ("1", "L", "P", "RGB")
"""Of PIL images that say without a doubt which pixels of a map are marked."""
_MOST_8_BIT = 255


class FaceEditor:
    """Fills a hole in a face so that it obeys a sketch and colors.

    Args:
        generator: trained generator.
        config: of its training.
        device: where to compute.
        runtime: what computes: "torch", "openvino", or "auto" for what is fastest here. Others than torch make
            themselves ready at the first edit of each size, which takes seconds.
        precision: "float32", "bfloat16", or "auto" for bfloat16 only where the hardware computes it natively; or
            "int8", by OpenVINO alone.

    Attributes:
        config: of the training.
        choice: what computes, settled.

    Raises:
        ConfigError: it is a GPU, and torch sees none; or runtime or precision cannot be had here.
    """

    def __init__(
        self,
        generator: Generator,
        config: Config,
        device: torch.device | str = "cpu",
        *,
        runtime: runtimes.RuntimeName = "torch",
        precision: runtimes.PrecisionName = "float32",
    ) -> None:
        self.config = config
        self._device = torch.device(device)
        check_available(self._device, 'give device="cpu"')
        self.choice = runtimes.choose(self._device, runtime, precision)
        logger.info("edits run in %s, on %s", self.choice, self._device)
        generator.silence_untrained_taps(config.data.size_px)
        self._model = editing.EditingModel(generator).requires_grad_(False).eval().to(self._device)
        self._image: NDArray[np.uint8] | None = None
        self._ready: tuple[tuple[int, int] | None, runtimes.Edit] | None = None

    @classmethod
    def from_uri(
        cls,
        uri: str | os.PathLike[str],
        *,
        tracking_uri: str | None = None,
        device: torch.device | str = "cpu",
        runtime: runtimes.RuntimeName = "torch",
        precision: runtimes.PrecisionName = "float32",
    ) -> FaceEditor:
        """Load a model; only its weights and its config are read, and nothing of it is executed.

        Args:
            uri: `models:/scfegan-generator/1` or another MLflow URI; or a folder, local or `s3://`: a checkpoint, a run
                or its `checkpoints` (the newest one is taken), or a model that was downloaded from MLflow.
            tracking_uri: registry to ask; default `MLFLOW_TRACKING_URI`.
            device: where to compute.
            runtime: as of the class.
            precision: as of the class.

        Raises:
            ModelError: there is no such model, or it does not fit.
            CheckpointError: the folder is none of these.
            ConfigError: `device` is a GPU, and torch sees none; or runtime or precision cannot be had here.
            StorageError: the storage cannot be read.
        """
        found = loading.load_generator(uri, tracking_uri=tracking_uri)
        return cls(found.generator, found.config, device, runtime=runtime, precision=precision)

    def set_image(self, image: ArrayLike | Image.Image) -> None:
        """Choose the photograph to edit.

        Args:
            image: (H, W, 3) uint8 RGB; or floats in [0, 1]; or a PIL image, which is turned upright as its EXIF says,
                laid on white where it is transparent, and becomes RGB. Both sides must be divisible by 2 to the power
                of the model's downsamples.

        Raises:
            DataError: shape, type, values or size do not fit.
        """
        pixels = _colors("image", image)
        divisor = 2**self.config.model.num_downsamples
        height, width = pixels.shape[:2]
        if height % divisor or width % divisor or not height or not width:
            raise DataError(f"the image is {width}x{height}; this model needs sides divisible by {divisor}: resize it")
        self._image = pixels

    def edit(
        self,
        mask: ArrayLike | Image.Image,
        sketch: ArrayLike | Image.Image,
        color: ArrayLike | Image.Image,
        seed: int = 0,
    ) -> NDArray[np.uint8]:
        """Fill the hole.

        Args:
            mask: (H, W) or (H, W, 1) of bool, of integers in [0, 255] or of floats in [0, 1]; or a PIL image without
                transparency. What is not zero, or not black, marks pixels to fill.
            sketch: as `mask`; what is not zero marks lines.
            color: as the image of `set_image`; black (0, 0, 0) means unpainted, and so does what is transparent in a
                PIL image.
            seed: of the noise; another seed gives another variant.

        Returns:
            (H, W, 3) uint8 RGB; pixels outside the mask are bit-identical to the image's.

        Raises:
            DataError: no image was set, or a map does not fit it.
        """
        if self._image is None:
            raise DataError("no image to edit; call set_image first")
        size = (self._image.shape[0], self._image.shape[1])
        planes = [_plane("mask", mask, size), _plane("sketch", sketch, size)]
        paint = _colors("color", color, size)
        rng = np.random.default_rng(seed)
        noise = (rng.random((*size, 1)) < self.config.masks.noise_probability).astype(np.uint8)
        arrays = (self._image, *planes, paint, noise)
        filled = self._edit_of(size)(*(torch.from_numpy(array[None]).to(self._device) for array in arrays))
        result: NDArray[np.uint8] = filled[0].cpu().numpy()
        return result

    def _edit_of(self, size: tuple[int, int]) -> runtimes.Edit:
        """Return what edits images of this height and width; one is kept, as it may hold a copy of the weights."""
        key = None if self.choice.takes_any_size else size
        ready = self._ready
        if ready is None or ready[0] != key:
            ready = key, runtimes.compiled(self._model, size, self._device, self.choice)
            self._ready = ready
        return ready[1]


def _colors(name: str, given: ArrayLike | Image.Image, size: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """Return a copy of a picture as (H, W, 3) uint8; transparent paint becomes black, which means none."""
    if isinstance(given, Image.Image):
        given = _from_pil(name, given)
    array = _numbers(name, given)
    wanted = f"(H, W, 3){_of_the_image(size)}"
    if array.ndim != 3 or array.shape[2] != 3 or (size is not None and array.shape[:2] != size):
        raise _refused(name, array, f"shape {wanted}")
    if array.dtype == np.bool_:
        raise _refused(name, array, f"uint8 RGB of shape {wanted}")
    if array.dtype.kind == "f":
        array = np.rint(array * _MOST_8_BIT)
    return np.array(array, np.uint8, order="C")


def _plane(name: str, given: ArrayLike | Image.Image, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a map as (H, W, 1) uint8 in {0, 1}."""
    if isinstance(given, Image.Image):
        if given.mode not in _OPAQUE_MODES or given.has_transparency_data:
            raise DataError(
                f'{name} is a PIL image of mode {given.mode}; give one of mode L: image.convert("L"), or '
                'image.getchannel("A") where what is opaque is meant'
            )
        given = decoding.to_rgb(given).any(axis=2)
    array = _numbers(name, given)
    if array.shape not in (size, (*size, 1)):
        raise _refused(name, array, f"shape (H, W) or (H, W, 1){_of_the_image(size)}")
    marked: NDArray[np.uint8] = np.not_equal(array, 0).astype(np.uint8).reshape(*size, 1)
    return marked


def _from_pil(name: str, image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F" or image.mode.startswith("I"):
        raise DataError(f"{name} is a PIL image of mode {image.mode}, of unknown range; give one of mode RGB")
    try:
        if name == "color" and image.has_transparency_data:
            paint = np.asarray(image.convert("RGBA"))
            return np.asarray(paint[..., :3] * (paint[..., 3:] > 0), np.uint8)
        return decoding.to_rgb(image)
    except (DataError, OSError) as error:
        raise DataError(f"{name} is a PIL image of mode {image.mode} that cannot be read: {error}") from error


def _numbers(name: str, given: ArrayLike) -> NDArray[Any]:
    """Return an array of bools, of integers in [0, 255] or of floats in [0, 1]."""
    try:
        array = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is no array ({error}); give uint8") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} is {type(given).__name__} of {array.dtype}; give a uint8 array or a PIL image")
    if array.dtype.kind == "b" or not array.size:
        return array
    is_float = array.dtype.kind == "f"
    least, most = array.min(), array.max()
    if not (least >= 0 and most <= (1 if is_float else _MOST_8_BIT)):
        held = "NaN" if np.isnan(least) else f"values from {least:g} to {most:g}"
        raise _refused(name, array, "uint8, or floats in [0, 1]", f" with {held}")
    return array


def _refused(name: str, array: NDArray[Any], wanted: str, held: str = "") -> DataError:
    return DataError(f"{name} is {array.dtype} of shape {array.shape}{held}; give {wanted}")


def _of_the_image(size: tuple[int, ...] | None) -> str:
    return "" if size is None else f" of the image's {size[0]}x{size[1]}"
