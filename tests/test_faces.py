"""Drawn faces: deterministic, exactly labeled, and the same face at each size."""

from __future__ import annotations

import numpy as np
import pytest

from scfegan_ray.data.parsing import LABELS
from scfegan_ray.errors import ConfigError
from scfegan_ray.faces import DrawnFace, draw_face

SEED = 7
COUNT = 48


@pytest.fixture(scope="module")
def faces() -> list[DrawnFace]:
    return [draw_face(SEED, index, 64) for index in range(COUNT)]


def share(face: DrawnFace, *names: str) -> float:
    return float(np.isin(face.labels, [LABELS.index(name) for name in names]).mean())


def center(face: DrawnFace, name: str) -> tuple[float, float]:
    rows, columns = np.nonzero(face.labels == LABELS.index(name))
    return float(columns.mean()), float(rows.mean())


@pytest.mark.parametrize("size_px", [16, 50, 64, 128, 300])
def test_shapes_and_types(size_px: int) -> None:
    face = draw_face(SEED, 1, size_px)
    assert face.image.shape == (size_px, size_px, 3)
    assert face.image.dtype == np.uint8
    assert face.labels.shape == (size_px, size_px)
    assert face.labels.dtype == np.uint8
    assert face.labels.max() < len(LABELS)
    assert face.image.flags.c_contiguous
    assert face.labels.flags.c_contiguous


def test_same_arguments_same_face(faces: list[DrawnFace]) -> None:
    again = draw_face(SEED, 3, 64)
    np.testing.assert_array_equal(again.image, faces[3].image)
    np.testing.assert_array_equal(again.labels, faces[3].labels)
    assert again.eyes == faces[3].eyes


def test_other_index_or_seed_other_face(faces: list[DrawnFace]) -> None:
    images = [face.image for face in faces] + [draw_face(SEED + 1, index, 64).image for index in range(4)]
    assert len({image.tobytes() for image in images}) == len(images)
    assert len({face.labels.tobytes() for face in faces}) == COUNT


def test_every_class_occurs(faces: list[DrawnFace]) -> None:
    seen = set(np.unique(np.stack([face.labels for face in faces])).tolist())
    assert seen == set(range(len(LABELS)))


def test_eyes_lie_in_their_regions_unless_dark_lenses_hide_them(faces: list[DrawnFace]) -> None:
    hidden = 0
    for face in faces:
        left_x, left_y, right_x, right_y = face.eyes
        under = (LABELS[face.labels[int(left_y), int(left_x)]], LABELS[face.labels[int(right_y), int(right_x)]])
        if under == ("eye_g", "eye_g"):
            hidden += 1
            assert share(face, "l_eye", "r_eye") == 0
        else:
            assert under == ("r_eye", "l_eye")
    assert 0 < hidden < COUNT / 4


def test_some_eyes_are_seen_through_clear_lenses(faces: list[DrawnFace]) -> None:
    assert any(share(face, "eye_g") > 0.005 and share(face, "l_eye") > 0 for face in faces)


def test_eyes_are_framed_like_celeba_hq(faces: list[DrawnFace]) -> None:
    mean = np.mean([face.eyes for face in faces], axis=0) / 64
    np.testing.assert_allclose(mean, (0.385, 0.48, 0.615, 0.48), atol=0.015)


def test_the_subjects_left_is_at_the_images_right(faces: list[DrawnFace]) -> None:
    for part in ("eye", "brow"):
        both = [face for face in faces if share(face, f"l_{part}") and share(face, f"r_{part}")]
        assert len(both) > COUNT / 2
        assert all(center(face, f"l_{part}")[0] > center(face, f"r_{part}")[0] for face in both)


def test_the_upper_lip_is_above_the_lower_and_the_mouth_between(faces: list[DrawnFace]) -> None:
    for face in faces:
        assert center(face, "nose")[1] < center(face, "u_lip")[1] < center(face, "l_lip")[1]
    wide_open = [face for face in faces if share(face, "mouth") > 0.004]
    assert wide_open
    for face in wide_open:
        assert center(face, "u_lip")[1] < center(face, "mouth")[1] < center(face, "l_lip")[1]


@pytest.mark.parametrize("index", [0, 1, 2, 5])
def test_the_size_changes_only_the_sampling(index: int) -> None:
    small, large = draw_face(SEED, index, 64), draw_face(SEED, index, 256)
    assert float((small.labels == large.labels[2::4, 2::4]).mean()) > 0.97
    np.testing.assert_allclose(np.multiply(small.eyes, 4), large.eyes, rtol=1e-6)
    averaged = large.image.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert float(np.abs(averaged - small.image).mean()) < 4


def test_a_size_painted_directly_agrees_with_one_averaged_down() -> None:
    small, large = draw_face(SEED, 4, 64), draw_face(SEED, 4, 384)
    assert float((small.labels == large.labels[3::6, 3::6]).mean()) > 0.93


def test_areas_are_those_of_portraits(faces: list[DrawnFace]) -> None:
    skin = [share(face, "skin") for face in faces]
    assert min(skin) > 0.1
    assert max(skin) < 0.45
    assert 0.1 < float(np.mean([share(face, "hair") for face in faces])) < 0.4
    assert 0.1 < float(np.mean([share(face, "background") for face in faces])) < 0.5
    assert 0.01 < float(np.mean([share(face, "nose") for face in faces])) < 0.05


def test_paint_and_labels_agree(faces: list[DrawnFace]) -> None:
    # Lips are redder than skin; labels out of step with the paint would mix the two.
    redder = 0
    for face in faces:
        color = face.image.astype(np.float32) + 1
        redness = color[..., 0] / color[..., 1]
        lips = np.isin(face.labels, [LABELS.index("u_lip"), LABELS.index("l_lip")])
        redder += float(np.median(redness[lips])) > float(np.median(redness[face.labels == LABELS.index("skin")]))
    assert redder > 0.95 * COUNT


@pytest.mark.parametrize(
    ("seed", "index", "size_px", "named"),
    [(0, 0, 15, "size_px is 15"), (0, 0, -1, "size_px is -1"), (-1, 0, 64, "seed -1"), (0, -2, 64, "index -2")],
)
def test_arguments_out_of_range_are_named(seed: int, index: int, size_px: int, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        draw_face(seed, index, size_px)
