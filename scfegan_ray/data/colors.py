"""Color maps: photographs become a few flat colors, as a user would paint them.

Paper: median filter of size 3, bilateral filters, then each segment of the face takes its median color. No histogram
equalization, unlike sketches. Differs from the paper: segments are the human labels of CelebAMask-HQ, and
superpixels where there are none.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import label
from skimage.segmentation import slic

from scfegan_ray.config import ColorConfig
from scfegan_ray.data.parsing import LABELS
from scfegan_ray.errors import ConfigError

_SUPERPIXEL_SIDE_PX = 128
_COMPACTNESS = 0.06  # slic brings the colors to [0, 1] first; more draws squares, less ragged outlines
_BILATERAL_RADIUS_PX = 3


def make_color_map(
    image: NDArray[np.uint8], labels: NDArray[np.uint8] | None, config: ColorConfig
) -> NDArray[np.uint8]:
    """Give every segment of a photograph its median color.

    A segment is a connected piece of a labeled part; `split_parts`, which have no single color, are further cut by
    superpixels. Without labels every segment is a superpixel.

    Args:
        image: (S, S, 3) uint8 RGB.
        labels: (S, S) uint8 class ids as in `parsing.LABELS`, or None where there are none.
        config: filters and segments.

    Returns:
        (S, S, 3) uint8 RGB; never exactly black, which downstream means unpainted.

    Raises:
        ConfigError: `split_parts` names a part that does not exist.
    """
    smooth = _smooth(image, config)
    if labels is None:
        segments = _superpixels(smooth, config.num_superpixels)
    else:
        segments = label(labels, background=-1, connectivity=1)
        unknown = [name for name in config.split_parts if name not in LABELS]
        if unknown:
            raise ConfigError(f"data.color.split_parts has {unknown[0]!r}; give names of {', '.join(LABELS)}")
        split = np.isin(labels, [LABELS.index(name) for name in config.split_parts])
        if split.any():
            pieces = _superpixels(smooth, config.num_superpixels)
            segments = segments * (int(pieces.max()) + 1) + np.where(split, pieces, 0)
    colors = _segment_medians(smooth, segments)
    colors[(colors == 0).all(axis=-1)] = 1
    return colors


def _smooth(image: NDArray[np.uint8], config: ColorConfig) -> NDArray[np.uint8]:
    smooth = cv2.medianBlur(image, config.median_px) if config.median_px > 1 else image
    # Repeated passes with a small radius reach as far as one with a large radius, at a fraction of its cost.
    reach = config.bilateral_sigma_space * image.shape[0] / 256
    diameter = 2 * max(1, min(_BILATERAL_RADIUS_PX, round(reach))) + 1
    for _ in range(config.bilateral_passes):
        smooth = cv2.bilateralFilter(smooth, diameter, config.bilateral_sigma_color, reach)
    return np.asarray(smooth, np.uint8)


def _superpixels(image: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Cut an image into about `count` pieces of one color each; returns (S, S) ids from 0."""
    size_px = image.shape[0]
    small_px = min(size_px, _SUPERPIXEL_SIDE_PX)
    small = cv2.resize(image, (small_px, small_px), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    pieces = slic(
        lab,
        n_segments=count,
        compactness=_COMPACTNESS,
        max_num_iter=5,
        convert2lab=False,
        start_label=0,
        channel_axis=-1,
    )
    if small_px != size_px:
        pieces = cv2.resize(pieces.astype(np.float32), (size_px, size_px), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(pieces, np.int64)


def _segment_medians(image: NDArray[np.uint8], segments: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Paint each segment in its median color, per channel."""
    # Numbers without gaps, from a table: sorting the pixels would take longer than all that follows.
    sizes = np.bincount(segments.reshape(-1))
    number = np.cumsum(sizes > 0) - 1
    compact = number[segments.reshape(-1)]
    count = int(number[-1]) + 1
    half = (sizes[sizes > 0] + 1) // 2
    medians = np.empty((count, 3), np.uint8)
    for channel in range(3):
        # Medians of all segments at once: the value at which each segment's histogram has passed one half.
        histogram = np.bincount(compact * 256 + image[..., channel].reshape(-1), minlength=count * 256)
        passed = histogram.reshape(count, 256).cumsum(axis=1) >= half[:, None]
        medians[:, channel] = passed.argmax(axis=1)
    painted: NDArray[np.uint8] = medians[compact].reshape(image.shape)
    return painted
