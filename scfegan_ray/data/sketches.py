"""Sketch maps: photographs become line drawings, one pixel wide.

Paper: histogram equalization, HED edge detector, threshold, thinning, smoothing of the curves, removal of small
components. Order here: CLAHE on luminance -> edge probability -> ridge lines above the threshold, thinned ->
curves smoothed as curves, not as pixels, and drawn at the data's size -> short lines removed.

Differs from the paper: lines are looked for on the ridges of the probability and not all over the area above the
threshold, because that area is a blob many pixels wide around eyes and lips, whose thinning has little to do with
their shape.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.morphology import skeletonize
from torch import Tensor

from scfegan_ray.config import SketchConfig
from scfegan_ray.errors import ModelError
from scfegan_ray.precision import check_available, resolve_precision
from scfegan_ray.weights import hed_arrays

_log = logging.getLogger(__name__)

_TRUNK = (2, 2, 3, 3, 3)  # convolutions per resolution of VGG-16
_MEAN_RGB = (122.67892, 116.66877, 104.00699)  # what the HED weights were trained with
_HED_MARGIN_PX = 16
_LARGE_LEVELS = 3  # resolutions of HED that outgrow a processor's cache

_PIXELS_PER_PASS = {"cpu": 1 << 20, "cuda": 1 << 21}
# A CPU gains nothing from more. On a GPU the widest layer then takes 256 MB in bfloat16, so that several processes can
# share one.

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
    """Holistically-nested edge detection.

    Two machines draw the same lines up to rounding. On photographs of CelebA-HQ, probabilities in bfloat16 are within
    0.011 of those in float32, on average within 0.0005, and 2 of 1,000 sketch pixels are elsewhere.
    """

    name = "hed"

    def __init__(
        self,
        arrays: Mapping[str, NDArray[np.float32]],
        precision: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """Take the weights.

        Args:
            arrays: what `weights.hed_arrays` returns; kernels (kh, kw, in, out) float32, biases (out,) float32.
            precision: float32 or bfloat16, of the convolutions; the rest is float32.
            device: where to compute. Default: the CPU.

        Raises:
            ModelError: an array is missing.
        """
        self._precision = precision
        self._device = device or torch.device("cpu")
        mean = torch.tensor(_MEAN_RGB)
        # Pixels less a whole number stay exact in bfloat16, where pixels less the mean would lose up to half a gray
        # level; the first layer's bias makes up for the difference.
        offset = mean.round()
        self._offset = offset.to(self._device)
        self._trunk: list[list[tuple[Tensor, Tensor]]] = []
        self._sides: list[Tensor] = []
        try:
            # The fusion weighs each side output where it is smallest; only their sum is made at full size.
            weights = arrays["fuse/kernel"].flatten()
            self._bias = float(arrays["fuse/bias"].sum())
            for level, (count, weight) in enumerate(zip(_TRUNK, weights, strict=True), 1):
                layers = []
                for index in range(1, count + 1):
                    kernel = self._place(arrays[f"conv{level}_{index}/kernel"])
                    bias = torch.tensor(arrays[f"conv{level}_{index}/bias"])
                    if level == index == 1:
                        kernel = kernel.flip(1)  # the weights want BGR
                        bias = bias + (kernel.float().cpu().sum(dim=(2, 3)) * (offset - mean)).sum(dim=1)
                    layers.append((kernel, bias.to(self._device, precision)))
                self._trunk.append(layers)
                self._sides.append(self._place(arrays[f"side{level}/kernel"] * weight))
                self._bias += float(arrays[f"side{level}/bias"].sum() * weight)
        except KeyError as error:
            raise ModelError(f"HED weights lack {error}; pass what weights.hed_arrays returns") from error

    def _place(self, kernel: NDArray[np.float32]) -> Tensor:
        """Bring a kernel to torch's order, the device and the precision."""
        moved = torch.tensor(kernel).permute(3, 2, 0, 1).to(self._device, self._precision)
        return moved.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give the fused edge probability; see `EdgeDetector`."""
        edges = np.empty(images.shape[:3], np.float32)
        padded_px = (images.shape[1] + 2 * _HED_MARGIN_PX) * (images.shape[2] + 2 * _HED_MARGIN_PX)
        step = max(1, _PIXELS_PER_PASS[self._device.type] // padded_px)
        for start in range(0, len(images), step):
            edges[start : start + step] = self._detect(images[start : start + step])
        return edges

    def _detect(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = images.shape[1:3]
        # A mirrored margin keeps the convolutions' zero padding from showing as edges along the border; sides that
        # are multiples of 16 keep the four poolings aligned.
        top = left = _HED_MARGIN_PX
        bottom, right = top + -height % 16, left + -width % 16
        padded = np.stack([cv2.copyMakeBorder(i, top, bottom, left, right, cv2.BORDER_REFLECT) for i in images])
        x = torch.from_numpy(padded).to(self._device).float() - self._offset
        x = x.to(self._precision).permute(0, 3, 1, 2)
        # A CPU takes the large resolutions image by image: for a batch of them it would wait for fresh memory half as
        # long as it computes. The small ones are faster together, for there the weights are what is large.
        pieces = x.chunk(len(x) if x.device.type == "cpu" else 1)
        parts = [self._levels(piece, 0, _LARGE_LEVELS) for piece in pieces]
        large = [torch.cat(sides) for sides in zip(*(sides for _, sides in parts), strict=True)]
        _, small = self._levels(torch.cat([features for features, _ in parts]), _LARGE_LEVELS, len(_TRUNK))
        logits, *others = large + small
        for side in others:
            logits += F.interpolate(side, logits.shape[-2:], mode="bilinear", align_corners=False)
        fused = torch.sigmoid(logits + self._bias)[:, 0, top : top + height, left : left + width]
        return np.asarray(fused.cpu().numpy(), np.float32)

    def _levels(self, x: Tensor, first: int, last: int) -> tuple[Tensor, list[Tensor]]:
        """Run some resolutions of the trunk.

        Args:
            x: (N, C, H, W) image, or features of the resolution before `first`.
            first: the first resolution, from 0.
            last: the one after the last.

        Returns:
            Features of the last resolution, and the weighted side output of each: (N, 1, h, w) float32.
        """
        sides = []
        for level in range(first, last):
            if level > 0:
                x = _halve(x)
            for kernel, bias in self._trunk[level]:
                x = _rectify(F.conv2d(x, kernel, bias, padding=1))
            sides.append(F.conv2d(x, self._sides[level]).float())
        return x, sides


def _rectify(x: Tensor) -> Tensor:
    """Set negative values to zero, in place."""
    # Floats have the sign of the integer with the same bits, and that comparison is the faster one: torch's own takes
    # bfloat16 through float32.
    x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32).clamp_(min=0)
    return x


def _halve(x: Tensor) -> Tensor:
    """Take the maximum of each 2x2 block; torch's own pooling also notes where it was, at twice the time."""
    rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class OpenCvDetector:
    """Smoothed color gradients: needs no weights, but sees texture where HED sees outlines."""

    name = "opencv"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give a soft edge strength; see `EdgeDetector`."""
        edges = np.empty(images.shape[:3], np.float32)
        for place, image in zip(edges, images, strict=True):
            place[:] = self._detect(image)
        return edges

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


def settle(config: SketchConfig) -> SketchConfig:
    """Decide what is left to `auto` by what can be had here and now, so that all workers of a job can be told the same.

    Returns:
        The config with `detector` "hed" or "opencv" and `precision` "float32" or "bfloat16".
    """
    detector, precision = config.detector, config.precision
    if detector == "auto":
        detector = "hed"
        try:
            hed_arrays()
        except ModelError as error:
            detector = "opencv"
            _log.warning(
                "sketches are drawn from plain gradients: outlines are less complete and hair and clothes more "
                "cluttered than with HED, so a trained model will follow strokes less well: %s",
                error,
            )
    if precision == "auto":
        reduced = detector == "hed" and resolve_precision(precision, torch.device("cpu")) == torch.bfloat16
        precision = "bfloat16" if reduced else "float32"
    return dataclasses.replace(config, detector=detector, precision=precision)


def make_detector(config: SketchConfig, device: torch.device | None = None) -> EdgeDetector:
    """Build the edge detector that a config asks for.

    Args:
        config: its `detector` and `precision`; what is left to `auto` is settled first.
        device: where HED computes. Default: the CPU; a GPU that can be seen may be somebody else's.

    Raises:
        ModelError: HED was asked for and its weights cannot be had.
        ConfigError: the GPU cannot be used.
    """
    settled = settle(config)
    if settled.detector == "opencv":
        return OpenCvDetector()
    device = device or torch.device("cpu")
    check_available(device, "give --data.gpus-per-actor 0")
    try:
        arrays = hed_arrays()
    except ModelError as error:
        raise ModelError(
            f"the sketches want the HED edge detector: {error}; or give --data.sketch.detector opencv, whose lines are "
            "less complete"
        ) from error
    return HedDetector(arrays, resolve_precision(settled.precision, device), device)


def working_size_px(config: SketchConfig, size_px: int) -> int:
    """Tell at which size edges are detected; larger photographs show no more.

    Args:
        config: its `working_size_px`.
        size_px: side of the resulting sketches.
    """
    return config.working_size_px or min(384, -(-(size_px + 128) // 16) * 16)


def make_sketches(
    photographs: Sequence[NDArray[np.uint8]], detector: EdgeDetector, config: SketchConfig, size_px: int
) -> NDArray[np.uint8]:
    """Draw the lines of photographs.

    Args:
        photographs: (W, W, 3) uint8 RGB each, of any sizes. Edges are detected at `working_size_px`, whatever the
            size of the sketches, so photographs at their own size show more than scaled down to that of the data.
        detector: finds edges.
        config: the chain's settings.
        size_px: S, the side of the sketches.

    Returns:
        (N, S, S) uint8 in {0, 1}; 1 is a line, one pixel wide.
    """
    return draw_lines(detector(equalize(photographs, config, size_px)), config, size_px)


def equalize(photographs: Sequence[NDArray[np.uint8]], config: SketchConfig, size_px: int) -> NDArray[np.uint8]:
    """Bring photographs to what the edge detector is to see: the first step of `make_sketches`.

    Returns:
        (N, P, P, 3) uint8 RGB, P being `working_size_px`.
    """
    working_px = working_size_px(config, size_px)
    equalized = np.empty((len(photographs), working_px, working_px, 3), np.uint8)
    for place, photograph in zip(equalized, photographs, strict=True):
        place[:] = _equalize(_resize(photograph, working_px), config)
    return equalized


def draw_lines(edges: NDArray[np.float32], config: SketchConfig, size_px: int) -> NDArray[np.uint8]:
    """Turn (N, P, P) edge probabilities into (N, S, S) sketches: the last step of `make_sketches`."""
    sketches = np.empty((len(edges), size_px, size_px), np.uint8)
    for sketch, probabilities in zip(sketches, edges, strict=True):
        sketch[:] = _draw(probabilities, size_px, config)
    return sketches


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
    return _remove_short(_thin(drawn), config.min_component_px * to_result)


def _find_ridges(edges: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Mark one-pixel lines with 1 along the ridges of (W, W) edge probabilities."""
    smooth = cv2.GaussianBlur(edges, (0, 0), _RIDGE_SIGMA_PX)
    above = np.flatnonzero(smooth > threshold * _WEAK_FRACTION)

    def derivative(across: int, down: int, scale: float) -> NDArray[np.float32]:
        everywhere = cv2.Sobel(smooth, cv2.CV_32F, across, down, ksize=3, scale=scale)
        return np.asarray(everywhere.reshape(-1)[above], np.float32)

    xx, yy, xy = derivative(2, 0, 1 / 4), derivative(0, 2, 1 / 4), derivative(1, 1, 1 / 4)
    # Smallest eigenvalue of the Hessian: how sharply the probability falls off to the sides of a line.
    curvature = np.sqrt(((xx - yy) / 2) ** 2 + xy**2) - (xx + yy) / 2
    # Along its eigenvector, slope over curvature is the distance to the crest; the shoulders of wide lines are far.
    along = np.arctan2(2 * xy, xx - yy) / 2
    slope = np.abs(derivative(0, 1, 1 / 8) * np.cos(along) - derivative(1, 0, 1 / 8) * np.sin(along))
    crest = above[(curvature > _RIDGE_CURVATURE) & (slope < _CREST_REACH_PX * curvature)]
    lines: NDArray[np.uint8] = np.zeros(edges.shape, np.uint8)
    lines.reshape(-1)[crest] = 1
    # As Canny does it: a weak stretch counts where it continues a strong one.
    piece = _number_pieces(lines, crest)
    lines.reshape(-1)[crest] = np.bincount(piece, smooth.reshape(-1)[crest] > threshold)[piece] > 0
    return _thin(lines)


