from __future__ import annotations

import itertools

import numpy as np
import pytest

from scfegan_ray.config import MaskConfig
from scfegan_ray.data.masks import draw_brush, draw_mask, draw_noise
from scfegan_ray.data.parsing import canonical_eyes

_NO_HAIR = MaskConfig(hair_probability=0.0)


def _masks(size: int, count: int, config: MaskConfig = _NO_HAIR, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw_mask(size, canonical_eyes(size), None, config, rng) for _ in range(count)]


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_areas_are_in_range_and_well_spread_at_every_size(size: int) -> None:
    masks = _masks(size, 400)
    assert all(mask.shape == (size, size) and mask.dtype == np.uint8 and mask.max() == 1 for mask in masks)
    areas = np.array([mask.mean() for mask in masks])
    assert areas.min() >= 0.05
    assert areas.max() <= 0.5
    assert 0.19 < areas.mean() < 0.26
    assert np.quantile(areas, 0.1) < 0.12
    assert np.quantile(areas, 0.9) > 0.3


def test_one_seed_gives_one_shape_at_every_size() -> None:
    for small, large in itertools.combinations((64, 128, 256, 512), 2):
        factor = large // small
        for a, b in zip(_masks(small, 5, seed=3), _masks(large, 5, seed=3), strict=True):
            assert (np.kron(a, np.ones((factor, factor))) != b).mean() < 0.03


def test_the_generator_alone_decides() -> None:
    first, again, other = _masks(64, 3), _masks(64, 3), _masks(64, 3, seed=1)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    mask = first[0]
    for draw in (draw_brush, draw_noise):
        a, b = (draw(mask, MaskConfig(), np.random.default_rng(7)) for _ in range(2))
        np.testing.assert_array_equal(a, b)


def test_an_unreachable_range_falls_back_to_a_disk() -> None:
    config = MaskConfig(min_hole_area=0.9, max_hole_area=0.92, max_lines=1, max_brush=0.04, hair_probability=0.0)
    (mask,) = _masks(64, 1, config)
    assert mask.mean() == pytest.approx(0.91, abs=1 / 64**2)


def test_never_empty() -> None:
    config = MaskConfig(
        min_hole_area=0.0, max_hole_area=1e-9, max_lines=1, max_vertices=1, min_brush=1e-3, max_brush=1e-3,
        hair_probability=0.0,
    )  # fmt: skip
    assert all(mask.any() for mask in _masks(16, 20, config))


def test_hair_is_added_as_often_as_asked() -> None:
    hair = np.zeros((64, 64), np.uint8)
    hair[:20] = 1
    rng = np.random.default_rng(0)
    eyes = canonical_eyes(64)
    whole = [draw_mask(64, eyes, hair, MaskConfig(hair_probability=0.3), rng)[:20].all().item() for _ in range(600)]
    assert 0.22 < np.mean(whole) < 0.38
    always = draw_mask(64, eyes, hair, MaskConfig(hair_probability=1.0), rng)
    assert always[:20].all()
    assert always.max() == 1
    assert hair[20:].sum() == 0


def test_every_hole_reaches_an_eye() -> None:
    eyes = np.array([10, 50, 54, 12], np.float32)
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(100):
        mask = draw_mask(64, eyes, None, _NO_HAIR, rng)
        reached.append((bool(mask[50, 10]), bool(mask[12, 54])))
    assert all(any(pair) for pair in reached)
    assert sum(left for left, _ in reached) > 30
    assert sum(right for _, right in reached) > 30


def test_lines_are_round_and_as_wide_as_the_brush() -> None:
    config = MaskConfig(
        max_lines=1, max_vertices=1, max_length=1e-6, min_brush=0.125, max_brush=0.125,
        min_hole_area=0.0, max_hole_area=1.0, hair_probability=0.0,
    )  # fmt: skip
    eyes = np.array([128, 128, 128, 128], np.float32)
    mask = draw_mask(256, eyes, None, config, np.random.default_rng(0))
    spot = mask[96:161, 96:161]
    assert abs(int(spot[32].sum()) - 32) <= 2
    assert abs(int(spot[:, 32].sum()) - 32) <= 2
    assert abs(int(spot.sum()) - np.pi * 16**2) < 80


