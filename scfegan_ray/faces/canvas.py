"""The canvas, and the outlines that parts are made of."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from scfegan_ray.data.parsing import LABELS

F32 = NDArray[np.float32]

_CLASS = {name: number for number, name in enumerate(LABELS)}


def array(values: ArrayLike) -> F32:
    """Give `values` as float32."""
    return np.asarray(values, np.float32)


@dataclass(frozen=True, slots=True)
class Mask:
    """Coverage 0..1 of one part, `alpha`, inside a window of the canvas."""

    window: tuple[slice, slice]
    alpha: F32


class Canvas:
    """Float RGB paint in 0..1 and class ids, changed together."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = np.zeros((side, side, 3), np.float32)
        self.labels = np.zeros((side, side), np.uint8)

    def shape(self, outline: F32, blur: float = 0.0, clip: F32 | None = None) -> Mask:
        """Coverage of a closed curve (n, 2) in image coordinates, softened by `blur`, times `clip` (side, side)."""
        sigma = blur * self.side
        margin = int(np.ceil(3 * sigma)) + 2
        pixels = outline * self.side
        left, top = (max(0, int(value) - margin) for value in pixels.min(axis=0))
        right, bottom = (min(self.side, int(value) + 1 + margin) for value in pixels.max(axis=0))
        stencil = np.zeros((max(0, bottom - top), max(0, right - left)), np.uint8)
        window = slice(top, top + stencil.shape[0]), slice(left, left + stencil.shape[1])
        if not stencil.size:
            return Mask(window, array(stencil))
        corner = array([left + 0.5, top + 0.5])  # OpenCV's pixel centers are whole numbers
        # Four fractional bits keep small curves smooth.
        cv2.fillPoly(stencil, [np.round((pixels - corner) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        alpha = stencil * np.float32(1 / 255)
        if sigma > 0.3:
            alpha = array(cv2.GaussianBlur(alpha, (0, 0), sigma))
        return Mask(window, alpha if clip is None else alpha * clip[window])

    def spread(self, mask: Mask) -> F32:
        """The coverage (side, side) of a part, to clip others by."""
        whole = np.zeros((self.side, self.side), np.float32)
        whole[mask.window] = mask.alpha
        return whole

    def where(self, *names: str) -> F32:
        """1 at the pixels of these classes, else 0, (side, side)."""
        return array(np.isin(self.labels, [_CLASS[name] for name in names]))

    def paint(self, mask: Mask, color: ArrayLike, label: str | None = None, opacity: float = 1.0) -> None:
        """Cover `mask` with a color or a (side, side, 3) field; `opacity` changes the paint, not the `label`."""
        paint, image = array(color), self.image[mask.window]
        image += (mask.alpha * opacity)[..., None] * ((paint[mask.window] if paint.ndim == 3 else paint) - image)
        if label is not None:
            self.label(mask, label)

    def label(self, mask: Mask, label: str) -> None:
        """Give `mask` a class without painting it."""
        self.labels[mask.window][mask.alpha >= 0.5] = _CLASS[label]

    def shade(self, mask: Mask, strength: float) -> None:
        """Darken `mask`, blue most: shadows on skin are warm."""
        self.image[mask.window] *= 1 - mask.alpha[..., None] * (array([0.82, 0.96, 1.0]) * strength)


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


def ellipse(x: float, y: float, half_width: float, half_height: float, power: float = 2.0) -> F32:
    """Superellipse outline (36, 2); power 2 is an ellipse, larger is boxier."""
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
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


def enlarge(field: ArrayLike, side: int) -> F32:
    """Resample a square field to `side` pixels a side."""
    return array(cv2.resize(array(field), (side, side), interpolation=cv2.INTER_LINEAR))
