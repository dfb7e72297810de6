from __future__ import annotations

import numpy as np
import pytest

from scfegan_ray.config import ColorConfig
from scfegan_ray.data.colors import make_color_map
from scfegan_ray.data.parsing import HAIR, LABELS
from scfegan_ray.errors import ConfigError

_RAW = ColorConfig(median_px=1, bilateral_passes=0)


def _photograph(size: int = 64, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (size, size, 3), np.uint8)


def test_each_piece_of_a_part_takes_its_own_median() -> None:
    image = np.zeros((8, 9, 3), np.uint8)[:, :8]
    labels = np.full((8, 8), LABELS.index("skin"), np.uint8)
    labels[:, 3:5] = HAIR
    image[:, :3, 0] = [10, 20, 90]
    image[:, 3:5] = (1, 2, 3)
    image[:, 5:, 0] = [200, 210, 250]
    result = make_color_map(image, labels, _RAW)
    assert set(np.unique(result[:, :3, 0])) == {20}
    assert (result[:, 3:5] == (1, 2, 3)).all()
    assert set(np.unique(result[:, 5:, 0])) == {210}


def test_medians_agree_with_numpy() -> None:
    image = _photograph(15)  # an odd number of pixels: the median is one of them
    result = make_color_map(image, np.full((15, 15), HAIR, np.uint8), _RAW)
    np.testing.assert_array_equal(result[0, 0], np.median(image.reshape(-1, 3), axis=0))
    assert (result == result[0, 0]).all()


def test_split_parts_keep_several_colors() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = (200, 30, 30)
    image[:, 32:] = (30, 30, 200)
    background = np.zeros((64, 64), np.uint8)
    assert len(np.unique(make_color_map(image, background, ColorConfig(split_parts=())).reshape(-1, 3), axis=0)) == 1
    split = make_color_map(image, background, ColorConfig())
    assert (split[:, :28] == (200, 30, 30)).all()
    assert (split[:, 36:] == (30, 30, 200)).all()


def test_superpixels_without_labels() -> None:
    image = np.full((48, 48, 3), 220, np.uint8)
    image[16:32, 16:32] = (20, 90, 20)
    result = make_color_map(image, None, ColorConfig())
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert (result[20:28, 20:28] == (20, 90, 20)).all()
    assert (result[:8] == 220).all()


@pytest.mark.parametrize("size", [16, 64, 200])
def test_far_fewer_colors_than_the_photograph(size: int) -> None:
    result = make_color_map(_photograph(size), None, ColorConfig(num_superpixels=20))
    assert 1 <= len(np.unique(result.reshape(-1, 3), axis=0)) <= 40


@pytest.mark.parametrize("labels", [None, np.zeros((32, 32), np.uint8), np.full((32, 32), HAIR, np.uint8)])
def test_never_black(labels: np.ndarray | None) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 20:] = (0, 0, 9)
    result = make_color_map(image, labels, ColorConfig())
    assert result.any(axis=-1).all()
    assert (result[:, 0] == 1).all()


def test_the_image_is_left_alone() -> None:
    image = _photograph()
    before = image.copy()
    make_color_map(image, None, _RAW)
    np.testing.assert_array_equal(image, before)


def test_unknown_part() -> None:
    with pytest.raises(ConfigError, match="beard"):
        make_color_map(_photograph(16), np.zeros((16, 16), np.uint8), ColorConfig(split_parts=("beard",)))