def _thin(lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(skeletonize(lines.view(np.bool_))).view(np.uint8)


def _remove_short(lines: NDArray[np.uint8], min_px: float) -> NDArray[np.uint8]:
    at = np.flatnonzero(lines)
    piece = _number_pieces(lines, at)
    kept = np.zeros_like(lines)
    kept.reshape(-1)[at] = np.bincount(piece)[piece] >= min_px
    return kept


def _number_pieces(lines: NDArray[np.uint8], at: NDArray[np.intp]) -> NDArray[np.int32]:
    """Tell which 8-connected piece each set pixel belongs to; `at` are their places in the flat array."""
    _, components = cv2.connectedComponents(lines, connectivity=8)
    return np.asarray(components.reshape(-1)[at], np.int32)


def _draw_smooth(lines: NDArray[np.uint8], size_px: int, sigma_px: float) -> NDArray[np.uint8]:
    """Smooth thin lines along themselves and draw them at another size.

    The pixels are the nodes of a graph. Repeated averaging with the neighbors along the line moves them as a
    Gaussian would; line ends stay where they are.

    Args:
        lines: (W, W) uint8 in {0, 1}, one pixel wide.
        size_px: side of the result, in pixels.
        sigma_px: Gaussian sigma in pixels of the lines' own size.

    Returns:
        (size_px, size_px) uint8 in {0, 1}.
    """
    result: NDArray[np.uint8] = np.zeros((size_px, size_px), np.uint8)
    y, x = np.nonzero(lines)
    if x.size == 0:
        return result
    # Numbers of the nodes, with a border of one pixel, so that every node has eight neighbors.
    width = lines.shape[1] + 2
    number: NDArray[np.intp] = np.full((lines.shape[0] + 2) * width, -1, np.intp)
    place = (y + 1) * width + x + 1
    number[place] = np.arange(x.size)
    left, right, up, down = (number[place + step] for step in (-1, 1, -width, width))
    links = []
    for other, free in (
        (right, True),
        (down, True),
        # No diagonal across a corner that is already linked along its two sides, else corners become junctions.
        (number[place + width + 1], (right < 0) & (down < 0)),
        (number[place + width - 1], (left < 0) & (down < 0)),
    ):
        first = np.flatnonzero((other >= 0) & free)
        links.append(np.stack([first, other[first]], axis=1))
    pairs = np.concatenate(links)
    ends, others = pairs.ravel(), pairs[:, ::-1].ravel()
    degree = np.bincount(ends, minlength=x.size)
    # Each pass weighs 1/4, 1/2, 1/4: a variance of one half.
    own = np.where(degree >= 2, 0.5, 1.0)
    neighbors = np.where(degree >= 2, 0.5 / np.maximum(degree, 1), 0.0)
    points = [x.astype(np.float64), y.astype(np.float64)]
    for _ in range(round(2 * sigma_px**2)):
        points = [own * axis + neighbors * np.bincount(ends, axis[others], x.size) for axis in points]
    scaled = (np.stack(points, axis=1) + 0.5) * (size_px / lines.shape[0]) - 0.5
    fixed_point = np.rint(scaled * 16).astype(np.int32)
    cv2.polylines(result, list(fixed_point[pairs]), False, 1, 1, cv2.LINE_8, 4)
    return result
