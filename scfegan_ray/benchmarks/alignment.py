"""How well faces are found: aligned ones are turned, scaled and pasted into other pictures, so that corners are known.

The surroundings are the blurred upper edge of another photograph, so nothing in them looks like a face.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray.config import Config
from scfegan_ray.data import align, sources
from scfegan_ray.errors import DataError

logger = logging.getLogger(__name__)

_PHOTOGRAPHS = 200
_FACE_PX = 512
_SIDES_PX, _PICTURE_PX, _MOST_DEGREES = (160, 640), (700, 1400), 30.0
_EDGE, _EDGE_SIGMA_PX = 0.1875, 8.0
_REACH = 0.35  # of the side: how far from a face another one is not taken for it


def run(config: Config) -> dict[str, Any]:
    """Measure on the first photographs of a source, whose faces must be aligned as in CelebA-HQ.

    Args:
        config: `data.source` holds them, `data.max_images` says how many are taken. Default: 200.

    Returns:
        num_photographs; num_missed: pasted faces that were not found; corners: median, p95 and most of how far the
        corners of their squares are from where they are, as fractions of the side; unmoved: the same of the photographs
        as they are, num_aligned of which count as aligned already and would not be touched; seconds: of a photograph.

    Raises:
        DataError: the source cannot be read, or no face of it is found.
        ModelError: the weights that find faces cannot be had.
    """
    source, listing = sources.open_source(config.data, config.seed, outputs=(config.storage.path,))
    keys = listing.keys[: config.data.max_images or _PHOTOGRAPHS].to_pylist()
    if not keys:
        raise DataError(f"no images under {config.data.source}; check --data.source")
    finder = align.FaceFinder()
    cv2.setNumThreads(1)
    pasted, unmoved, seconds = [], [], []
    num_aligned = 0
    before = source.load(keys[-1], _FACE_PX, _FACE_PX).image
    for number, key in enumerate(keys):
        face = source.load(key, _FACE_PX, _FACE_PX).image
        picture, square = paste(face, before, np.random.default_rng([config.seed, number]))
        before = face
        began = time.perf_counter()
        found = finder.find(picture)
        seconds.append(time.perf_counter() - began)
        pasted.append(_error(found, square))
        found = finder.find(face)
        unmoved.append(_error(found, align.own_square(_FACE_PX, _FACE_PX)))
        num_aligned += align.is_aligned(found, _FACE_PX, _FACE_PX)
    measured = {
        "num_photographs": len(keys),
        "num_missed": pasted.count(None),
        "corners": _summary(pasted, config.data.source),
        "unmoved": _summary(unmoved, config.data.source),
        "num_aligned": num_aligned,
        "seconds": float(np.mean(seconds)),
    }
    for name, what in (("corners", "turned, scaled and pasted"), ("unmoved", "as they are")):
        numbers = measured[name]
        assert isinstance(numbers, dict)
        logger.info(
            "%s: corners are off by %.2f %% of the side (median), %.2f %% (95th percentile), %.2f %% (most)",
            what, *(100 * value for value in numbers.values()),
        )  # fmt: skip
    logger.info(
        "of %d photographs %d count as aligned already; %d pasted faces were not found; %.0f ms each",
        len(keys), num_aligned, measured["num_missed"], 1000 * np.mean(seconds),
    )  # fmt: skip
    return measured


def paste(
    face: NDArray[np.uint8], other: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], align.Square]:
    """Turn and scale a face and paste it into a picture.

    Args:
        face: (S, S, 3) uint8 RGB.
        other: (W, W, 3) uint8 RGB, of whose upper edge the picture is made.
        rng: draws size, turn and place.

    Returns:
        (height, width, 3) uint8 RGB, and where in it the face is.
    """
    side_px = rng.uniform(*_SIDES_PX)
    angle = math.radians(rng.uniform(-_MOST_DEGREES, _MOST_DEGREES))
    width, height = rng.integers(*_PICTURE_PX, 2).tolist()
    edge = other[: max(1, round(_EDGE * len(other)))]
    picture = cv2.GaussianBlur(cv2.resize(edge, (width, height)), (0, 0), _EDGE_SIGMA_PX)
    reach = side_px / 2 * (abs(math.cos(angle)) + abs(math.sin(angle)))
    x, y = (rng.uniform(reach, max(reach + 1, length - reach)) for length in (width, height))
    square = align.Square(x, y, side_px, angle)
    corners = square.corners()
    size = face.shape[0]
    if side_px < size:
        face = np.asarray(cv2.GaussianBlur(face, (0, 0), max(0.01, (size / side_px - 1) / 2)), np.uint8)
    # From the middles of pixels to the middles of pixels.
    across, down = (corners[1] - corners[0]) / size, (corners[3] - corners[0]) / size
    matrix = np.column_stack([across, down, corners[0] + (across + down) / 2 - 0.5])
    pasted = cv2.warpAffine(face, matrix, (width, height), dst=picture, borderMode=cv2.BORDER_TRANSPARENT)
    return np.asarray(pasted, np.uint8), square


def _error(found: Sequence[align.Face], square: align.Square) -> float | None:
    """Return how far the face that lies in a square is from it; None where none does."""
    near = [
        face.square.distance(square)
        for face in found
        if math.dist(
            (face.square.center_x, face.square.center_y), (square.center_x, square.center_y)
        ) < _REACH * square.side_px
    ]  # fmt: skip
    return min(near, default=None)


def _summary(errors: Sequence[float | None], source: str) -> dict[str, float]:
    known = [error for error in errors if error is not None]
    if not known:
        raise DataError(f"no face is found in {source}; give aligned photographs as --data.source")
    median, high, most = np.percentile(known, (50, 95, 100)).tolist()
    return {"median": median, "p95": high, "most": most}
