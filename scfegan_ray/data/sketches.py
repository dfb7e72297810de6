"""Sketch maps: photographs become line drawings, one pixel wide.

Paper: histogram equalization, HED edge detector, threshold, thinning, smoothing of the curves, removal of small
components. Order here: CLAHE on luminance -> edge probability -> ridge lines above the threshold, thinned ->
curves smoothed as curves, not as pixels, and drawn at the data's size -> short lines removed.

Differs from the paper: lines are looked for on the ridges of the probability and not all over the area above the
threshold, because that area is a blob many pixels wide around eyes and lips, whose thinning has little to do with
their shape.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.morphology import skeletonize
from torch import Tensor

from scfegan_ray.config import SketchConfig
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.weights import hed_arrays

_log = logging.getLogger(__name__)

_TRUNK = (2, 2, 3, 3, 3)  # convolutions per resolution of VGG-16
_MEAN_BGR = (104.00699, 116.66877, 122.67892)  # what the HED weights were trained with
_HED_MARGIN_PX = 16

_RIDGE_SIGMA_PX = 1.2
_RIDGE_CURVATURE = 0.018
_CREST_REACH_PX = 1.3
_WEAK_FRACTION = 0.55
# Chosen by eye on CelebA-HQ at working sizes of 192 to 512: HED's ridges are about as wide at each of them, so
# these are in pixels of the working size. Less curvature ties neighboring lines together, more breaks them.


class EdgeDetector(Protocol):
    """Finds edges in photographs."""

    name: str
    """What is written into a dataset's description."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give the probability of an edge.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Returns:
            (N, H, W) float32 in [0, 1].
        """


class HedDetector:
    """Holistically-nested edge detection on the CPU, in float32 so that every machine draws the same lines."""

    name = "hed"

    def __init__(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Take the weights.

        Args:
            arrays: what `weights.hed_arrays` returns; kernels (kh, kw, in, out) float32, biases (out,) float32.

        Raises:
            ModelError: an array is missing.
        """
        trunk = [f"conv{i}_{j}" for i, count in enumerate(_TRUNK, 1) for j in range(1, count + 1)]
        layers = [*trunk, *(f"side{i}" for i in range(1, len(_TRUNK) + 1)), "fuse"]
        try:
            self._kernels = {
                name: torch.from_numpy(arrays[f"{name}/kernel"].transpose(3, 2, 0, 1).copy()).contiguous(
                    memory_format=torch.channels_last
                )
                for name in layers
            }
            self._biases = {name: torch.from_numpy(arrays[f"{name}/bias"].copy()) for name in layers}
        except KeyError as error:
            raise ModelError(f"HED weights lack {error}; pass what weights.hed_arrays returns") from error

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give the fused edge probability; see `EdgeDetector`."""
        # One image at a time: the first layer alone holds 64 channels of full size.
        return np.stack([self._detect(image) for image in images])

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        kernel = self._kernels[name]
        return F.conv2d(x, kernel, self._biases[name], padding=kernel.shape[-1] // 2)

    @torch.inference_mode()
    def _detect(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = image.shape[:2]
        # A mirrored margin keeps the convolutions' zero padding from showing as edges along the border; sides that
        # are multiples of 16 keep the four poolings aligned.
        centered = image[..., ::-1].astype(np.float32) - np.array(_MEAN_BGR, np.float32)
        margins = ((_HED_MARGIN_PX, _HED_MARGIN_PX + -height % 16), (_HED_MARGIN_PX, _HED_MARGIN_PX + -width % 16))
        padded = np.pad(centered, (*margins, (0, 0)), mode="symmetric")
        x = torch.from_numpy(padded.transpose(2, 0, 1)[None]).contiguous(memory_format=torch.channels_last)
        size = x.shape[-2:]
        sides = []
        for level, count in enumerate(_TRUNK, 1):
            if level > 1:
                x = F.max_pool2d(x, 2)
            for index in range(1, count + 1):
                x = F.relu(self._convolve(f"conv{level}_{index}", x))
            sides.append(F.interpolate(self._convolve(f"side{level}", x), size, mode="bilinear", align_corners=False))
        fused = torch.sigmoid(self._convolve("fuse", torch.cat(sides, dim=1)))[0, 0]
        inside = slice(_HED_MARGIN_PX, _HED_MARGIN_PX + height), slice(_HED_MARGIN_PX, _HED_MARGIN_PX + width)
        return np.ascontiguousarray(fused.numpy()[inside])


class OpenCvDetector:
    """Smoothed color gradients: needs no weights, but sees texture where HED sees outlines."""

    name = "opencv"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give a soft edge strength; see `EdgeDetector`."""
        return np.stack([self._detect(image) for image in images])

    @staticmethod
    def _detect(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        sigma = max(1.0, image.shape[0] / 160)
        smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma)
        across = cv2.Scharr(smooth, cv2.CV_32F, 1, 0) / 32
        down = cv2.Scharr(smooth, cv2.CV_32F, 0, 1) / 32
        strength = np.sqrt(across**2 + down**2).max(axis=-1)
        # Half probability at the gradient that only a tenth of the image exceeds; a floor of 2 gray levels per pixel
        # keeps noise on a plain background from counting as edges.
        half = max(2.0, float(np.quantile(strength, 0.9)))
        # Strong edges stop growing as a whole, so that each keeps the profile of a ridge; growing pixel by pixel would
        # flatten its top to a plateau.
        reach = 2 * round(2 * sigma) + 1
        peak = cv2.dilate(strength, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
        edges: NDArray[np.float32] = (strength * peak / (peak**2 + half**2)).astype(np.float32)
        return edges


def settle_detector(name: str) -> str:
    """Turn `auto` into what can be had here and now, so that all workers of a job can be told the same.

    Args:
        name: "hed", "opencv", or "auto" for hed where its weights can be had and opencv elsewhere.

    Returns:
        "hed" or "opencv".

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in ("auto", "hed", "opencv"):
        raise ConfigError(f"data.sketch.detector is {name!r}; give auto, hed or opencv")
    if name != "auto":
        return name
    try:
        hed_arrays()
    except ModelError as error:
        _log.warning(
            "sketches are drawn from plain gradients: outlines are less complete and hair and clothes more cluttered "
            "than with HED, so a trained model will follow strokes less well: %s",
            error,
        )
        return "opencv"
    return "hed"


def make_detector(name: str) -> EdgeDetector:
    """Build an edge detector by name.

    Args:
        name: as `settle_detector` takes it.

    Raises:
        ConfigError: the name is unknown.
        ModelError: "hed" was asked for and its weights cannot be had.
    """
    return HedDetector(hed_arrays()) if settle_detector(name) == "hed" else OpenCvDetector()


def make_sketches(images: NDArray[np.uint8], detector: EdgeDetector, config: SketchConfig) -> NDArray[np.uint8]:
    """Draw the lines of photographs.

    Args:
        images: (N, S, S, 3) uint8 RGB.
        detector: finds edges.
        config: the chain's settings.

    Returns:
        (N, S, S) uint8 in {0, 1}; 1 is a line, one pixel wide.
    """
    size_px = images.shape[1]
    working_px = config.working_size_px or min(384, -(-(size_px + 128) // 16) * 16)
    prepared = np.stack([_equalize(_resize(image, working_px), config) for image in images])
    return np.stack([_draw(edges, size_px, config) for edges in detector(prepared)])


def _resize(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    if image.shape[0] == size_px:
        return image
    how = cv2.INTER_AREA if image.shape[0] > size_px else cv2.INTER_LINEAR  # cubic would ring: doubled lines
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=how), np.uint8)


def _equalize(image: NDArray[np.uint8], config: SketchConfig) -> NDArray[np.uint8]:
    if config.clahe_clip == 0:
        return image
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    tiles = (config.clahe_tiles, config.clahe_tiles)
    lab[..., 0] = cv2.createCLAHE(config.clahe_clip, tiles).apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _draw(edges: NDArray[np.float32], size_px: int, config: SketchConfig) -> NDArray[np.uint8]:
    """Turn (W, W) edge probabilities into a (size_px, size_px) sketch."""
    to_working, to_result = edges.shape[0] / 256, size_px / 256
    lines = _remove_short(_find_ridges(edges, config.threshold), config.min_component_px * to_working)
    drawn = _draw_smooth(lines, size_px, config.smoothing_sigma * to_working)
    # Lines that were apart at the working size may touch at the data's size: thin and clean once more.
    return _remove_short(_thin(drawn > 0), config.min_component_px * to_result).astype(np.uint8)


def _find_ridges(edges: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Mark one-pixel lines along the ridges of (W, W) edge probabilities."""
    smooth = cv2.GaussianBlur(edges, (0, 0), _RIDGE_SIGMA_PX)
    xx = cv2.Sobel(smooth, cv2.CV_32F, 2, 0, ksize=3, scale=1 / 4)
    yy = cv2.Sobel(smooth, cv2.CV_32F, 0, 2, ksize=3, scale=1 / 4)
    xy = cv2.Sobel(smooth, cv2.CV_32F, 1, 1, ksize=3, scale=1 / 4)
    # Smallest eigenvalue of the Hessian: how sharply the probability falls off to the sides of a line.
    curvature = np.sqrt(((xx - yy) / 2) ** 2 + xy**2) - (xx + yy) / 2
    # Along its eigenvector, slope over curvature is the distance to the crest; the shoulders of wide lines are far.
    along = np.arctan2(2 * xy, xx - yy) / 2
    slope = np.abs(
        cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8) * np.cos(along)
        - cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8) * np.sin(along)
    )
    crest = (curvature > _RIDGE_CURVATURE) & (slope < _CREST_REACH_PX * curvature)
    weak = crest & (smooth > threshold * _WEAK_FRACTION)
    # As Canny does it: a weak stretch counts where it continues a strong one.
    count, components = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)
    kept = np.zeros(count, np.bool_)
    kept[components[weak & (smooth > threshold)]] = True
    return _thin(kept[components])


