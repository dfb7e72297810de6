"""Distances of sets of features, where they are known."""

from __future__ import annotations

import numpy as np
import pytest

from scfegan_ray.evaluation import sets


def features(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, 8)) / 4
    return (drawn + shift).astype(np.float32)


def test_frechet_distance_of_a_shifted_set_is_the_shift_squared() -> None:
    real = features(100)
    assert sets.frechet_distance(real, real) == pytest.approx(0.0, abs=1e-6)
    assert sets.frechet_distance(real, real + np.float32(0.5)) == pytest.approx(8 * 0.25, abs=1e-4)


def test_kernel_distance_is_about_zero_for_the_same_and_more_for_others() -> None:
    real = features(400)
    same, deviation = sets.kernel_distance(real, real, scale=1.0)
    assert abs(same) < 2 * deviation
    other, _ = sets.kernel_distance(real, features(400, shift=0.5, seed=1), scale=1.0)
    assert other > 10 * abs(same)
    assert sets.kernel_distance(real, real, scale=1.0) == (same, deviation)


def test_few_images_have_no_distance() -> None:
    assert np.isnan(sets.frechet_distance(features(1), features(1)))
    assert np.isnan(sets.kernel_distance(features(7), features(7), scale=1.0)).all()
