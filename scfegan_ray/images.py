"""The only home of layout, range and channel order.

Files, Ray rows and users have HWC uint8 RGB; torch has NCHW float32 RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_model(images: Tensor) -> Tensor:
    """Bring uint8 images to the networks' range and layout.

    Args:
        images: (N, H, W, C) uint8.

    Returns:
        (N, C, H, W) float32 in [-1, 1].
    """
    return images.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0).contiguous()


def to_uint8(images: Tensor) -> Tensor:
    """Bring the networks' images back to 8 bits; inverse of `to_model` for every 8-bit value.

    Args:
        images: (N, C, H, W) float in [-1, 1]; values outside are clipped.

    Returns:
        (N, H, W, C) uint8.
    """
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def map_to_model(maps: Tensor) -> Tensor:
    """Bring binary uint8 maps (mask, sketch, noise) to the networks' layout.

    Args:
        maps: (N, H, W, 1) uint8 in {0, 1}.

    Returns:
        (N, 1, H, W) float32 in {0, 1}.
    """
    return maps.permute(0, 3, 1, 2).to(torch.float32).contiguous()


def color_to_model(color: Tensor, mask: Tensor) -> Tensor:
    """Bring painted color to the networks' range: -1 where the hole is unpainted, 0 outside the hole.

    Args:
        color: (N, H, W, 3) uint8; black (0, 0, 0) means unpainted.
        mask: (N, 1, H, W) float32 in {0, 1}; 1 marks pixels to fill.

    Returns:
        (N, 3, H, W) float32 in [-1, 1]. Paper: the released demo's convention.
    """
    return to_model(color) * mask


def composite(generated: Tensor, ground_truth: Tensor, mask: Tensor) -> Tensor:
    """Put the generated hole into the known image.

    Args:
        generated: (N, 3, H, W) in [-1, 1].
        ground_truth: (N, 3, H, W) in [-1, 1].
        mask: (N, 1, H, W) in {0, 1}; 1 marks pixels to fill.

    Returns:
        (N, 3, H, W). Paper: I_comp.
    """
    return torch.lerp(ground_truth, generated, mask)


def pack_input(incomplete: Tensor, sketch: Tensor, color: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    """Stack the generator's input in the released order.

    Args:
        incomplete: (N, 3, H, W) ground truth with 0 inside the hole.
        sketch: (N, 1, H, W) in {0, 1}, 0 outside the hole.
        color: (N, 3, H, W) as `color_to_model` gives it.
        mask: (N, 1, H, W) in {0, 1}.
        noise: (N, 1, H, W) in {0, 1}, 0 outside the hole.

    Returns:
        (N, 9, H, W).
    """
    return torch.cat([incomplete, sketch, color, mask, noise], dim=1)


def known_colors(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the generator's input says of the image's colors: pixels outside the hole, and paint inside it.

    Args:
        packed: (N, 9, H, W) float as `pack_input` stacks it.

    Returns:
        colors: (N, 3, H, W) in [-1, 1], 0 where nothing is known; known: (N, 1, H, W) in {0, 1}.
    """
    incomplete, color, mask = packed[:, :3], packed[:, 4:7], packed[:, 7:8]
    painted = mask * (color.amax(dim=1, keepdim=True) > -1.0)  # all channels are -1 where nothing is
    return incomplete * (1.0 - mask) + color * painted, 1.0 - mask + painted


def with_filled_hole(packed: Tensor, fill: Tensor) -> Tensor:
    """Return the generator's input with a fill where its image is incomplete.

    Args:
        packed: (N, 9, H, W) float as `pack_input` stacks it.
        fill: (N, 3, H, W) float in [-1, 1].

    Returns:
        (N, 9, H, W).
    """
    incomplete, mask = packed[:, :3], packed[:, 7:8]
    return torch.cat([incomplete + mask * fill, packed[:, 3:]], dim=1)


def pack_conditions(mask: Tensor, sketch: Tensor, color: Tensor) -> Tensor:
    """Stack what the discriminator sees besides the image: mask, sketch, color; never the noise.

    Returns:
        (N, 5, H, W).
    """
    return torch.cat([mask, sketch, color], dim=1)