@pytest.mark.parametrize("size", [64, 256])
def test_brush_covers_what_was_asked_on_average(size: int) -> None:
    config = MaskConfig()
    rng = np.random.default_rng(0)
    shares = []
    for mask in _masks(size, 400):
        before = mask.copy()
        brush = draw_brush(mask, config, rng)
        np.testing.assert_array_equal(mask, before)
        assert (brush <= mask).all()
        assert brush.dtype == np.uint8
        shares.append(brush.sum() / mask.sum())
    assert 0.54 < np.mean(shares) < 0.66
    assert 0.05 < np.mean(np.equal(shares, 0)) < 0.16
    assert 0.04 < np.mean(np.equal(shares, 1)) < 0.16
    assert np.std(shares) > 0.2


def test_brush_extremes() -> None:
    (mask,) = _masks(64, 1)
    rng = np.random.default_rng(0)
    assert not draw_brush(mask, MaskConfig(color_coverage=0.0), rng).any()
    assert not draw_brush(mask, MaskConfig(color_absent_probability=1.0), rng).any()
    full = draw_brush(mask, MaskConfig(color_coverage=1.0, color_absent_probability=0.0), rng)
    np.testing.assert_array_equal(full, mask)
    assert full is not mask


def test_brush_on_a_single_pixel() -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[100, 30] = 1
    for seed in range(20):
        assert (draw_brush(mask, MaskConfig(), np.random.default_rng(seed)) <= mask).all()


def test_brush_on_a_hole_too_small_for_the_canvas() -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[100, 31] = 1
    for seed in range(20):
        assert (draw_brush(mask, MaskConfig(), np.random.default_rng(seed)) <= mask).all()


def test_brush_reaches_the_share_it_drew() -> None:
    config = MaskConfig(color_absent_probability=0.0, min_brush=0.03, max_brush=0.05)
    mask = np.zeros((256, 256), np.uint8)
    mask[64:192, 64:192] = 1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rng.random()  # whether to paint at all
        share = rng.beta(3 * 0.6, 3 * 0.4)
        painted = draw_brush(mask, config, np.random.default_rng(seed)).sum() / mask.sum()
        assert painted == pytest.approx(1.0 if share > 0.95 else share, abs=0.05)


def test_noise_is_bernoulli_inside_the_hole() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((512, 512), np.uint8)
    mask[:300] = 1
    noise = draw_noise(mask, MaskConfig(), rng)
    assert noise.dtype == np.uint8
    assert not noise[300:].any()
    assert noise[:300].mean() == pytest.approx(0.159, abs=0.004)
    assert not draw_noise(mask, MaskConfig(noise_probability=0.0), rng).any()
    np.testing.assert_array_equal(draw_noise(mask, MaskConfig(noise_probability=1.0), rng), mask)
    odd = np.ones((3, 5), np.uint8)
    np.testing.assert_array_equal(draw_noise(odd, MaskConfig(noise_probability=1.0), rng), odd)


def test_noise_of_neighbors_is_independent() -> None:
    noise = draw_noise(np.ones((512, 512), np.uint8), MaskConfig(), np.random.default_rng(0)).astype(np.float64)
    noise -= noise.mean()
    for down, right in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 0)):
        assert abs((noise * np.roll(noise, (down, right), (0, 1))).mean() / noise.var()) < 0.01


def test_holes_that_know_nothing_of_eyes() -> None:
    """Without eye-centred lines, the eyes are no more often in the hole than any other place."""
    eyes = np.array([16.0, 16.0, 48.0, 16.0], np.float32)

    def share_at_eyes(probability: float) -> float:
        config = MaskConfig(eye_line_probability=probability, hair_probability=0.0)
        rng = np.random.default_rng(0)
        found = [draw_mask(64, eyes, None, config, rng) for _ in range(300)]
        return float(np.mean([mask[16, 16] or mask[16, 48] for mask in found]))

    assert share_at_eyes(1.0) > 0.9
    assert share_at_eyes(0.0) < 0.6
