"""The generator with its packing around it: 8-bit maps in, an 8-bit picture out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from scfegan_ray import images
from scfegan_ray.models.generator import Generator


class EditingModel(nn.Module):
    """What a registered model is: everything between what a person drew and the picture that comes back."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor, mask: Tensor, sketch: Tensor, color: Tensor, noise: Tensor) -> Tensor:
        """Fill the hole.

        Args:
            image: (N, H, W, 3) uint8 RGB.
            mask: (N, H, W, 1) uint8 in {0, 1}; 1 marks pixels to fill.
            sketch: (N, H, W, 1) uint8 in {0, 1}.
            color: (N, H, W, 3) uint8 RGB; black means unpainted.
            noise: (N, H, W, 1) uint8 in {0, 1}.

        Returns:
            (N, H, W, 3) uint8 RGB; pixels outside the mask are those of `image`.
        """
        batch = images.Batch.from_uint8(image, mask, sketch, color, noise)
        generated = images.to_uint8(self.generator(batch.generator_input()))
        return torch.where(mask.bool(), generated, image)


def export(generator: Generator, size_px: int) -> ExportedProgram:
    """Turn a generator into a program that needs no code of this package to run.

    Args:
        generator: on the CPU.
        size_px: side of the square images that the program takes; the number of images stays free.
    """
    model = EditingModel(generator).eval()
    image = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
    plane = image[..., :1].clone()
    number = Dim("number", min=1, max=1024)
    names = ("image", "mask", "sketch", "color", "noise")
    with torch.no_grad():
        return torch.export.export(
            model,
            (image, plane, plane.clone(), image.clone(), plane.clone()),
            dynamic_shapes={n: {0: number} for n in names},
        )
