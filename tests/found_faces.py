"""Photographs of several drawn faces, and what finds them without weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scfegan_ray import faces
from scfegan_ray.data import align


def group(count: int, first: int = 0) -> NDArray[np.uint8]:
    """Paste drawn faces side by side; a pixel in the corner says how many, for `FakeFinder`."""
    picture = np.full((64, 20 + 60 * max(count, 3), 3), 200, np.uint8)
    for at in range(count):
        picture[8:56, 14 + 60 * at : 62 + 60 * at] = faces.draw_face(0, first + at, 48).image
    picture[0, 0] = count
    return picture


class FakeFinder:
    """Finds what `group` pasted, turned more and more; the third face is blurred."""

    def __init__(self, least_side_px: int = 0) -> None:
        self.least_side_px = least_side_px

    def find(self, image: NDArray[np.uint8]) -> list[align.Face]:
        if image.shape[0] == image.shape[1]:
            side = image.shape[0]
            return [align.Face(align.Square(side / 2, side / 2 + 1, side, 0.02), 0.9)] if side == 48 else []
        return [
            align.Face(
                align.Square(38.0 + 60 * at, 32.0, 44.0 - at, 0.1 * at), 0.9, "face blurred" if at == 2 else None
            )
            for at in range(int(image[0, 0, 0]))
        ]
