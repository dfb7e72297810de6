"""The canvas, and the outlines and masks that parts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from scfegan_ray.data.parsing import LABELS

F32 = NDArray[np.float32]

CLASS = {name: number for number, name in enumerate(LABELS)}


def array(values: ArrayLike) -> F32:
    """Give `values` as float32."""
    return np.asarray(values, np.float32)


# --- masks and paint ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mask:
    """Coverage 0..1 of one part inside a rectangle of the canvas."""

    rows: slice
    columns: slice
    alpha: F32

    def inside(self, other: Mask) -> Mask:
        """Weaken the coverage by that of `other`."""
        rows, columns = _overlap(self.rows, other.rows), _overlap(self.columns, other.columns)
        return Mask(rows, columns, self._crop(rows, columns) * other._crop(rows, columns))

    def _crop(self, rows: slice, columns: slice) -> F32:
        top, left = self.rows.start, self.columns.start
        return self.alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _overlap(first: slice, second: slice) -> slice:
    start = max(first.start, second.start)
    return slice(start, max(start, min(first.stop, second.stop)))


class Canvas:
    """Float RGB paint in 0..1 and class ids, changed together."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = np.zeros((side, side, 3), np.float32)
        self.labels = np.zeros((side, side), np.uint8)

    def shape(self, *outlines: F32, blur: float = 0.0, clip: Mask | None = None) -> Mask:
        """Coverage of closed curves, each (n, 2) image coordinates, softened by `blur`, inside `clip`."""
        sigma = blur * self.side
        margin = int(np.ceil(3 * sigma)) + 2
        pixels = [outline * self.side for outline in outlines]
        every = np.concatenate(pixels)
        left, top = (max(0, int(value) - margin) for value in every.min(axis=0))
        right, bottom = (min(self.side, int(value) + 1 + margin) for value in every.max(axis=0))
        stencil = np.zeros((max(0, bottom - top), max(0, right - left)), np.uint8)
        rows, columns = slice(top, top + stencil.shape[0]), slice(left, left + stencil.shape[1])
        if not stencil.size:
            return Mask(rows, columns, array(stencil))
        corner = array([left + 0.5, top + 0.5])  # OpenCV's pixel centers are whole numbers
        for curve in pixels:
            # Four fractional bits keep small curves smooth.
            cv2.fillPoly(stencil, [np.round((curve - corner) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        alpha = stencil * np.float32(1 / 255)
        if sigma > 0.3:
            alpha = array(cv2.GaussianBlur(alpha, (0, 0), sigma))
        mask = Mask(rows, columns, alpha)
        return mask if clip is None else mask.inside(clip)

    def paint(
        self,
        mask: Mask,
        color: ArrayLike,
        label: str | None = None,
        *,
        opacity: float = 1.0,
        light: F32 | None = None,
        only: Sequence[str] = (),
    ) -> None:
        """Cover `mask` with a color or a (side, side, 3) field.

        Args:
            mask: the part's coverage.
            color: RGB in 0..1, or such a field.
            label: class of the part; None leaves the labels as they are.
            opacity: 0..1; it changes the paint, not the label.
            light: (side, side, 1 or 3) factors of the color.
            only: classes that may be covered; empty for all.
        """
        mask = self._restrict(mask, only)
        window = (mask.rows, mask.columns)
        paint = array(color)
        if paint.ndim == 3:
            paint = paint[window]
        if light is not None:
            paint = paint * light[window]
        image = self.image[window]
        image += (mask.alpha * opacity)[..., None] * (paint - image)
        if label is not None:
            self.label(mask, label)

    def label(self, mask: Mask, label: str) -> None:
        """Give `mask` a class without painting it."""
        self.labels[mask.rows, mask.columns][mask.alpha >= 0.5] = CLASS[label]

    def shade(self, mask: Mask, strength: float, only: Sequence[str] = ()) -> None:
        """Darken `mask`, blue most: shadows on skin are warm."""
        mask = self._restrict(mask, only)
        self.image[mask.rows, mask.columns] *= 1 - mask.alpha[..., None] * (array([0.82, 0.96, 1.0]) * strength)

    def _restrict(self, mask: Mask, only: Sequence[str]) -> Mask:
        """The mask without pixels of classes not in `only`; empty for all."""
        if not only:
            return mask
        allowed = np.isin(self.labels[mask.rows, mask.columns], [CLASS[name] for name in only])
        return Mask(mask.rows, mask.columns, mask.alpha * allowed)


# --- points and outlines -----------------------------------------------------------------------------------------


def knots(x: ArrayLike, y: ArrayLike) -> F32:
    """Points (n, 2) from their x and their y; one of them may be a single number."""
    return np.stack(np.broadcast_arrays(array(x), array(y)), axis=1)


def flipped(points: F32) -> F32:
    """Mirror images of (n, 2) points across the axis, in reverse order."""
    return (points * array([-1, 1]))[::-1]


def both(half: F32) -> F32:
    """The points (n, 2) and then their mirror images in reverse; points on the axis are not repeated."""
    other = flipped(half)
    return np.concatenate([half, other[np.abs(other[:, 0]) > 1e-6]])


def shrunk(points: F32, factor: float) -> F32:
    """Points (n, 2) moved toward their mean."""
    middle = points.mean(axis=0)
    return array((points - middle) * factor + middle)


def smooth(points: ArrayLike, closed: bool = False, steps: int = 8) -> F32:
    """Catmull-Rom curve through (n, 2) points, `steps` samples a span."""
    given = array(points)
    padded = np.concatenate([given[-1:], given, given[:2]] if closed else [given[:1], given, given[-1:]])
    before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False, dtype=np.float32)[None, :, None]
    linear, square, cube = end - before, 2 * before - 5 * start + 4 * end - after, 3 * start - before - 3 * end + after
    curve = start[:, None] + 0.5 * (linear[:, None] * t + square[:, None] * t**2 + cube[:, None] * t**3)
    flat = array(curve.reshape(-1, 2))
    return flat if closed else np.concatenate([flat, given[-1:]])


def ellipse(x: float, y: float, half_width: float, half_height: float, power: float = 2.0, count: int = 36) -> F32:
    """Superellipse outline; power 2 is an ellipse, larger is boxier."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    cosine, sine = np.cos(angle), np.sin(angle)
    horizontal = np.sign(cosine) * np.abs(cosine) ** (2 / power) * half_width + x
    vertical = np.sign(sine) * np.abs(sine) ** (2 / power) * half_height + y
    return knots(horizontal, vertical)


def ribbon(path: F32, width: ArrayLike) -> F32:
    """Outline of a stroke along an (n, 2) path; `width` is a number or one for each point."""
    along = np.concatenate([path[1:], path[-1:]]) - np.concatenate([path[:1], path[:-1]])
    along /= np.hypot(along[:, :1], along[:, 1:]) + 1e-9
    across = along[:, ::-1] * array([-1, 1]) * np.broadcast_to(array(width) / 2, len(path))[:, None]
    return np.concatenate([path + across, (path - across)[::-1]])


def ring(outline: F32, width: float) -> F32:
    """Outline of a stroke along a closed (n, 2) curve."""
    return ribbon(np.concatenate([outline, outline[:2]]), width)


# --- textures ----------------------------------------------------------------------------------------------------


def noise(rng: np.random.Generator, rows: int, columns: int, blur_rows: float, blur_columns: float) -> F32:
    """Tileable smooth noise (rows, columns), mean 0 and deviation 1."""
    white = rng.standard_normal((rows, columns), np.float32)
    pad_y, pad_x = int(3 * blur_rows) + 1, int(3 * blur_columns) + 1
    wrapped = np.pad(white, ((pad_y, pad_y), (pad_x, pad_x)), mode="wrap")
    soft = cv2.GaussianBlur(wrapped, (0, 0), sigmaX=blur_columns, sigmaY=blur_rows)[pad_y:-pad_y, pad_x:-pad_x]
    return array((soft - soft.mean()) / (soft.std() + 1e-6))


def enlarge(field: F32, side: int) -> F32:
    """Resample a square field to `side` pixels a side."""
    return array(cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR))
