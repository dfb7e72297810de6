from __future__ import annotations

import numpy as np
import pytest

from scfegan_ray.data.parsing import (
    HAIR,
    LABELS,
    PAINT_ORDER,
    canonical_eyes,
    eye_positions,
    hair_region,
    merge_parts,
)
from scfegan_ray.errors import DataError


def _box(size: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    part = np.zeros((size, size), np.uint8)
    part[top:bottom, left:right] = 255
    return part


def test_names() -> None:
    assert len(LABELS) == len(set(LABELS)) == 19
    assert set(PAINT_ORDER) == set(LABELS) - {"background"}
    assert LABELS[HAIR] == "hair"


def test_later_parts_hide_earlier_ones_whatever_their_order_in_the_mapping() -> None:
    skin, hair = _box(8, 0, 8, 0, 8), _box(8, 0, 4, 0, 8)
    labels = merge_parts({"hair": hair, "skin": skin > 0}, 8)
    assert labels.dtype == np.uint8
    assert (labels[:4] == HAIR).all()
    assert (labels[4:] == LABELS.index("skin")).all()
    np.testing.assert_array_equal(hair_region(labels), hair // 255)


def test_resizing_leaves_no_gap_and_makes_no_new_class() -> None:
    labels = merge_parts({"skin": _box(33, 0, 33, 0, 17), "hair": _box(33, 0, 33, 17, 33)}, 16)
    assert labels.shape == (16, 16)
    assert set(np.unique(labels)) == {LABELS.index("skin"), HAIR}


def test_no_parts_is_background() -> None:
    assert not merge_parts({}, 4).any()


def test_bad_parts() -> None:
    with pytest.raises(DataError, match="tail"):
        merge_parts({"tail": _box(4, 0, 1, 0, 1)}, 4)
    with pytest.raises(DataError, match="different shapes"):
        merge_parts({"skin": _box(4, 0, 1, 0, 1), "hair": _box(8, 0, 1, 0, 1)}, 4)
    with pytest.raises(DataError, match="single-channel"):
        merge_parts({"skin": np.zeros((4, 4, 3), np.uint8)}, 4)


def test_eyes_are_sorted_as_in_the_image() -> None:
    labels = merge_parts({"l_eye": _box(32, 14, 17, 20, 25), "r_eye": _box(32, 10, 13, 4, 9)}, 32)
    np.testing.assert_allclose(eye_positions(labels), [6, 11, 22, 15])


def test_glasses_stand_in_for_a_missing_eye() -> None:
    labels = merge_parts({"l_eye": _box(32, 14, 17, 20, 25), "eye_g": _box(32, 10, 11, 4, 14)}, 32)
    np.testing.assert_allclose(eye_positions(labels), [6, 10, 22, 15])


def test_no_labels_give_canonical_eyes() -> None:
    eyes = eye_positions(np.zeros((64, 64), np.uint8))
    assert eyes.dtype == np.float32
    np.testing.assert_array_equal(eyes, canonical_eyes(64))
    assert eyes[0] < 32 < eyes[2]
    # The same place of the image at any size; pixel centers are half a pixel in.
    np.testing.assert_allclose((canonical_eyes(512) + 0.5) / 512, (eyes + 0.5) / 64, rtol=1e-5)
