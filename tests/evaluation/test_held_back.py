"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scfegan_ray.evaluation import held_back, references
from scfegan_ray.evaluation.held_back import Evaluator, reference_values
from scfegan_ray.models.features import vgg_random


def test_perceptual_distance_is_zero_at_identity_and_grows() -> None:
    features = vgg_random()
    torch.manual_seed(0)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    noise = torch.randn_like(image)
    distances = [held_back.perceptual_distance(features, image + s * noise, image) for s in (0.0, 0.1, 0.5)]
    assert distances[0].tolist() == [0.0, 0.0]
    assert (distances[1] > 0).all()
    assert (distances[2] > distances[1]).all()


@pytest.mark.parametrize(
    "half", [{"hole_ssim": 0.9}, {"seam": 5.0}, {"sketch_f1": 0.8}], ids=["looks right", "joins", "obeys"]
)
def test_objective_counts_three_db_for_half_of_a_failing(half: dict[str, float]) -> None:
    base = {"hole_ssim": 0.8, "seam": 10.0, "sketch_f1": 0.6}
    gained = held_back.objective_db(base | half) - held_back.objective_db(base)
    assert gained == pytest.approx(10 * math.log10(2))


def test_objective_of_what_could_not_be_measured() -> None:
    assert held_back.objective_db({}) == 0
    assert held_back.objective_db({"seam": 25.5}) == pytest.approx(10)
    assert held_back.objective_db({"hole_ssim": 1.0}) == pytest.approx(40), "there is no perfection"


class PaintsWhite(nn.Module):
    def forward(self, packed: Tensor) -> Tensor:
        return torch.ones_like(packed[:, :3])


def batches() -> list[dict[str, np.ndarray]]:
    gray = np.full((2, 16, 16, 3), 204, np.uint8)
    plane = np.zeros((2, 16, 16, 1), np.uint8)
    plane[:, 4:8] = 1
    return [{"image": gray, "mask": plane, "sketch": plane, "color": gray * plane, "noise": plane}] * 2


def measured(generator: nn.Module) -> dict[str, float]:
    values = Evaluator(vgg_random()).values(generator, batches())
    return held_back.summary({name: float(np.nanmean(one)) for name, one in values.items()})


def test_evaluator_averages_all_images_and_restores_the_mode() -> None:
    generator = PaintsWhite().train()
    metrics = measured(generator)
    assert metrics["hole_psnr"] == pytest.approx(20 * math.log10(5), abs=1e-4)
    assert metrics["objective_db"] == pytest.approx(held_back.objective_db(metrics))
    assert metrics.keys() == {*held_back.MEASURED, "objective_db"}
    assert generator.training


class PaintsColor(nn.Module):
    """Fills the hole with the painted color, and with black where nothing is painted."""

    def forward(self, packed: Tensor) -> Tensor:
        return packed[:, 4:7]


class PaintsSketch(nn.Module):
    """Fills the hole with white where a line is, and with gray elsewhere."""

    def forward(self, packed: Tensor) -> Tensor:
        return packed[:, 3:4].expand(-1, 3, -1, -1)


def test_blind_psnr_is_of_the_same_holes_without_strokes() -> None:
    metrics = measured(PaintsColor())
    assert metrics["hole_psnr"] == 100.0, "the painted color is the image's"
    assert metrics["blind_hole_psnr"] == pytest.approx(20 * math.log10(255 / 204), abs=1e-4), "unpainted is black"
    metrics = measured(PaintsSketch())
    assert metrics["hole_psnr"] == pytest.approx(20 * math.log10(255 / 51), abs=1e-4)
    assert metrics["blind_hole_psnr"] == pytest.approx(20 * math.log10(255 / (204 - 128)), abs=1e-4)
    blind = measured(PaintsWhite())
    assert blind["blind_hole_psnr"] == blind["hole_psnr"], "who does not look at strokes does not miss them"


def holes(number: int = 1) -> np.ndarray:
    hole = np.zeros((number, 16, 16, 1), np.uint8)
    hole[:, 4:8, 4:12] = 1
    return hole


def references_of(batches: list[dict[str, np.ndarray]]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in reference_values(batches).items()}


def test_baselines_by_hand() -> None:
    gray = np.full((2, 16, 16, 3), 204, np.uint8)
    color = np.zeros_like(gray)
    color[:, 4:8, 4:8] = 153
    color[:, 12:] = 9  # outside the hole
    arrays = {"image": gray, "mask": holes(2), "color": color}
    # Inpainting a flat image is right but for the one level by which OpenCV may round.
    right, painted = 20 * math.log10(255 / 1), 20 * math.log10(5)
    found = references_of([arrays])
    assert found.keys() == {"telea_hole_psnr", "color_hole_psnr"}
    assert found["telea_hole_psnr"] >= right - 0.01
    # Half of the hole is painted 51 levels off; the other half is inpainted from the image and from that paint.
    assert painted < found["color_hole_psnr"] < painted + 10 * math.log10(2)
    everything = references_of([arrays | {"color": np.full_like(gray, 153)}])
    assert everything == {"telea_hole_psnr": found["telea_hole_psnr"], "color_hole_psnr": pytest.approx(painted)}
    nothing = references_of([arrays | {"color": np.zeros_like(gray)}])
    assert nothing["color_hole_psnr"] == nothing["telea_hole_psnr"]


def test_baselines_do_not_see_what_is_hidden() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    hole = holes()[0]
    filled = [references.telea(one, hole[..., 0]) for one in (image, np.where(hole == 1, np.uint8(0), image))]
    assert np.array_equal(filled[0], filled[1])
    assert np.array_equal(filled[0][hole[..., 0] == 0], image[hole[..., 0] == 0])


def test_baselines_are_means_over_all_images() -> None:
    rng = np.random.default_rng(0)
    parts = [
        {
            "image": rng.integers(0, 256, (1, 16, 16, 3), np.uint8),
            "mask": holes(),
            "color": np.zeros((1, 16, 16, 3), np.uint8),
        }
        for _ in range(3)
    ]
    alone = [references_of([part])["telea_hole_psnr"] for part in parts]
    two = {name: np.concatenate([part[name] for part in parts[:2]]) for name in parts[0]}
    assert references_of([two, parts[2]])["telea_hole_psnr"] == pytest.approx(np.mean(alone))


def test_grid_has_a_row_per_example_and_a_column_per_title() -> None:
    grid = Evaluator(vgg_random()).grid(PaintsWhite(), batches(), side_px=16)
    side, columns = 18, len(held_back.GRID_TITLES)
    assert grid.shape == (18 + 4 * side + 2, columns * side + 2, 3)
    corner, hole = (21, 4), (18 + 2 + 5, 4)
    by_title = {title: at * side for at, title in enumerate(held_back.GRID_TITLES)}
    assert grid[corner[0], corner[1] + by_title["composite"]].tolist() == [204] * 3
    assert grid[hole[0], hole[1] + by_title["composite"]].tolist() == [255] * 3
    assert grid[hole[0], hole[1] + by_title["incomplete"]].tolist() == [128] * 3
