"""Face parsing: the label map of CelebAMask-HQ, and what masks need from it (hair, eyes).

Differs from the paper: its GFC parser was never available to others. CelebAMask-HQ gives human labels for every
photograph of CelebA-HQ; a source without labels gets canonical eyes and no hair.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray.errors import DataError

LABELS = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
"""Classes of CelebAMask-HQ; the index is the class id. `l_` is the subject's left: the image's right."""

HAIR = LABELS.index("hair")
"""Class id of hair."""

PAINT_ORDER = (
    "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r",
    "nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip
"""Order in which the parts are laid over each other: a later one hides an earlier one (the dataset's own order)."""

_LEFT_EYE = (0.3978, 0.4782)
_RIGHT_EYE = (0.6040, 0.4788)
# Mean centroids of r_eye and l_eye over the 582 + 582 labeled eyes of 600 CelebAMask-HQ faces, as fractions of the
# side; their spread is 0.064 across and 0.005 down.


def merge_parts(parts: Mapping[str, NDArray[np.bool_] | NDArray[np.uint8]], size_px: int) -> NDArray[np.uint8]:
    """Lay the parts of one face over each other in `PAINT_ORDER` and bring the map to one size.

    Parts are merged before the map is resized, so that neighboring parts leave no gap of background between them.

    Args:
        parts: name of a part (one of `LABELS`) to its (H, W) bool or uint8 mask; nonzero belongs to the part. All
            of one shape. Names that are absent are parts that the face does not show.
        size_px: side of the square result, in pixels.

    Returns:
        (size_px, size_px) uint8 class ids, indices of `LABELS`.

    Raises:
        DataError: a name is unknown, or the shapes differ.
    """
    unknown = sorted(set(parts) - set(PAINT_ORDER))
    if unknown:
        raise DataError(f"unknown face part {unknown[0]!r}; CelebAMask-HQ has {', '.join(PAINT_ORDER)}")
    shapes = {part.shape for part in parts.values()}
    if len(shapes) > 1:
        raise DataError(f"label parts of one face have different shapes {sorted(shapes)}; export them at one size")
    if not shapes:
        return np.zeros((size_px, size_px), np.uint8)
    (shape,) = shapes
    if len(shape) != 2:
        raise DataError(f"a label part has shape {shape}; give single-channel masks")
    labels: NDArray[np.uint8] = np.zeros(shape, np.uint8)
    for name in PAINT_ORDER:
        if name in parts:
            labels[parts[name] != 0] = LABELS.index(name)
    if shape != (size_px, size_px):
        labels = np.asarray(cv2.resize(labels, (size_px, size_px), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    return labels


def hair_region(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mark the hair.

    Args:
        labels: (H, W) uint8 class ids.

    Returns:
        (H, W) uint8 in {0, 1}; 1 is hair.
    """
    hair: NDArray[np.uint8] = (labels == HAIR).astype(np.uint8)
    return hair


def canonical_eyes(size_px: int) -> NDArray[np.float32]:
    """Give the mean eye positions of CelebA-HQ, for faces without labels.

    Args:
        size_px: side of the image, in pixels.

    Returns:
        (4,) float32: x, y of the eye at the image's left, then of the eye at its right, in pixels; the center of
        the first pixel is (0, 0).
    """
    return np.array([*_LEFT_EYE, *_RIGHT_EYE], np.float32) * size_px - np.float32(0.5)


def eye_positions(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Find both eyes in a label map.

    An eye that is not labeled is taken from the matching half of the glasses, or else from `canonical_eyes`.

    Args:
        labels: (S, S) uint8 class ids.

    Returns:
        (4,) float32: x, y of the eye at the image's left (the subject's right), then of the eye at its right, in
        pixels; the center of the first pixel is (0, 0).
    """
    eyes = canonical_eyes(labels.shape[0])
    glasses_y, glasses_x = np.nonzero(labels == LABELS.index("eye_g"))
    at_left = glasses_x < glasses_x.mean() if glasses_x.size else np.zeros(0, np.bool_)
    for offset, name, half in ((0, "r_eye", at_left), (2, "l_eye", ~at_left)):
        y, x = np.nonzero(labels == LABELS.index(name))
        if x.size == 0:
            y, x = glasses_y[half], glasses_x[half]
        if x.size > 0:
            eyes[offset : offset + 2] = x.mean(), y.mean()
    return eyes
