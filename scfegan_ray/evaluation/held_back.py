"""What training measures of its generator on held-back images: few numbers, quickly, and a grid to look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scfegan_ray import images
from scfegan_ray.evaluation import adherence, quality, references
from scfegan_ray.models.features import Features
from scfegan_ray.precision import autocast

GRID_TITLES = ("incomplete", "sketch", "color", "generated", "composite", "ground truth")


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


MEASURED = ("hole_psnr", "hole_ssim", "seam", "sketch_f1", "perceptual_distance", "blind_hole_psnr")
"""What is measured of each image; see `measure.METRICS`."""
REFERENCES = ("telea_hole_psnr", "color_hole_psnr")
"""What is measured of each image without a network."""

_LEAST = 1e-4


def objective_db(metrics: Mapping[str, float]) -> float:
    """Join what a fill should be into one number to maximize: it looks right, it joins, it obeys.

    The sum of -10 log10 of the structural dissimilarity in the hole, of the error along its border relative to white,
    and of how far lines are from being met: halving any of them counts 3 dB. It shares neither a network nor a term
    with the losses whose weights are searched by it.

    Args:
        metrics: hole_ssim, seam and sketch_f1; one that there is none of, as where no line is drawn, counts nothing.
    """
    failings = (1 - metrics.get("hole_ssim", 0.0), metrics.get("seam", 255.0) / 255, 1 - metrics.get("sketch_f1", 0.0))
    return sum(-10.0 * math.log10(min(max(one, _LEAST), 1.0)) for one in failings)


def summary(means: dict[str, float]) -> dict[str, float]:
    """Return the means of `MEASURED` with the objective; nothing where there are none."""
    return means | {"objective_db": objective_db(means)} if means else {}


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
    def values(
        self, generator: nn.Module, batches: Iterable[dict[str, NDArray[Any]]]
    ) -> dict[str, NDArray[np.float64]]:
        """Measure each image of all batches.

        Args:
            generator: (N, 9, H, W) to (N, 3, H, W); its training mode is put back afterwards.
            batches: stacked examples, see `data.examples.make_example`.

        Returns:
            Of all images, (N,) each of `MEASURED`. blind_hole_psnr is of the same holes without sketch and color, so
            that the difference tells what strokes are worth; sketch_f1 is NaN where no line is drawn.
        """
        found: dict[str, list[NDArray[np.float64]]] = {name: [np.zeros(0)] for name in MEASURED}
        for arrays, batch, generated in self._generate(generator, batches):
            composite = batch.composite(generated)
            truth, hole = arrays["image"], arrays["mask"][..., 0] > 0
            unguided = batch.without_strokes()
            with autocast(self._precision, self._device):
                distance = perceptual_distance(self._features, composite, batch.ground_truth)
                unguided_composite = batch.composite(generator(unguided.generator_input()))
            filled, blind = (images.to_uint8(one).cpu().numpy() for one in (composite, unguided_composite))
            lines = zip(filled, arrays["sketch"][..., 0], hole, strict=True)
            found["hole_psnr"].append(quality.hole_psnr(filled, truth, hole))
            found["hole_ssim"].append(quality.ssim(filled, truth, hole)[1])
            found["seam"].append(quality.seam(filled, truth, hole)[0])
            found["sketch_f1"].append(np.array([adherence.sketch_adherence(*one)[2] for one in lines]))
            found["perceptual_distance"].append(distance.double().cpu().numpy())
            found["blind_hole_psnr"].append(quality.hole_psnr(blind, truth, hole))
        return {name: np.concatenate(values) for name, values in found.items()}

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


def reference_values(batches: Iterable[dict[str, NDArray[Any]]]) -> dict[str, NDArray[np.float64]]:
    """Measure what needs no network, to be held against a generator's `hole_psnr` on the same batches.

    Returns:
        Of all images, (N,), in dB. telea_hole_psnr: Telea's inpainting (`cv2.inpaint`), which sees no strokes;
        color_hole_psnr: the painted color, and Telea's inpainting from it where nothing is painted.
    """
    found: dict[str, list[NDArray[np.float64]]] = {name: [np.zeros(0)] for name in REFERENCES}
    for arrays in batches:
        filled: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in found}
        for image, mask, color in zip(arrays["image"], arrays["mask"], arrays["color"], strict=True):
            filled["telea_hole_psnr"].append(references.telea(image, mask[..., 0]))
            filled["color_hole_psnr"].append(references.painted_color(image, mask[..., 0], color))
        for name, pictures in filled.items():
            found[name].append(quality.hole_psnr(np.stack(pictures), arrays["image"], arrays["mask"][..., 0] > 0))
    return {name: np.concatenate(values) for name, values in found.items()}
