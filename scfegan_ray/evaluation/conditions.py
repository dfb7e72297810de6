"""What a hole is filled from: all strokes, some, none, or strokes that are not the photograph's.

Copying what is likely anyway is not obeying. So besides the photograph's own lines and colors each hole is filled from
lines of another face, from its own lines somewhere else, and from colors that nobody has.

| condition | lines | color |
| --- | --- | --- |
| guided | the photograph's | the photograph's, brushed |
| sketch_only | the photograph's | none |
| color_only | none | the photograph's, brushed |
| blind | none | none |
| foreign_sketch | of another face | none |
| shifted_sketch | the photograph's, a sixteenth of the side away | none |
| recolored | the photograph's | brushed, in another hue |
| moved_stroke | the photograph's, with one stroke a sixteenth of the side away | the photograph's, brushed |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scfegan_ray.data.examples import Example

CONDITIONS = (
    "guided", "sketch_only", "color_only", "blind", "foreign_sketch", "shifted_sketch", "recolored", "moved_stroke",
)  # fmt: skip

_SHIFT = 1 / 16
_SHORTEST = 1 / 16
_HUE_TURN_DEGREES = 120.0
_LEAST_CHROMA = 40.0


def make(example: Example, row: Mapping[str, Any], other: Mapping[str, Any], rng: Generator) -> dict[str, Example]:
    """Change an example's strokes.

    Args:
        example: as `Protocol.example` draws it.
        row: the image, as `codecs.decode_row` gives it.
        other: another one.
        rng: where lines are shifted to, and which stroke is moved.

    Returns:
        An example of each of `CONDITIONS`; `moved_stroke` is the same as `guided` where no line is long enough.
    """
    hole = example["mask"][..., 0]
    no_lines, no_color = np.zeros_like(example["sketch"]), np.zeros_like(example["color"])
    step = _direction(rng) * max(1, round(_SHIFT * hole.shape[0]))
    foreign = (other["sketch"] & hole)[..., None]
    shifted = (_shifted(row["sketch"], step) & hole)[..., None]
    return {
        "guided": example,
        "sketch_only": example | {"color": no_color},
        "color_only": example | {"sketch": no_lines},
        "blind": example | {"sketch": no_lines, "color": no_color},
        "foreign_sketch": example | {"sketch": foreign, "color": no_color},
        "shifted_sketch": example | {"sketch": shifted, "color": no_color},
        "recolored": example | {"color": recolored(example["color"])},
        "moved_stroke": example | {"sketch": _with_one_moved(example["sketch"], hole, step, rng)},
    }


def recolored(color: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give paint another hue and a strong one, at the same lightness: no skin and no hair looks like that.

    Args:
        color: (H, W, 3) uint8 RGB, black where unpainted.

    Returns:
        (H, W, 3) uint8 RGB, black where unpainted.
    """
    painted = color.max(axis=2) > 0
    lab = cv2.cvtColor(color.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.arctan2(lab[..., 2], lab[..., 1]) + np.radians(_HUE_TURN_DEGREES)
    strong = np.maximum(chroma, _LEAST_CHROMA)
    turned = np.stack([lab[..., 0], strong * np.cos(hue), strong * np.sin(hue)], axis=-1).astype(np.float32)
    rgb = np.rint(cv2.cvtColor(turned, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)
    rgb[painted & (rgb.max(axis=2) == 0)] = 1  # black would mean unpainted
    return np.where(painted[..., None], rgb, np.uint8(0))


def _direction(rng: Generator) -> NDArray[np.int64]:
    """Return one of eight directions, as (down, right)."""
    choices = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    return np.array(choices[rng.integers(len(choices))])


def _shifted(plane: NDArray[np.uint8], step: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Move what a plane shows; what leaves it is gone."""
    moved = np.zeros_like(plane)
    height, width = plane.shape
    down, right = (int(one) for one in step)
    moved[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = plane[
        max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)
    ]
    return moved


def _with_one_moved(
    sketch: NDArray[np.uint8], hole: NDArray[np.uint8], step: NDArray[np.int64], rng: Generator
) -> NDArray[np.uint8]:
    """Move one stroke of a sketch within the hole; (S, S, 1) to (S, S, 1), the same where none is long enough."""
    lines = sketch[..., 0]
    number, pieces, statistics, _ = cv2.connectedComponentsWithStats(lines, connectivity=8)
    shortest = _SHORTEST * lines.shape[0]
    long = [at for at in range(1, number) if statistics[at, cv2.CC_STAT_AREA] >= shortest]
    if not long:
        return sketch
    stroke = (pieces == long[rng.integers(len(long))]).astype(np.uint8)
    return np.asarray((lines & (1 - stroke)) | (_shifted(stroke, step) & hole), np.uint8)[..., None]
