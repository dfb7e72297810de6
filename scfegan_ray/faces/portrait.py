"""The portrait as a whole: its parts from back to front, then the photograph."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray.errors import ConfigError
from scfegan_ray.faces import dress, head
from scfegan_ray.faces.canvas import Canvas, array
from scfegan_ray.faces.hair import Hair
from scfegan_ray.faces.scene import EYE_X, Scene
from scfegan_ray.faces.traits import Traits

_MIN_SIDE = 16
_CANVAS_SIDE = 256  # smaller images are painted at a multiple of their size and averaged down


@dataclass(frozen=True, slots=True)
class DrawnFace:
    """One drawn portrait.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        labels: (size, size) uint8, class ids 0..18 in the order of `scfegan_ray.data.parsing.LABELS`. `l_` is the
            subject's left, at the image's right. Frames and lenses of glasses are `eye_g`, but eyes seen through
            clear lenses stay `l_eye` and `r_eye`; behind dark lenses everything is `eye_g`.
        eyes: x, y of the eye at the image's left, then x, y of the eye at the image's right, in pixels from the
            image's top left corner, so that `labels[int(y), int(x)]` is the pixel under the eye's center.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    eyes: tuple[float, float, float, float]


def draw_face(seed: int, index: int, size_px: int) -> DrawnFace:
    """Draw one portrait; a pure function of its arguments.

    Args:
        seed: chooses the population of faces; 0 or more.
        index: chooses the face within the population; 0 or more.
        size_px: side of the square image in pixels, 16 or more. It changes the sampling of the face, not the face.

    Returns:
        The portrait, its label map and the position of its eyes.

    Raises:
        ConfigError: an argument is out of range.
    """
    if size_px < _MIN_SIDE:
        raise ConfigError(f"size_px is {size_px}: a drawn face needs at least {_MIN_SIDE} pixels a side")
    if seed < 0 or index < 0:
        raise ConfigError(f"seed {seed} and index {index} of a drawn face must be 0 or more")
    factor = -(-_CANVAS_SIDE // size_px)
    textures = np.random.default_rng([seed, index, 1])
    scene = Scene(Traits(np.random.default_rng([seed, index, 0])), Canvas(size_px * factor), textures)
    hair = Hair(scene)
    dress.paint_backdrop(scene)
    hair.paint_back()
    dress.paint_body(scene)
    head.paint_ears(scene)
    head.paint_skin(scene)
    head.paint_beard(scene)
    head.paint_nose(scene)
    head.paint_mouth(scene)
    for side in (-1, 1):
        head.paint_eye(scene, side)
        head.paint_brow(scene, side)
    dress.paint_glasses(scene)
    hair.paint_front()
    dress.paint_hat(scene)
    dress.paint_jewelry(scene)
    image = _photograph(scene, size_px)
    labels = np.ascontiguousarray(scene.canvas.labels[factor // 2 :: factor, factor // 2 :: factor])
    (left_x, left_y), (right_x, right_y) = (scene.pose.surface([(-EYE_X, 0), (EYE_X, 0)]) * size_px).tolist()
    return DrawnFace(image, labels, (left_x, left_y, right_x, right_y))


def _photograph(scene: Scene, size_px: int) -> NDArray[np.uint8]:
    """Blur, reduce to `size_px`, and add a camera's tint and noise; (size_px, size_px, 3) uint8."""
    traits, image = scene.traits, scene.canvas.image
    sigma = traits.blur * scene.canvas.side
    if sigma > 0.3:
        image = array(cv2.GaussianBlur(image, (0, 0), sigma))
    image = array(cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA))
    image = image * array([1 + traits.warmth, 1, 1 - traits.warmth])
    image += scene.rng.standard_normal((size_px, size_px, 1), np.float32) * traits.grain
    # A soft shoulder keeps bright skin from clipping to flat white.
    knee = np.maximum(image - 0.8, 0)
    return np.asarray(np.clip(np.round((image - knee + 0.2 * np.tanh(knee / 0.2)) * 255), 0, 255), np.uint8)
