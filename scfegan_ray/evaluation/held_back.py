"""What training measures of its generator on held-back images: few numbers, quickly, and a grid to look at."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scfegan_ray import images
from scfegan_ray.evaluation import references
from scfegan_ray.models.features import Features
from scfegan_ray.precision import autocast

GRID_TITLES = ("incomplete", "sketch", "color", "generated", "composite", "ground truth")
MAX_PSNR_DB = 100.0


def hole_psnr(composite: Tensor, ground_truth: Tensor, mask: Tensor) -> Tensor:
    """Measure the error inside the hole.

    Args:
        composite: (N, H, W, 3) uint8.
        ground_truth: (N, H, W, 3) uint8.
        mask: (N, H, W, 1) uint8 in {0, 1}; 1 marks the hole, which must not be empty.

    Returns:
        (N,) float32, peak signal-to-noise ratio in dB with a peak of 255 over the hole's pixels and channels, at
        most `MAX_PSNR_DB`.
    """
    hole = mask.float()
    error = (composite.float() - ground_truth.float()).square() * hole
    mean = error.sum(dim=(1, 2, 3)) / (3.0 * hole.sum(dim=(1, 2, 3)))
    return (10.0 * torch.log10(255.0**2 / mean)).clamp(max=MAX_PSNR_DB)


def perceptual_distance(features: Features, composite: Tensor, ground_truth: Tensor) -> Tensor:
    """Measure how differently two images look to the frozen network.

    Args:
        features: frozen VGG-16.
        composite: (N, 3, H, W) in [-1, 1].
        ground_truth: (N, 3, H, W) in [-1, 1].

    Returns:
        (N,) float32: mean absolute difference of the features, summed over the three pooling layers. Comparable only
        between runs with the same feature weights.
    """
    pairs = zip(features(composite), features(ground_truth), strict=True)
    return torch.stack([(a.float() - b.float()).abs().mean(dim=(1, 2, 3)) for a, b in pairs]).sum(dim=0)


def objective_db(metrics: dict[str, float]) -> float:
    """Join hole PSNR and perceptual distance into one number to maximize.

    Halving the hole's squared error and halving the perceptual distance each count 3 dB. No loss weight enters.
    """
    return metrics["hole_psnr"] - 10.0 * math.log10(max(metrics["perceptual_distance"], 1e-12))


MEASURED = ("hole_psnr", "perceptual_distance", "blind_hole_psnr")
"""What is measured of each image."""
REFERENCES = ("telea_hole_psnr", "color_hole_psnr")
"""What is measured of each image without a network."""


def summary(means: dict[str, float]) -> dict[str, float]:
    """Return the means of `MEASURED` with the objective; nothing where there are none."""
    return means | {"objective": objective_db(means)} if means else {}


class Evaluator:
    """Measures a generator, always on the same examples and with the same holes.

    Args:
        features: frozen VGG-16.
        device: of the features and of generators.
        precision: in which both compute, see `precision.autocast`.
    """

    def __init__(
        self, features: Features, device: torch.device | str = "cpu", precision: torch.dtype = torch.float32
    ) -> None:
        self._features = features
        self._device = torch.device(device)
        self._precision = precision

    @torch.no_grad()
    def values(self, generator: nn.Module, batches: Iterable[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
        """Measure each image of all batches.

        Args:
            generator: (N, 9, H, W) to (N, 3, H, W); its training mode is put back afterwards.
            batches: stacked examples, see `data.examples.make_example`.

        Returns:
            Of all images, (N,) float32 on the device: hole_psnr: dB; perceptual_distance; blind_hole_psnr: dB, where
            the generator is given the same holes without sketch and color, so that the difference tells what strokes
            are worth.
        """
        found: dict[str, list[Tensor]] = {name: [torch.zeros(0, device=self._device)] for name in MEASURED}
        for arrays, batch, generated in self._generate(generator, batches):
            composite = batch.composite(generated)
            truth = torch.from_numpy(arrays["image"]).to(self._device)
            mask = torch.from_numpy(arrays["mask"]).to(self._device)
            found["hole_psnr"].append(hole_psnr(images.to_uint8(composite), truth, mask))
            unguided = batch.without_strokes()
            with autocast(self._precision, self._device):
                distance = perceptual_distance(self._features, composite, batch.ground_truth)
                unguided_composite = batch.composite(generator(unguided.generator_input()))
            found["perceptual_distance"].append(distance)
            found["blind_hole_psnr"].append(hole_psnr(images.to_uint8(unguided_composite), truth, mask))
        return {name: torch.cat(values) for name, values in found.items()}

    @torch.no_grad()
    def grid(self, generator: nn.Module, batches: Iterable[dict[str, NDArray[Any]]], side_px: int) -> NDArray[np.uint8]:
        """Draw one row per example, with the columns of `GRID_TITLES`.

        Returns:
            (height, width, 3) uint8 RGB.
        """
        rows: list[list[NDArray[np.uint8]]] = []
        for arrays, batch, generated in self._generate(generator, batches):
            pictures = [images.to_uint8(t).cpu().numpy() for t in (generated, batch.composite(generated))]
            hole = arrays["mask"]
            incomplete = np.where(hole == 1, np.uint8(128), arrays["image"])
            for at in range(len(hole)):
                rows.append(
                    [
                        incomplete[at],
                        255 - arrays["sketch"][at, ..., 0] * np.uint8(255),
                        arrays["color"][at],
                        pictures[0][at],
                        pictures[1][at],
                        arrays["image"][at],
                    ]
                )
        return images.contact_sheet(rows, GRID_TITLES, side_px)

    def _generate(
        self, generator: nn.Module, batches: Iterable[dict[str, NDArray[Any]]]
    ) -> Iterable[tuple[dict[str, NDArray[Any]], images.Batch, Tensor]]:
        was_training = generator.training
        generator.eval()
        try:
            for arrays in batches:
                batch = images.Batch.from_arrays(arrays, self._device)
                with autocast(self._precision, self._device):
                    generated = generator(batch.generator_input())
                yield arrays, batch, generated
        finally:
            generator.train(was_training)


def reference_values(batches: Iterable[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
    """Measure what needs no network, to be held against a generator's `hole_psnr` on the same batches.

    Returns:
        Of all images, (N,) float32, in dB. telea_hole_psnr: Telea's inpainting (`cv2.inpaint`), which sees no strokes;
        color_hole_psnr: the painted color, and Telea's inpainting from it where nothing is painted.
    """
    found: dict[str, list[Tensor]] = {name: [torch.zeros(0)] for name in REFERENCES}
    for arrays in batches:
        filled: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in found}
        for image, mask, color in zip(arrays["image"], arrays["mask"], arrays["color"], strict=True):
            filled["telea_hole_psnr"].append(references.telea(image, mask[..., 0]))
            filled["color_hole_psnr"].append(references.painted_color(image, mask[..., 0], color))
        truth, mask = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["mask"])
        for name, pictures in filled.items():
            found[name].append(hole_psnr(torch.from_numpy(np.stack(pictures)), truth, mask))
    return {name: torch.cat(values) for name, values in found.items()}
