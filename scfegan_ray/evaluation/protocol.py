"""Protocols: which images, holes, brushes, noise and changed strokes a number belongs to, under a name of its own.

`celebahq_256_freeform_v1` says: faces of CelebAMask-HQ, at 256 pixels, with holes such as training draws, version 1 of
all that is written below. Nothing of it can be set, nor does it follow a setting's default, so that two people who
evaluate the same images under the same name get the same digits. Whatever is changed here wants another version.

| holes | what |
| --- | --- |
| freeform | Algorithm 1 of the paper, as training draws it by default: mean 22 % of the image |
| thin | many lines of 1 to 3 % of the side |
| thick | few lines of 12 to 25 % of the side |
| eyes | an ellipse around each eye |
| hair | the region of the hair; images whose hair is not known, or that show none, are left out |
| full | everything; only lines and color are left, all of it painted: the paper's full restoration |
| wobbly | those of freeform, under strokes such as people draw, which miss the photograph's lines and colors |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, get_args

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scfegan_ray.config import WOBBLY, MaskConfig
from scfegan_ray.data import examples, masks
from scfegan_ray.data.dataset import key_number
from scfegan_ray.data.examples import Example
from scfegan_ray.errors import ConfigError
from scfegan_ray.evaluation.options import Holes

VERSION = 1

_LEAST_HAIR = 0.01
_HAIR_MARGIN = 1 / 64
_EYE_RADII = (0.34, 0.26)
_EYE_SPREAD = 0.15

_STROKES = MaskConfig(
    max_lines=6,
    max_vertices=12,
    max_angle_degrees=60.0,
    max_length=0.35,
    min_brush=0.03,
    max_brush=0.13,
    min_hole_area=0.05,
    max_hole_area=0.5,
    hair_probability=0.1,
    color_coverage=0.6,
    color_absent_probability=0.0,
    noise_probability=0.159,
)
"""Of every protocol but for what `_MASKS` changes. Color is painted in every hole: where it is left out is a condition
of its own, see `conditions`."""

_MASKS: Mapping[str, MaskConfig] = MappingProxyType(
    {
        "freeform": _STROKES,
        "thin": replace(
            _STROKES, max_lines=12, min_brush=0.01, max_brush=0.03, min_hole_area=0.02, max_hole_area=0.3,
            hair_probability=0.0,
        ),
        "thick": replace(
            _STROKES, max_lines=3, max_vertices=5, min_brush=0.12, max_brush=0.25, min_hole_area=0.1,
            hair_probability=0.0,
        ),
        "eyes": _STROKES,
        "hair": _STROKES,
        "full": replace(_STROKES, color_coverage=1.0),
        "wobbly": replace(_STROKES, strokes=WOBBLY),
    }
)  # fmt: skip

HOLES: tuple[Holes, ...] = get_args(Holes)
"""Kinds of holes."""


def check_holes(holes: str) -> None:
    """Refuse a kind of holes that there is none of.

    Raises:
        ConfigError: it is none of `HOLES`.
    """
    if holes not in _MASKS:
        raise ConfigError(f"there are no holes called {holes!r}; give one of {', '.join(HOLES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """What is done to each image before it is filled.

    Attributes:
        images: what they are: "celebahq", "drawn" or "faces"; which ones exactly is told by their fingerprint.
        size_px: side of the images.
        holes: one of `HOLES`.
    """

    images: str
    size_px: int
    holes: str

    def __post_init__(self) -> None:
        """Check the kind of holes."""
        check_holes(self.holes)

    @property
    def name(self) -> str:
        """The name of every number that is measured by it."""
        return f"{self.images}_{self.size_px}_{self.holes}_v{VERSION}"

    def takes(self, hair_area: float | None) -> bool:
        """Tell whether an image of the dataset can have such a hole.

        Args:
            hair_area: share of it that is hair; None where nobody knows.
        """
        return self.holes != "hair" or (hair_area is not None and hair_area >= _LEAST_HAIR)

    def rng(self, key: str, purpose: int = 0) -> Generator:
        """Return the source of an image's random numbers, of its own for each purpose."""
        like = "freeform" if self.holes == "wobbly" else self.holes  # the same holes, under other strokes
        return np.random.default_rng([VERSION, HOLES.index(like), purpose, key_number(key)])

    def example(self, row: Mapping[str, Any]) -> Example:
        """Draw the hole of an image, its brushed color and its noise.

        Args:
            row: as `codecs.decode_row` gives it.

        Returns:
            As `examples.fill_in`.
        """
        config, rng = _MASKS[self.holes], self.rng(row["key"])
        mask = _SPECIAL[self.holes](row, rng) if self.holes in _SPECIAL else _lines(row, config, rng)
        return examples.fill_in(row, mask, config, rng)


def _lines(row: Mapping[str, Any], config: MaskConfig, rng: Generator) -> NDArray[np.uint8]:
    return masks.draw_mask(row["image"].shape[0], row["eyes"], row["hair"], config, rng)


def _eyes(row: Mapping[str, Any], rng: Generator) -> NDArray[np.uint8]:
    """Mark an ellipse around each eye, as wide and high as their distance says, more or less."""
    mask: NDArray[np.uint8] = np.zeros(row["image"].shape[:2], np.uint8)
    left, right = np.asarray(row["eyes"], np.float64).reshape(2, 2)
    distance, tilt = np.hypot(*(right - left)), np.degrees(np.arctan2(*(right - left)[::-1]))
    for eye in (left, right):
        across, down = distance * np.array(_EYE_RADII) * rng.uniform(1 - _EYE_SPREAD, 1 + _EYE_SPREAD, 2)
        cv2.ellipse(mask, (eye.tolist(), (2 * across, 2 * down), float(tilt)), 1, cv2.FILLED)
    return mask


def _hair(row: Mapping[str, Any], rng: Generator) -> NDArray[np.uint8]:
    """Mark the hair and a small margin around it, where its outline would give it away."""
    reach = 2 * max(1, round(_HAIR_MARGIN * row["hair"].shape[0])) + 1
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    return np.asarray(cv2.dilate(row["hair"], around), np.uint8)


def _everything(row: Mapping[str, Any], rng: Generator) -> NDArray[np.uint8]:
    return np.ones(row["image"].shape[:2], np.uint8)


_SPECIAL: Mapping[str, Callable[[Mapping[str, Any], Generator], NDArray[np.uint8]]] = MappingProxyType(
    {"eyes": _eyes, "hair": _hair, "full": _everything}
)
