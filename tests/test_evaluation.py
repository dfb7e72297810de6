"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scfegan_ray import evaluation
from scfegan_ray.evaluation import Evaluator
from scfegan_ray.models.features import vgg_random


def test_hole_psnr_sees_the_hole_only() -> None:
    truth = torch.zeros(2, 1, 2, 3, dtype=torch.uint8)
    composite = truth.clone()
    composite[:, 0, 0] = 51  # inside: error 51 of 255 is a fifth
    composite[:, 0, 1] = 255  # outside
    mask = torch.tensor([1, 0], dtype=torch.uint8).reshape(1, 1, 2, 1).repeat(2, 1, 1, 1)
    assert evaluation.hole_psnr(composite, truth, mask).tolist() == pytest.approx([20 * math.log10(5)] * 2)


def test_perfect_hole_is_capped() -> None:
    image = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    assert evaluation.hole_psnr(image, image, torch.ones(1, 2, 2, 1, dtype=torch.uint8)).item() == 100.0


def test_perceptual_distance_is_zero_at_identity_and_grows() -> None:
    features = vgg_random()
    torch.manual_seed(0)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    noise = torch.randn_like(image)
    distances = [evaluation.perceptual_distance(features, image + s * noise, image) for s in (0.0, 0.1, 0.5)]
    assert distances[0].tolist() == [0.0, 0.0]
    assert (distances[1] > 0).all()
    assert (distances[2] > distances[1]).all()


def test_objective_counts_three_db_for_half_of_either() -> None:
    base = {"hole_psnr": 20.0, "perceptual_distance": 0.2}
    half = evaluation.objective_db(base | {"perceptual_distance": 0.1}) - evaluation.objective_db(base)
    assert half == pytest.approx(10 * math.log10(2))
    assert evaluation.objective_db(base | {"hole_psnr": 23.0}) - evaluation.objective_db(base) == pytest.approx(3.0)


class PaintsWhite(nn.Module):
    def forward(self, packed: Tensor) -> Tensor:
        return torch.ones_like(packed[:, :3])


def batches() -> list[dict[str, np.ndarray]]:
    gray = np.full((2, 16, 16, 3), 204, np.uint8)
    plane = np.zeros((2, 16, 16, 1), np.uint8)
    plane[:, 4:8] = 1
    return [{"image": gray, "mask": plane, "sketch": plane, "color": gray * plane, "noise": plane}] * 2


def test_evaluator_averages_all_images_and_restores_the_mode() -> None:
    generator = PaintsWhite().train()
    metrics = Evaluator(vgg_random()).run(generator, batches())
    assert metrics["hole_psnr"] == pytest.approx(20 * math.log10(5), abs=1e-4)
    assert metrics["objective"] == pytest.approx(evaluation.objective_db(metrics))
    assert generator.training


def test_grid_has_a_row_per_example_and_a_column_per_title() -> None:
    grid = Evaluator(vgg_random()).grid(PaintsWhite(), batches(), side_px=16)
    side, columns = 18, len(evaluation.GRID_TITLES)
    assert grid.shape == (18 + 4 * side + 2, columns * side + 2, 3)
    corner, hole = (21, 4), (18 + 2 + 5, 4)
    by_title = {title: at * side for at, title in enumerate(evaluation.GRID_TITLES)}
    assert grid[corner[0], corner[1] + by_title["composite"]].tolist() == [204] * 3
    assert grid[hole[0], hole[1] + by_title["composite"]].tolist() == [255] * 3
    assert grid[hole[0], hole[1] + by_title["incomplete"]].tolist() == [128] * 3