def _thin(lines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(skeletonize(lines), np.bool_)


def _remove_short(lines: NDArray[np.bool_], min_px: float) -> NDArray[np.bool_]:
    _, components, stats, _ = cv2.connectedComponentsWithStats(lines.astype(np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_px
    kept[0] = False  # the background
    return np.asarray(kept[components], np.bool_)


def _draw_smooth(lines: NDArray[np.bool_], size_px: int, sigma_px: float) -> NDArray[np.uint8]:
    """Smooth thin lines along themselves and draw them at another size.

    The pixels are the nodes of a graph. Repeated averaging with the neighbors along the line moves them as a
    Gaussian would; line ends stay where they are.

    Args:
        lines: (W, W) bool, one pixel wide.
        size_px: side of the result, in pixels.
        sigma_px: Gaussian sigma in pixels of the lines' own size.

    Returns:
        (size_px, size_px) uint8 in {0, 1}.
    """
    result: NDArray[np.uint8] = np.zeros((size_px, size_px), np.uint8)
    y, x = np.nonzero(lines)
    if x.size == 0:
        return result
    number = np.full((lines.shape[0] + 2, lines.shape[1] + 2), -1, np.int64)
    number[y + 1, x + 1] = np.arange(x.size)

    def neighbor(down: int, right: int) -> NDArray[np.int64]:
        return number[y + 1 + down, x + 1 + right]

    links = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        other = neighbor(down, right)
        linked = other >= 0
        if down and right:
            # No diagonal across a corner that is already linked along its two sides, else corners become junctions.
            linked &= (neighbor(down, 0) < 0) & (neighbor(0, right) < 0)
        links.append(np.stack([np.flatnonzero(linked), other[linked]], axis=1))
    pairs = np.concatenate(links)
    first, second = pairs.T
    degree = np.bincount(pairs.ravel(), minlength=x.size)
    moving = degree >= 2
    points = np.stack([x, y], axis=1).astype(np.float64)
    for _ in range(round(2 * sigma_px**2)):  # each pass weighs 1/4, 1/2, 1/4: a variance of one half
        total = np.stack(
            [
                np.bincount(first, points[second, axis], x.size) + np.bincount(second, points[first, axis], x.size)
                for axis in range(2)
            ],
            axis=1,
        )
        points[moving] = (points[moving] + total[moving] / degree[moving, None]) / 2
    scaled = (points + 0.5) * (size_px / lines.shape[0]) - 0.5
    fixed_point = np.rint(scaled * 16).astype(np.int32)
    cv2.polylines(result, list(fixed_point[pairs]), False, 1, 1, cv2.LINE_8, 4)
    return result
