"""Holes, color brushes and noise, drawn at random with an explicit generator: same seed, same maps.

Strokes are drawn on a canvas of one fixed size and then brought to the image's, so that a hole has the same
distribution (and from one seed the same shape) whatever the size of the data.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scfegan_ray.config import MaskConfig

_CANVAS_PX = 256
_FRACTION_BITS = 4  # cv2 draws at sixteenths of a pixel
_MAX_REDRAWS = 20
_MAX_COLOR_STROKES = 60
_COLOR_SPREAD = 3.0
_ALL_PAINTED = 0.95


def draw_mask(
    size_px: int, eyes: NDArray[np.float32], hair: NDArray[np.uint8] | None, config: MaskConfig, rng: Generator
) -> NDArray[np.uint8]:
    """Draw a free-form hole.

    Paper: Algorithm 1. Up to `max_lines` polylines zigzag from anywhere; after each one more line starts at an eye,
    unless chance (`eye_line_probability`) says otherwise; at the end the hair is added at random. A hole whose area
    (before hair) is out of range is drawn anew; after 20 vain attempts it is a disk of an area in range. It is never
    empty.

    Args:
        size_px: side of the mask, S, in pixels.
        eyes: (4,) float32; x, y of both eyes in pixels.
        hair: (S, S) uint8 in {0, 1}, or None where it is not known.
        config: maxima of Algorithm 1, brush widths, range of the area.
        rng: source of every random number.

    Returns:
        (S, S) uint8 in {0, 1}; 1 marks pixels to fill.
    """
    to_canvas = _CANVAS_PX / size_px
    eyes_on_canvas = (np.asarray(eyes, np.float64).reshape(2, 2) + 0.5) * to_canvas - 0.5
    smallest, largest = (share * size_px**2 for share in (config.min_hole_area, config.max_hole_area))
    for _ in range(_MAX_REDRAWS):
        mask = _to_size(_draw_lines(eyes_on_canvas, config, rng), size_px)
        if cv2.countNonZero(mask) > 0 and smallest <= cv2.countNonZero(mask) <= largest:
            break
    else:
        mask = _draw_disk(size_px, config, rng)
    if rng.random() < config.hair_probability and hair is not None:
        mask = mask | hair
    return mask


def draw_brush(mask: NDArray[np.uint8], config: MaskConfig, rng: Generator) -> NDArray[np.uint8]:
    """Choose the part of a hole in which the color map is shown, in strokes such as a user paints.

    With probability `color_absent_probability` nothing is painted, as when a user only sketches. Otherwise the
    share to paint is drawn from a beta distribution (concentration 3) whose mean makes the mean over all holes
    `color_coverage`, and strokes that start on bare hole are added until it is reached; a share above 0.95 paints
    all. The published figure shows about 0.6; its distribution was never published.

    Args:
        mask: (S, S) uint8 in {0, 1}; 1 marks pixels to fill.
        config: coverage and brush widths.
        rng: source of every random number.

    Returns:
        (S, S) uint8 in {0, 1}, a subset of the mask; 1 marks painted pixels.
    """
    mean = min(1.0, config.color_coverage / max(1.0 - config.color_absent_probability, 1e-6))
    absent = rng.random() < config.color_absent_probability
    if mean >= 1.0:
        share = 1.0
    elif mean <= 0.0:
        share = 0.0
    else:
        share = rng.beta(mean * _COLOR_SPREAD, (1.0 - mean) * _COLOR_SPREAD)
    if absent or share == 0.0:
        return np.zeros_like(mask)
    if share > _ALL_PAINTED:
        return mask.copy()

    hole = _to_size(mask, _CANVAS_PX)
    places = np.flatnonzero(hole.view(np.bool_))
    missing = round(share * len(places))
    # Long lines in small holes would leave no say in the share: strokes reach about as far as the hole is wide.
    reach = min(config.max_length * _CANVAS_PX, len(places) ** 0.5)
    num_bare, bare = len(places), hole
    for path, width_px in _zigzags(1 + rng.integers(4, size=_MAX_COLOR_STROKES), reach, config, rng):
        if missing <= 0:
            break
        # Bare hole is soon met: while anything is missing, a twentieth of the hole or more is bare.
        while not bare[place := divmod(int(places[rng.integers(len(places))]), _CANVAS_PX)]:
            pass
        left = bare.copy()
        _draw_polyline(left, path + _to_fixed_point(np.array(place[::-1], np.float64)), width_px, 0)
        num_left = cv2.countNonZero(left)
        gained = num_bare - num_left
        # The stroke that reaches the share is kept where that comes closer to it than leaving it out.
        if gained - missing > missing:
            break
        num_bare, bare = num_left, left
        missing -= gained
    return _to_size(hole ^ bare, mask.shape[0]) & mask


def draw_noise(mask: NDArray[np.uint8], config: MaskConfig, rng: Generator) -> NDArray[np.uint8]:
    """Sprinkle ones over a hole.

    Args:
        mask: (S, S) uint8 in {0, 1}; 1 marks pixels to fill.
        config: `noise_probability`, the chance of a 1 per pixel of the hole.
        rng: source of every random number.

    Returns:
        (S, S) uint8 in {0, 1}, 0 outside the hole.
    """
    # This runs for every image seen: words of 64 bits, each cut into four draws, are the cheapest there are.
    words = rng.integers(0, 1 << 64, -(-mask.size // 4), np.uint64)
    draws = words.view(np.uint16)[: mask.size].reshape(mask.shape)
    return (draws < round(config.noise_probability * (1 << 16))).view(np.uint8) & mask


def _draw_lines(eyes: NDArray[np.float64], config: MaskConfig, rng: Generator) -> NDArray[np.uint8]:
    """Draw Algorithm 1 without hair on the canvas; eyes: (2, 2) x, y in pixels of the canvas."""
    canvas: NDArray[np.uint8] = np.zeros((_CANVAS_PX, _CANVAS_PX), np.uint8)
    num_lines = 1 + int(rng.integers(config.max_lines))
    starts = np.concatenate([rng.random((num_lines, 2)) * _CANVAS_PX, eyes[rng.integers(2, size=num_lines)]])
    num_vertices = np.ones(2 * num_lines, np.int64)
    num_vertices[:num_lines] += rng.integers(config.max_vertices, size=num_lines)
    reach = config.max_length * _CANVAS_PX
    strokes = _zigzags(num_vertices, reach, config, rng)
    drawn = np.ones(2 * num_lines, np.bool_)
    if config.eye_line_probability < 1:
        drawn[num_lines:] = rng.random(num_lines) < config.eye_line_probability
    for start, (path, width_px), is_drawn in zip(_to_fixed_point(starts), strokes, drawn, strict=True):
        if is_drawn:
            _draw_polyline(canvas, start + path, width_px, 1)
    return canvas


def _zigzags(
    num_vertices: NDArray[np.int64], reach: float, config: MaskConfig, rng: Generator
) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Choose the shapes of polylines, all at once because numpy takes as long for one as for dozens.

    Args:
        num_vertices: (N,) vertices of each after its start; at every one it turns around, give or take the largest
            angle.
        reach: longest segment, in pixels of the canvas.
        config: largest angle, brush widths.
        rng: source of every random number.

    Yields:
        For each the points x, y relative to its start, (num_vertices + 1, 2) int32 fixed-point pixels of the canvas,
        and the width of its brush in whole ones.
    """
    shape = (len(num_vertices), int(num_vertices.max()))
    turns = rng.uniform(-config.max_angle_degrees, config.max_angle_degrees, shape)
    angles = np.radians(rng.random((shape[0], 1)) * 360.0 + turns + 180.0 * (np.arange(shape[1]) % 2))
    lengths = rng.random(shape) * reach
    points = np.zeros((shape[0], shape[1] + 1, 2))
    np.cumsum(lengths * np.sin(angles), axis=1, out=points[:, 1:, 0])
    np.cumsum(lengths * np.cos(angles), axis=1, out=points[:, 1:, 1])
    widths_px = np.maximum(1, np.rint(rng.uniform(config.min_brush, config.max_brush, shape[0]) * _CANVAS_PX))
    for path, count, width_px in zip(_to_fixed_point(points), num_vertices, widths_px, strict=True):
        yield path[: count + 1], int(width_px)


