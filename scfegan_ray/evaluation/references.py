"""What fills a hole without a network: the rows that a model's numbers are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

_RADIUS_PX = 3
_UNKNOWN = np.uint8(128)

Fill = Callable[[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.uint8]]
"""Fills a hole: image (H, W, 3) uint8 RGB, hole (H, W) uint8 {0, 1}, color (H, W, 3) uint8 RGB that is black where
unpainted, to (H, W, 3) uint8 RGB, the image's outside the hole."""


def telea(image: NDArray[np.uint8], hole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill by Telea's inpainting (2004), which sees neither lines nor paint; see `Fill` for shapes."""
    return _inpaint(image, hole, cv2.INPAINT_TELEA)


def navier_stokes(image: NDArray[np.uint8], hole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill by the Navier-Stokes inpainting of Bertalmio et al. (2001); see `Fill` for shapes."""
    return _inpaint(image, hole, cv2.INPAINT_NS)


def painted_color(
    image: NDArray[np.uint8],
    hole: NDArray[np.uint8],
    color: NDArray[np.uint8],
    inpaint: Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.uint8]] = telea,
) -> NDArray[np.uint8]:
    """Take the painted color as it is, and inpaint from it and the image where nothing is painted; see `Fill`."""
    painted = hole & (color.max(axis=2) > 0)
    return inpaint(np.where(painted[..., None] == 1, color, image), hole & (1 - painted))


def mean_color(image: NDArray[np.uint8], hole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill with the mean of what is known, mid-gray where nothing is; see `Fill` for shapes."""
    known = image[hole == 0]
    mean = np.rint(known.mean(axis=0)).astype(np.uint8) if known.size else _UNKNOWN
    return np.where(hole[..., None] == 1, mean, image)


def _inpaint(image: NDArray[np.uint8], hole: NDArray[np.uint8], method: int) -> NDArray[np.uint8]:
    # Where a hole touches the border, OpenCV reads what is in it.
    known = np.where(hole[..., None] == 1, _UNKNOWN, image)
    if hole.all():  # nothing to go on from: OpenCV would leave it black
        return known
    return cv2.inpaint(known, hole, _RADIUS_PX, method).astype(np.uint8, copy=False)


REFERENCES: Mapping[str, Fill] = MappingProxyType(
    {
        "photograph": lambda image, hole, color: image,
        "telea": lambda image, hole, color: telea(image, hole),
        "navier_stokes": lambda image, hole, color: navier_stokes(image, hole),
        "painted_color": painted_color,
        "painted_color_ns": lambda image, hole, color: painted_color(image, hole, color, navier_stokes),
        "mean_color": lambda image, hole, color: mean_color(image, hole),
    }
)
"""Rows of every evaluation, by name. `photograph` is the truth: what lines and colors can be found in at best."""
