"""The square of CelebA-HQ around a face, and what is cut out by it."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from scfegan_ray.data import align, decoding
from scfegan_ray.data.align import Face, FaceFinder, Square
from scfegan_ray.errors import ModelError


def mesh(
    eyes: tuple[complex, complex], mouth: tuple[complex, complex] = (45 + 90j, 55 + 90j)
) -> NDArray[np.complex128]:
    """Return points of a face, of which those that lay out the square are where they are told to be."""
    points = np.full(468, 50 + 70j)
    points[list(align._EYE)], points[list(align._OTHER_EYE)] = eyes
    points[align._MOUTH], points[align._OTHER_MOUTH] = mouth
    return points


def noise(width: int, height: int) -> NDArray[np.uint8]:
    small = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def test_corners_go_around_clockwise() -> None:
    assert Square(50.0, 40.0, 20.0, 0.0).corners() == pytest.approx(np.array([[40, 30], [60, 30], [60, 50], [40, 50]]))
    quarter = Square(50.0, 40.0, 20.0, math.pi / 2)
    # A quarter turn clockwise on a screen: the upper edge goes down along the right.
    assert quarter.corners() == pytest.approx(np.array([[60, 30], [60, 50], [40, 50], [40, 30]]))


def test_distance_is_a_fraction_of_the_side() -> None:
    own = Square(50.0, 50.0, 100.0, 0.0)
    assert own.distance(own) == 0.0
    assert Square(53.0, 54.0, 100.0, 0.0).distance(own) == pytest.approx(0.05)


def test_square_of_a_face_that_is_upright() -> None:
    # Eyes 40 apart and 40 over the mouth: down is 41.6, half a side the larger of 2 x 40 and 1.8 x 41.6, all x 0.986.
    center, half = align.square_of(mesh((30 + 50j, 70 + 50j)))
    assert half == pytest.approx(80 * 0.986)
    assert center == pytest.approx(50 + 1j * (50 + 0.1 * 41.6 - 0.014 * 80))


def test_a_long_face_is_measured_from_eyes_to_mouth() -> None:
    _, half = align.square_of(mesh((40 + 50j, 60 + 50j)))
    assert half == pytest.approx(1.8 * 41.6 * 0.986)


def test_square_turns_moves_and_grows_with_the_face() -> None:
    face = mesh((30 + 50j, 70 + 50j))
    center, half = align.square_of(face)
    turn = 3.0 * np.exp(0.4j)
    moved, turned = align.square_of(face * turn + (7 - 5j))
    assert moved == pytest.approx(center * turn + (7 - 5j))
    assert turned == pytest.approx(half * turn)


def test_in_the_mirror_points_are_called_as_their_partners() -> None:
    face = mesh((28 + 50j, 70 + 51j), (44 + 92j, 55 + 90j))
    called_otherwise = mesh((70 + 51j, 28 + 50j), (55 + 90j, 44 + 92j))
    assert align.square_of(called_otherwise, mirrored=True) == pytest.approx(align.square_of(face))


def test_turned_by_what_the_depths_of_both_eyes_say() -> None:
    face = mesh((30 + 50j, 70 + 50j))
    depth = np.zeros(468)
    assert align.turned_degrees(face, depth) == 0.0
    depth[list(align._EYE)] = 40.0
    assert align.turned_degrees(face, depth) == pytest.approx(45.0)


def test_blurring_takes_sharpness() -> None:
    sharp = noise(128, 128)
    found = [align.sharpness(np.asarray(cv2.GaussianBlur(sharp, (0, 0), sigma), np.uint8)) for sigma in (0.5, 2, 5)]
    assert align.sharpness(sharp) > found[0] > found[1] > found[2]
    assert align.sharpness(np.zeros((128, 128, 3), np.uint8)) == 0.0


def test_whole_pixels_are_cut_out_as_they_are() -> None:
    picture = noise(120, 96)
    cut = align.crop(picture, Square(40.0, 50.0, 64.0, 0.0), 64)
    assert np.array_equal(cut, picture[18:82, 8:72])
    for size_px in (24, 100):
        resized = decoding.resize(picture[18:82, 8:72], size_px)
        assert np.array_equal(align.crop(picture, Square(40.0, 50.0, 64.0, 0.0), size_px), resized)


def test_own_square_is_the_central_one() -> None:
    picture = noise(121, 96)
    left, top, right, bottom = decoding.central_square(121, 96)
    cut = align.crop(picture, align.own_square(121, 96), 96)
    assert np.array_equal(cut, picture[top:bottom, left:right])


@pytest.mark.parametrize("size_px", [32, 64, 200])
def test_pixels_are_where_they_would_be_without_the_turn(size_px: int) -> None:
    # A ramp tells of each pixel where it was.
    y, x = np.mgrid[:400, :400]
    ramp = np.stack([x // 2, y // 2, np.full_like(x, 128)], axis=2).astype(np.uint8)
    square = Square(203.0, 190.5, 150.0, 0.3)
    cut = align.crop(ramp, square, size_px).astype(np.float64)
    at = (np.arange(size_px) + 0.5) / size_px
    corners = square.corners()
    expected = (
        corners[0] + at[None, :, None] * (corners[1] - corners[0]) + at[:, None, None] * (corners[3] - corners[0])
    )
    # A ramp's level is the half of a position, less the middle of the two pixels that share it.
    assert np.abs(cut[..., :2] - (expected / 2 - 0.5)).max() < 1.0
    assert (cut[..., 2] == 128).all()


def test_a_quarter_turn_of_both_changes_little() -> None:
    picture = np.asarray(cv2.GaussianBlur(noise(400, 400), (0, 0), 5.0), np.uint8)
    straight = align.crop(picture, Square(200.0, 200.0, 256.0, 0.0), 64)
    turned = align.crop(np.ascontiguousarray(np.rot90(picture)), Square(200.0, 200.0, 256.0, -math.pi / 2), 64)
    assert np.abs(straight.astype(int) - turned).mean() < 1.5


def test_what_lies_outside_is_mirrored_blurred_and_fades() -> None:
    picture = np.asarray(cv2.GaussianBlur(noise(200, 200), (0, 0), 2.0), np.uint8)
    cut = align.crop(picture, Square(10.0, 100.0, 160.0, 0.0), 160).astype(float)
    # The square goes from -70 to 90: what is far inside is as it was.
    assert np.abs(cut[40:120, 140:150] - picture[60:140, 70:80]).mean() < 1.5
    detail = np.abs(np.diff(cut[40:120], axis=0)).mean(axis=(0, 2))
    assert detail[:20].mean() < 0.2 * detail[140:150].mean()
    # Where it ends it is nearer to the median than in the picture, in which neighbors differ.
    median = np.median(picture, axis=(0, 1))
    assert np.abs(cut[:, :5] - median).mean() < np.abs(cut[:, 140:] - median).mean()


@pytest.mark.parametrize("square", [Square(-30.0, 10.0, 90.0, 0.7), Square(50.0, 30.0, 700.0, 0.1)])
@pytest.mark.parametrize("size_px", [16, 96])
def test_squares_far_beyond_the_picture_are_filled(square: Square, size_px: int) -> None:
    plain = np.full((60, 100, 3), (10, 120, 230), np.uint8)
    cut = align.crop(plain, square, size_px)
    assert cut.shape == (size_px, size_px, 3)
    assert (cut == (10, 120, 230)).all()


def test_aligned_where_a_face_fills_the_photograph_as_usual() -> None:
    def face(x: float) -> Face:
        return Face(Square(x, 50.0, 100.0, 0.0), 0.9)

    assert align.is_aligned([face(300.0), face(57.0)], 100, 100)
    assert not align.is_aligned([face(59.0)], 100, 100)
    assert not align.is_aligned([], 100, 100)
    # A photograph that is no square was never aligned so, even where its central square is.
    assert not align.is_aligned([face(100.0)], 200, 100)


def test_what_is_left_open_is_settled_by_what_can_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("yunet_onnx", "face_mesh_tflite"):
        monkeypatch.setattr(align, name, lambda: b"")
    assert (align.settle("auto"), align.settle("celeba_hq"), align.settle("none")) == ("celeba_hq", "celeba_hq", "none")

    def offline() -> bytes:
        raise ModelError("no network")

    monkeypatch.setattr(align, "face_mesh_tflite", offline)
    assert align.settle("none") == "none" and not caplog.text
    assert align.settle("auto") == "none"
    assert "the central square of each photograph is taken, wherever its faces are: no network" in caplog.text
    with pytest.raises(ModelError, match="cannot be found: no network; or give --data.align none"):
        align.settle("celeba_hq")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> FaceFinder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCFEGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return FaceFinder()


@pytest.mark.network
def test_a_real_face_is_found_however_it_is_turned(real: FaceFinder) -> None:
    photograph = skimage.data.astronaut()
    [face] = real.find(photograph)
    assert face.problem is None
    assert face.score > 0.8
    # The eyes are at 200, 103 and 249, 104, the mouth is at 223, 144.
    assert face.square.center_x == pytest.approx(225, abs=5)
    assert face.square.center_y == pytest.approx(106, abs=5)
    assert face.square.side_px == pytest.approx(170, abs=20)
    assert face.square.angle == pytest.approx(0.04, abs=0.04)
    assert not align.is_aligned([face], 512, 512)
    for degrees, scale in ((-25, 1.0), (20, 1.7), (10, 0.6)):
        matrix = cv2.getRotationMatrix2D((256, 256), -degrees, scale)
        turned = cv2.warpAffine(photograph, matrix, (512, 512), borderMode=cv2.BORDER_REPLICATE)
        [again] = real.find(np.asarray(turned, np.uint8))
        expected = np.column_stack([face.square.corners(), np.ones(4)]) @ matrix.T
        off = np.linalg.norm(again.square.corners() - expected, axis=1).mean()
        assert off < 0.05 * again.square.side_px
        assert again.problem is None
        assert math.degrees(again.square.angle - face.square.angle) == pytest.approx(degrees, abs=3)


@pytest.mark.network
def test_what_is_cut_out_is_aligned_already(real: FaceFinder) -> None:
    photograph = skimage.data.astronaut()
    [face] = real.find(photograph)
    cut = align.crop(photograph, face.square, 256)
    assert align.is_aligned(real.find(cut), 256, 256)


@pytest.mark.network
def test_several_faces_come_with_the_largest_first(real: FaceFinder) -> None:
    photograph = skimage.data.astronaut()
    half = np.full_like(photograph, 255)
    half[128:384, 128:384] = cv2.resize(photograph, (256, 256), interpolation=cv2.INTER_AREA)
    group = np.concatenate([half, photograph], axis=1)
    first, second = real.find(group)
    assert first.square.center_x > 512 > second.square.center_x
    assert second.square.side_px == pytest.approx(first.square.side_px / 2, rel=0.05)
    assert [face.problem for face in (first, second)] == [None, None]


@pytest.mark.network
def test_what_is_not_to_be_learnt_from_is_told(real: FaceFinder) -> None:
    photograph = skimage.data.astronaut()
    tiny = np.asarray(cv2.resize(photograph, (160, 160), interpolation=cv2.INTER_AREA), np.uint8)
    [small] = real.find(tiny)
    assert small.problem == "face too small: 53 px, at least 64 are wanted"
    [blurred] = real.find(np.asarray(cv2.GaussianBlur(photograph, (0, 0), 4.0), np.uint8))
    assert blurred.problem == "face blurred"
    # This face is hardly turned, so the limit is moved.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "_MOST_TURNED_DEGREES", 0.1)
        [turned] = real.find(photograph)
    assert turned.problem is not None
    assert turned.problem.startswith("face turned away: by ")


@pytest.mark.network
@pytest.mark.parametrize("shape", [(16, 16), (16, 300), (700, 40)])
def test_nothing_is_found_where_there_is_no_face(real: FaceFinder, shape: tuple[int, int]) -> None:
    assert real.find(np.full((*shape, 3), 128, np.uint8)) == []
    assert real.find(noise(shape[1], shape[0])) == []