def _to_fixed_point(points: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.rint(points * (1 << _FRACTION_BITS)).astype(np.int32)


def _draw_polyline(canvas: NDArray[np.uint8], points: NDArray[np.int32], width_px: int, value: int) -> None:
    # cv2 rounds the joints and the ends of thick lines.
    cv2.polylines(canvas, [points], False, value, width_px, cv2.LINE_8, _FRACTION_BITS)


def _draw_disk(size_px: int, config: MaskConfig, rng: Generator) -> NDArray[np.uint8]:
    """Mark the pixels nearest to a random place, exactly as many as the middle of the range of areas holds."""
    share = (config.min_hole_area + config.max_hole_area) / 2
    count = max(1, round(share * size_px**2))
    y, x = np.ogrid[:size_px, :size_px]
    center_x, center_y = rng.random(2) * size_px
    distance = (x - center_x) ** 2 + (y - center_y) ** 2
    mask: NDArray[np.uint8] = np.zeros(size_px**2, np.uint8)
    mask[np.argpartition(distance, count - 1, axis=None)[:count]] = 1
    return mask.reshape(size_px, size_px)


def _to_size(binary: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Copy a square binary map to another size with smooth outlines."""
    if binary.shape[0] == size_px:
        return binary.copy()
    how = cv2.INTER_AREA if binary.shape[0] > size_px else cv2.INTER_LINEAR
    gray = cv2.resize(binary * np.uint8(254), (size_px, size_px), interpolation=how)
    return np.asarray(cv2.threshold(gray, 126, 1, cv2.THRESH_BINARY)[1], np.uint8)
