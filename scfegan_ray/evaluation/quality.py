"""Does it look right: a filled image against the photograph, in whole, in the hole, and where both meet.

All functions take stacks of 8-bit images as `(N, H, W, 3) uint8 RGB` and holes as `(N, H, W) bool`, and return `(N,)
float64`. What is a sum over 8-bit levels is exact; what is not (SSIM, FLIP) computes in a fixed order.
"""

from __future__ import annotations

import flip_evaluator
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

Images = NDArray[np.uint8]
Holes = NDArray[np.bool_]
Values = NDArray[np.float64]

MAX_PSNR_DB = 100.0
"""Of images that agree."""

MS_SSIM_FROM_PX = 176
"""Windows of 11 pixels at five scales, the last a sixteenth of the first, want as much."""

_PEAK = 255.0


def l1(composite: Images, truth: Images) -> Values:
    """Mean absolute difference, in 8-bit levels."""
    return np.asarray(_error(composite, truth).mean(axis=(1, 2, 3)), np.float64)


def hole_l1(composite: Images, truth: Images, hole: Holes) -> Values:
    """Mean absolute difference within the hole, in 8-bit levels."""
    return _within(_error(composite, truth).mean(axis=3), hole)


def psnr(composite: Images, truth: Images) -> Values:
    """Peak signal-to-noise ratio over all pixels and channels, in dB, at most `MAX_PSNR_DB`."""
    return _decibels((_error(composite, truth) ** 2).mean(axis=(1, 2, 3)))


def hole_psnr(composite: Images, truth: Images, hole: Holes) -> Values:
    """Peak signal-to-noise ratio over the hole's pixels and channels, in dB, at most `MAX_PSNR_DB`."""
    return _decibels(_within((_error(composite, truth) ** 2).mean(axis=3), hole))


def ssim(composite: Images, truth: Images, hole: Holes) -> tuple[Values, Values]:
    """Structural similarity (Wang et al. 2004: Gaussian windows, sigma 1.5, of each channel), by scikit-image.

    Returns:
        The mean of its map, over the whole image, and within the hole; both at most 1.
    """
    maps = [
        structural_similarity(
            one, other, channel_axis=2, data_range=_PEAK, gaussian_weights=True, use_sample_covariance=False, full=True
        )[1]
        for one, other in zip(composite, truth, strict=True)
    ]
    by_pixel = np.stack(maps).mean(axis=3, dtype=np.float64)
    return by_pixel.mean(axis=(1, 2)), _within(by_pixel, hole)


def ms_ssim(composite: Images, truth: Images) -> Values:
    """Multi-scale structural similarity (Wang et al. 2003), by torchmetrics, from `MS_SSIM_FROM_PX` on."""
    # Importing it takes seconds, which training, for which it measures nothing, need not spend.
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    found = multiscale_structural_similarity_index_measure(
        _to_torch(composite), _to_torch(truth), data_range=_PEAK, reduction="none", normalize="relu"
    )
    return np.asarray(found.double().numpy(), np.float64)


def hole_flip(composite: Images, truth: Images, hole: Holes) -> Values:
    """Perceived difference of two images shown in turn (FLIP, Andersson et al. 2020), by flip-evaluator: 0 to 1.

    The mean of its error map within the hole, at the 67 pixels per degree of its default display.
    """
    maps = [
        flip_evaluator.evaluate(
            np.ascontiguousarray(one, np.float32) / np.float32(_PEAK),
            np.ascontiguousarray(other, np.float32) / np.float32(_PEAK),
            "LDR",
            applyMagma=False,
        )[0]
        for one, other in zip(truth, composite, strict=True)
    ]
    return _within(np.stack(maps).reshape(hole.shape).astype(np.float64), hole)


def seam(composite: Images, truth: Images, hole: Holes) -> tuple[Values, Values]:
    """Look at the hole's border, where fill and photograph meet.

    Returns:
        The mean absolute difference from the photograph, in 8-bit levels, over the hole's pixels that have a neighbor
        outside; and how large the mean step between such neighbors is, relative to the photograph's own. NaN where
        the hole has no border, or the photograph no step there.
    """
    steps = [np.zeros((2, len(hole))), np.zeros((2, len(hole)))]
    border = np.zeros_like(hole)
    for axis in (1, 2):
        first = tuple(slice(None, -1) if at == axis else slice(None) for at in range(3))
        second = tuple(slice(1, None) if at == axis else slice(None) for at in range(3))
        crossing = hole[first] != hole[second]
        border[first] |= crossing & hole[first]
        border[second] |= crossing & hole[second]
        for image, found in zip((composite, truth), steps, strict=True):
            step = _error(image[first], image[second]).mean(axis=3)
            found += np.stack([(step * crossing).sum(axis=(1, 2)), crossing.sum(axis=(1, 2))])
    with np.errstate(divide="ignore", invalid="ignore"):
        (filled, count), (own, _) = steps
        ratio = np.where(own > 0, filled / own, np.nan)
    return _within(_error(composite, truth).mean(axis=3), border), np.where(count > 0, ratio, np.nan)


def outside(composite: Images, truth: Images, hole: Holes) -> Values:
    """Largest difference outside the hole, in 8-bit levels: 0, or pixels were touched that nobody gave away."""
    return np.asarray((_error(composite, truth).max(axis=3) * ~hole).max(axis=(1, 2)), np.float64)


def _error(one: Images, other: Images) -> Values:
    return np.abs(one.astype(np.float64) - other.astype(np.float64))


def _within(by_pixel: Values, hole: Holes) -> Values:
    """Return the mean over the marked pixels of each image; NaN where none is."""
    count = hole.sum(axis=(1, 2))
    total = (by_pixel * hole).sum(axis=(1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _decibels(squared: Values) -> Values:
    with np.errstate(divide="ignore"):
        return np.minimum(10.0 * np.log10(_PEAK**2 / squared), MAX_PSNR_DB)


def _to_torch(images: Images) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()