@dataclass(frozen=True, slots=True)
class Batch:
    """What both networks are given, in their range and layout.

    Attributes:
        ground_truth: (N, 3, H, W) float32 in [-1, 1].
        mask: (N, 1, H, W) float32 in {0, 1}; 1 marks pixels to fill.
        sketch: (N, 1, H, W) float32 in {0, 1}, 0 outside the hole.
        color: (N, 3, H, W) float32 in [-1, 1], -1 where unpainted, 0 outside the hole.
        noise: (N, 1, H, W) float32 in {0, 1}, 0 outside the hole.
    """

    ground_truth: Tensor
    mask: Tensor
    sketch: Tensor
    color: Tensor
    noise: Tensor

    @classmethod
    def from_uint8(cls, image: Tensor, mask: Tensor, sketch: Tensor, color: Tensor, noise: Tensor) -> Batch:
        """Bring 8-bit maps to the networks; what lies outside the hole is cleared.

        Args:
            image: (N, H, W, 3) uint8 RGB.
            mask: (N, H, W, 1) uint8 in {0, 1}; 1 marks pixels to fill.
            sketch: (N, H, W, 1) uint8 in {0, 1}.
            color: (N, H, W, 3) uint8 RGB; black means unpainted.
            noise: (N, H, W, 1) uint8 in {0, 1}.
        """
        hole = map_to_model(mask)
        return cls(
            ground_truth=to_model(image),
            mask=hole,
            sketch=map_to_model(sketch) * hole,
            color=color_to_model(color, hole),
            noise=map_to_model(noise) * hole,
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> Batch:
        """Move stacked examples to a device as bytes, then bring them to the networks' range there.

        Args:
            arrays: image, mask, sketch, color and noise as `from_uint8` takes them; others are ignored.
            device: where the batch shall live.
        """
        names = ("image", "mask", "sketch", "color", "noise")
        return cls.from_uint8(*(torch.from_numpy(arrays[name]).to(device) for name in names))

    @property
    def incomplete(self) -> Tensor:
        """(N, 3, H, W): ground truth with 0 inside the hole."""
        return self.ground_truth * (1.0 - self.mask)

    def without_strokes(self) -> Batch:
        """Return the same holes with no line drawn and nothing painted."""
        return replace(self, sketch=torch.zeros_like(self.sketch), color=-self.mask.expand_as(self.color))

    def generator_input(self) -> Tensor:
        """(N, 9, H, W): see `pack_input`."""
        return pack_input(self.incomplete, self.sketch, self.color, self.mask, self.noise)

    def conditions(self) -> Tensor:
        """(N, 5, H, W): see `pack_conditions`."""
        return pack_conditions(self.mask, self.sketch, self.color)

    def composite(self, generated: Tensor) -> Tensor:
        """(N, 3, H, W): see `composite`."""
        return composite(generated, self.ground_truth, self.mask)


def contact_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str], side_px: int
) -> NDArray[np.uint8]:
    """Lay pictures out in a titled grid for people to look at.

    Args:
        rows: each as long as `titles`; pictures (H, W, 3) uint8 RGB or (H, W) uint8 gray, of any size.
        titles: of the columns.
        side_px: side of each picture on the sheet.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    gap, head = 2, 18
    width = len(titles) * (side_px + gap) + gap
    sheet = np.full((head + len(rows) * (side_px + gap) + gap, width, 3), 255, np.uint8)
    for column, title in enumerate(titles):
        left = gap + column * (side_px + gap)
        scale = min(0.42, 0.42 * side_px / (8.0 * len(title)))
        cv2.putText(sheet, title, (left, 13), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
        for at, row in enumerate(rows):
            picture = row[column]
            if picture.ndim == 2:
                picture = np.repeat(picture[..., None], 3, axis=2)
            if picture.shape[0] != side_px:
                method = cv2.INTER_NEAREST if picture.shape[0] < side_px else cv2.INTER_AREA
                picture = cv2.resize(picture, (side_px, side_px), interpolation=method).astype(np.uint8, copy=False)
            top = head + at * (side_px + gap)
            sheet[top : top + side_px, left : left + side_px] = picture
    return sheet
