"""Strokes such as people draw: lines that stray, break off, are too thick or too many, and colors that are off."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scfegan_ray.config import StrokeConfig

_OFF = StrokeConfig()
_CELLS = 8
"""Per side: what is alike within one, and how large a piece of a line is."""
_LEAST_COVERED = 96
_LINE_PX_AT = 256
_LONGEST_STEP = 1 / 16
_MOST_TURN_RADIANS = 0.6
_VERTICES = 6


def vary(
    sketch: NDArray[np.uint8], color: NDArray[np.uint8], config: StrokeConfig, rng: Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Change lines and paint as far as an image's share of it goes.

    Args:
        sketch: (S, S) uint8 {0, 1}, the photograph's lines.
        color: (S, S, 3) uint8 RGB, paint; black where there is none.
        config: how far at most; where it says nowhere, no random number is taken.
        rng: all randomness.

    Returns:
        The same shapes; what is unpainted stays so, and nothing else becomes so.
    """
    if config == _OFF:
        return sketch, color
    strength = rng.random()
    if rng.random() < config.sketch_absent_probability:
        sketch = np.zeros_like(sketch)
    else:
        sketch = _vary_lines(sketch, config, strength, rng)
    return sketch, _shift_colors(color, strength * config.color_shift, rng)


def _vary_lines(sketch: NDArray[np.uint8], config: StrokeConfig, strength: float, rng: Generator) -> NDArray[np.uint8]:
    size_px = sketch.shape[0]
    if config.wobble:
        away = rng.normal(0, strength * config.wobble * size_px, (2, _CELLS, _CELLS)).astype(np.float32)
        x, y = (cv2.resize(one, (size_px, size_px), interpolation=cv2.INTER_CUBIC) for one in away)
        at = np.arange(size_px, dtype=np.float32)
        moved = cv2.remap(sketch * np.uint8(255), x + at, y + at[:, None], cv2.INTER_LINEAR)
        sketch = (moved >= _LEAST_COVERED).astype(np.uint8)
    if config.missing:
        kept = (rng.random((_CELLS, _CELLS)) >= strength * config.missing).astype(np.uint8)
        where = cv2.resize(kept, (size_px, size_px), interpolation=cv2.INTER_NEAREST)
        sketch = np.asarray(cv2.copyTo(sketch, where), np.uint8)
    if config.added_lines:
        sketch = sketch.copy()
        for _ in range(rng.poisson(strength * config.added_lines)):
            _draw_line(sketch, rng)
    added_px = round(rng.random() * strength * config.thickness * size_px) if config.thickness else 0
    if added_px:
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (added_px + 1, added_px + 1))
        sketch = np.asarray(cv2.dilate(sketch, brush), np.uint8)
    return sketch


def _draw_line(sketch: NDArray[np.uint8], rng: Generator) -> None:
    """Draw a short curved line anywhere."""
    size_px = sketch.shape[0]
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(-_MOST_TURN_RADIANS, _MOST_TURN_RADIANS, _VERTICES))
    steps = rng.uniform(0, _LONGEST_STEP * size_px, _VERTICES)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    points = rng.uniform(0, size_px, 2) + np.cumsum(steps, axis=0)
    width_px = max(1, round(size_px / _LINE_PX_AT))
    cv2.polylines(sketch, [np.rint(points).astype(np.int32)], False, 1, width_px)


def _shift_colors(color: NDArray[np.uint8], sigma: float, rng: Generator) -> NDArray[np.uint8]:
    """Move each color as a whole, so that flat paint stays flat."""
    painted = color.any(axis=2)
    if not sigma or not painted.any():
        return color
    colors, which = np.unique(color[painted], axis=0, return_inverse=True)
    moved = np.rint(colors + rng.normal(0, sigma, colors.shape)).clip(1, 255).astype(np.uint8)
    shifted = color.copy()
    shifted[painted] = moved[which.reshape(-1)]
    return shifted
