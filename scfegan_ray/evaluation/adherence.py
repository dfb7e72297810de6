"""Does it obey: lines that were drawn are edges of the result, and paint is its color.

Edges are found by OpenCV's Canny detector, which shares nothing with HED, whose trunk is in the losses and whose edges
the sketches are. As for edge detectors in the field (Martin et al. 2004), a line counts as met where an edge is within
0.75 % of the image's diagonal; unlike there each pixel looks for itself, without a one-to-one assignment.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

TOLERANCE = 0.0075
"""Of the diagonal."""

_BLUR_SIGMA = 1 / 128
_THRESHOLD, _THRESHOLD_AT_PX = 60.0, 64
# Of Canny's lower threshold; the upper one is twice that. An edge of a larger image is blurred over more pixels. Found
# by what tells lines that were drawn after a photograph from those of another face: at 64 px they meet its edges with
# an F1 of 0.85 and 0.54, at 256 px of 0.79 and 0.43.


def tolerance_px(size_px: int) -> int:
    """Return how far an edge may be from its line: 1 pixel at 64, 3 at 256, 5 at 512."""
    return max(1, round(TOLERANCE * 2**0.5 * size_px))


def find_edges(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mark the edges of an image.

    Args:
        image: (S, S, 3) uint8 RGB.

    Returns:
        (S, S) uint8 in {0, 1}.
    """
    size_px = image.shape[0]
    smooth = cv2.GaussianBlur(image, (0, 0), max(0.5, _BLUR_SIGMA * size_px))
    low = _THRESHOLD * (_THRESHOLD_AT_PX / size_px) ** 0.5
    edges = cv2.Canny(cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY), low, 2 * low, L2gradient=True)
    return np.asarray(edges > 0, np.uint8)


def sketch_adherence(
    composite: NDArray[np.uint8], sketch: NDArray[np.uint8], hole: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Compare the edges of a result with the lines that were drawn, within the hole.

    Args:
        composite: (S, S, 3) uint8 RGB.
        sketch: (S, S) uint8 {0, 1}.
        hole: (S, S) bool.

    Returns:
        Precision: share of edges near a line; recall: share of lines near an edge; their harmonic mean F1. NaN where
        no line is drawn; precision is 0 where no edge is found.
    """
    lines = (sketch > 0) & hole
    if not lines.any():
        return np.nan, np.nan, np.nan
    edges = find_edges(composite) > 0
    reach = tolerance_px(hole.shape[0])
    inside = edges & hole
    precision = float(_near(sketch > 0, reach)[inside].mean()) if inside.any() else 0.0
    recall = float(_near(edges, reach)[lines].mean())
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def color_adherence(composite: NDArray[np.uint8], color: NDArray[np.uint8]) -> float:
    """Return the mean CIEDE2000 difference (Sharma et al. 2005, by scikit-image) of result and paint on painted pixels.

    Args:
        composite: (S, S, 3) uint8 RGB.
        color: (S, S, 3) uint8 RGB, black where unpainted.

    Returns:
        0 and more; about 1 can be just noticed. NaN where nothing is painted.
    """
    painted = color.any(axis=2)
    if not painted.any():
        return np.nan
    return float(deltaE_ciede2000(rgb2lab(composite[painted]), rgb2lab(color[painted])).mean())


def sensitivity(
    before: NDArray[np.uint8], after: NDArray[np.uint8], lines_before: NDArray[np.uint8], lines_after: NDArray[np.uint8]
) -> float:
    """Return how far a result moves around a stroke that was moved: mean difference in 8-bit levels.

    Args:
        before: (S, S, 3) uint8 RGB, the result from the first lines.
        after: (S, S, 3) uint8 RGB, the result from the second ones.
        lines_before: (S, S) uint8 {0, 1}.
        lines_after: (S, S) uint8 {0, 1}.

    Returns:
        NaN where no stroke was moved.
    """
    moved = lines_before != lines_after
    if not moved.any():
        return np.nan
    around = _near(moved, 2 * tolerance_px(moved.shape[0]))
    return float(np.abs(before.astype(np.float64) - after)[around].mean())


def _near(marked: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
    """Mark what is at most so far from a marked pixel."""
    if not marked.any():
        return np.zeros_like(marked)
    distance = cv2.distanceTransform((~marked).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= reach_px + 0.5, np.bool_)
