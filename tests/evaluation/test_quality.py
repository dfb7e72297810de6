"""Does it look right: against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scfegan_ray.evaluation import quality
from scfegan_ray.evaluation.quality import MAX_PSNR_DB


def gray(level: int, size_px: int = 16) -> np.ndarray:
    return np.full((1, size_px, size_px, 3), level, np.uint8)


def left_half(size_px: int = 16) -> np.ndarray:
    hole = np.zeros((1, size_px, size_px), bool)
    hole[:, :, : size_px // 2] = True
    return hole


def filled(truth: np.ndarray, hole: np.ndarray, level: int) -> np.ndarray:
    return np.where(hole[..., None], np.uint8(level), truth)


def test_differences_within_the_hole_and_over_the_image() -> None:
    truth, hole = gray(100), left_half()
    composite = filled(truth, hole, 151)
    assert quality.hole_l1(composite, truth, hole) == [51.0]
    assert quality.l1(composite, truth) == [25.5]
    assert quality.hole_psnr(composite, truth, hole) == pytest.approx([20 * math.log10(5)])
    assert quality.psnr(composite, truth) == pytest.approx([20 * math.log10(5) + 10 * math.log10(2)])


def test_the_photograph_itself_is_best() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    hole = np.repeat(left_half(), 2, axis=0)
    assert quality.hole_psnr(truth, truth, hole).tolist() == [MAX_PSNR_DB] * 2
    assert quality.psnr(truth, truth).tolist() == [MAX_PSNR_DB] * 2
    for similarity in quality.ssim(truth, truth, hole):
        assert similarity == pytest.approx([1.0, 1.0], abs=1e-4)
    assert quality.hole_flip(truth, truth, hole).tolist() == [0.0, 0.0]
    error, step = quality.seam(truth, truth, hole)
    assert error.tolist() == [0.0, 0.0]
    assert step.tolist() == [1.0, 1.0]


def test_structural_similarity_of_flat_images_is_that_of_their_levels() -> None:
    hole = left_half(32)
    first = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + first) / (100**2 + 120**2 + first)
    for similarity in quality.ssim(gray(120, 32), gray(100, 32), hole):
        assert similarity == pytest.approx([expected], abs=1e-6)


def test_structural_similarity_within_the_hole_tells_of_the_hole() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    hole = left_half(64)
    whole, inside = quality.ssim(filled(truth, hole, 128), truth, hole)
    assert inside[0] < 0.2
    assert whole[0] == pytest.approx((1 + inside[0]) / 2, abs=0.06)


def test_several_scales_want_a_large_image() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (1, quality.MS_SSIM_FROM_PX, quality.MS_SSIM_FROM_PX, 3), np.uint8)
    assert quality.ms_ssim(truth, truth) == pytest.approx([1.0], abs=1e-4)
    assert quality.ms_ssim(255 - truth, truth)[0] < 0.5


def test_perceived_difference_grows_and_sees_the_hole_only() -> None:
    truth, hole = gray(100, 32), left_half(32)
    little, much = (quality.hole_flip(filled(truth, hole, level), truth, hole)[0] for level in (105, 200))
    assert 0 < little < much < 1
    outside = quality.hole_flip(filled(truth, ~hole, 200), truth, left_half(32))
    assert outside[0] < much / 2  # FLIP looks around each pixel, so it sees a little of it


def test_seam_compares_the_border_with_the_photograph() -> None:
    # The photograph's steps across the border are 10 levels, the fill's 30; it is 20 off along the border.
    truth, hole = gray(100), left_half()
    truth[:, :, 8:] = 110
    composite = filled(truth, hole, 80)
    error, step = quality.seam(composite, truth, hole)
    assert error.tolist() == [20.0]
    assert step.tolist() == [3.0]
    # What lies deeper in the hole does not matter.
    composite[:, :, :7] = 255
    assert [one.tolist() for one in quality.seam(composite, truth, hole)] == [[20.0], [3.0]]


def test_seam_is_unknown_without_a_border_and_its_step_on_flat_ground() -> None:
    truth = gray(100)
    whole = np.ones((1, 16, 16), bool)
    assert np.isnan(quality.seam(filled(truth, whole, 90), truth, whole)).all()
    error, step = quality.seam(filled(truth, left_half(), 90), truth, left_half())
    assert error.tolist() == [10.0]
    assert np.isnan(step).all()


def test_seam_runs_all_around() -> None:
    truth, hole = gray(100), np.zeros((1, 16, 16), bool)
    hole[:, 4:9, 4:9] = True
    composite = truth.copy()
    composite[:, 4:9, 4:9] = 116
    composite[:, 5:8, 5:8] = 0  # not at the border
    assert quality.seam(composite, truth, hole)[0].tolist() == [16.0]


def test_outside_is_the_largest_difference_there() -> None:
    truth, hole = gray(100), left_half()
    composite = filled(truth, hole, 0)
    assert quality.outside(composite, truth, hole).tolist() == [0.0]
    composite[0, 3, 12, 1] = 103
    assert quality.outside(composite, truth, hole).tolist() == [3.0]
