"""Faces of a photograph, found and cropped as CelebA-HQ was.

YuNet (Wu et al., Machine Intelligence Research 2023) finds the faces, MediaPipe's mesh (Kartynnik et al., CVPR
workshops 2019) their eyes and mouths, and the square around these is that of Karras et al., Progressive Growing of
GANs, ICLR 2018, appendix C, as the published script of FFHQ computes it. CelebA-HQ's own landmarks, by dlib, were
others, so its lengths are scaled here by what fits faces of it best.

Positions are in pixels from the upper left corner of a photograph, so that a pixel's middle is at a half.
"""

from __future__ import annotations

import cmath
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray.data import decoding
from scfegan_ray.errors import ModelError
from scfegan_ray.weights import face_mesh_tflite, yunet_onnx

logger = logging.getLogger(__name__)

VERSION = 1
"""To be raised whenever other squares are found in the same photograph, or other pixels come from the same square."""

LEAST_SIDE_PX = 64
"""Side of the smallest square that shows a face, where nobody says another."""

ALIGNED_TOLERANCE = 0.08
"""How far, as a fraction of the side, the corners found in a photograph may be from its own for it to count as aligned
already: of 99 % of CelebAMask-HQ's it is less."""

_DETECTED_SIDE_PX, _DETECTED_WIDTH_PX = 640, 320
# Longest side of what is searched; where a photograph is so long that this would leave little of it, its shortest one.

_LEAST_SCORE, _MOST_OVERLAP, _MOST_BOXES = 0.6, 0.3, 5000

_MESH_SIDE_PX = 192
_MESH_SIZE = 468
_MESH_MARGIN = 1.5  # of the square that it sees around a face
_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
_OTHER_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
_MOUTH, _OTHER_MOUTH = 61, 291
# Rings around the eyes and corners of the mouth, those at the image's left first.

_EYES_TO_SIDE, _MOUTH_TO_SIDE, _MOUTH_TO_CENTER = 2.0, 1.8, 0.1  # CelebA-HQ's, of half a side
_MOUTH_FIT, _SIDE_FIT, _UP_FIT = 1.04, 0.986, 0.014  # of this mesh

_SAME_FACE = 0.25  # of the larger side, between two centers
_MOST_TURNED_DEGREES = 45.0
_LEAST_SHARPNESS = 0.005
_SHARPNESS_PX = 128
# Of 599 faces of CelebAMask-HQ 2 are turned farther and none is less sharp; blurred by a Gaussian of sigma 1.5 at that
# size most are.

_OVERSAMPLED = 4
_BORDER, _PADDED, _BLURRED = 0.1, 0.3, 0.02  # of the side, as CelebA-HQ has them
_BLUR_PX = 3.0


@dataclass(frozen=True, slots=True)
class Square:
    """A turned square in a photograph, in pixels of the upright photograph.

    Attributes:
        center_x: of its middle.
        center_y: of its middle.
        side_px: its length.
        angle: of its upper edge from the x axis, in radians, clockwise on a screen.
    """

    center_x: float
    center_y: float
    side_px: float
    angle: float

    def corners(self) -> NDArray[np.float64]:
        """Return (4, 2) x and y: top left, top right, bottom right, bottom left."""
        return _xy(complex(self.center_x, self.center_y) + self._half() * np.array([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j]))

    def distance(self, other: Square) -> float:
        """Return how far its corners are from another's on average, as a fraction of the other's side."""
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).mean() / other.side_px)

    def _half(self) -> complex:
        return cmath.rect(self.side_px / 2, self.angle)


@dataclass(frozen=True, slots=True)
class Face:
    """One face that was found.

    Attributes:
        square: around it, as CelebA-HQ has it.
        score: from 0 to 1, how sure the detector is.
        problem: why nothing is to be learnt from it, in a few words; None where it is fine.
    """

    square: Square
    score: float
    problem: str | None = None


def settle(asked: Literal["auto", "celeba_hq", "none"]) -> Literal["celeba_hq", "none"]:
    """Decide what `data.align` leaves open by what can be had here and now, for all workers of a job.

    Raises:
        ModelError: faces are to be found, and the weights for it cannot be had.
    """
    if asked == "none":
        return "none"
    try:
        yunet_onnx(), face_mesh_tflite()
    except ModelError as error:
        if asked == "celeba_hq":
            raise ModelError(
                f"faces cannot be found: {error}; or give --data.align none, which takes the central square of each "
                "photograph"
            ) from error
        logger.warning("the central square of each photograph is taken, wherever its faces are: %s", error)
        return "none"
    return "celeba_hq"


def own_square(width: int, height: int) -> Square:
    """Return the largest square in the middle of a photograph, which is all of one that is square."""
    left, top, right, bottom = decoding.central_square(width, height)
    return Square((left + right) / 2, (top + bottom) / 2, right - left, 0.0)


def is_aligned(found: Sequence[Face], width: int, height: int) -> bool:
    """Tell whether a photograph is aligned already: it is square, and a face fills it as one of CelebA-HQ does.

    One that is not square was cut by another rule, however near to it a face may be by chance.
    """
    own = own_square(width, height)
    return width == height and any(face.square.distance(own) <= ALIGNED_TOLERANCE for face in found)


class FaceFinder:
    """Finds faces and how CelebA-HQ would have cropped them.

    On faces of CelebAMask-HQ that were turned by up to 30 degrees, scaled and pasted into other pictures, corners are
    off by 1.8 % of the side (median), 4.6 % (95th percentile); `jobs/prepare_data.py --measure-faces` measures it.

    Args:
        least_side_px: of the squares of faces that are large enough.

    Raises:
        ModelError: its weights cannot be had.
    """

    def __init__(self, least_side_px: int = LEAST_SIDE_PX) -> None:
        self._least_side_px = least_side_px
        detector, mesh = (np.frombuffer(content, np.uint8) for content in (yunet_onnx(), face_mesh_tflite()))
        nothing: NDArray[np.uint8] = np.empty(0, np.uint8)
        logged = cv2.utils.logging.getLogLevel()
        # OpenCV's own class tells its own network something that is not supported yet, and warns of it.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._detector = cv2.FaceDetectorYN.create(
            "onnx", detector, nothing, (320, 320), _LEAST_SCORE, _MOST_OVERLAP, _MOST_BOXES
        )
        cv2.utils.logging.setLogLevel(logged)
        self._mesh: Any = cv2.dnn.readNetFromTFLite(mesh)
        self._outputs = self._mesh.getUnconnectedOutLayersNames()

    def find(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find all faces of a photograph.

        Args:
            image: (H, W, 3) uint8 RGB, of any size.

        Returns:
            The largest face first.
        """
        found: list[Face] = []
        reduced = {1: image}
        for box in self._boxes(image):
            face = self._face(reduced, box)
            if face is not None:
                found.append(face)
        found.sort(key=lambda face: -face.square.side_px)
        # Two boxes may lead to the same face, for the mesh looks around itself.
        return [face for at, face in enumerate(found) if not any(_are_same(face, larger) for larger in found[:at])]

    def _boxes(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (N, 15): left, top, width, height, x and y of both eyes, nose and both corners of the mouth, score."""
        height, width = image.shape[:2]
        scale = min(1.0, max(_DETECTED_SIDE_PX / max(height, width), _DETECTED_WIDTH_PX / min(height, width)))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._detector.setInputSize(size)
        _, boxes = self._detector.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if boxes is None:
            return np.empty((0, 15))
        scales = np.append(np.tile([width / size[0], height / size[1]], 7), 1.0)
        found: NDArray[np.float64] = np.asarray(boxes, np.float64) * scales
        return found

    def _face(self, reduced: dict[int, NDArray[np.uint8]], box: NDArray[np.float64]) -> Face | None:
        """Return the face in a box; None where the mesh sees none there."""
        left, top, width, height = box[:4]
        eyes = box[4:8].view(np.complex128)
        view = Square(
            left + width / 2, top + height / 2, _MESH_MARGIN * max(width, height), cmath.phase(eyes[1] - eyes[0])
        )
        # The square that the mesh sees depends on where it finds the face, so it looks again, and once in the mirror.
        for _ in range(2):
            mesh, _, _ = self._look(reduced, view)
            view = _view_of(mesh)
        mesh, depth, logit = self._look(reduced, view)
        mirrored, _, mirrored_logit = self._look(reduced, _view_of(mesh), mirrored=True)
        if min(logit, mirrored_logit) < 0:
            return None
        pair = [square_of(mesh), square_of(mirrored, mirrored=True)]
        center, half = (sum(values) / 2 for values in zip(*pair, strict=True))
        square = Square(center.real, center.imag, 2 * abs(half), cmath.phase(half))
        return Face(square, float(box[14]), self._problem(reduced[1], square, mesh, depth))

    def _look(
        self, reduced: dict[int, NDArray[np.uint8]], view: Square, *, mirrored: bool = False
    ) -> tuple[NDArray[np.complex128], NDArray[np.float64], float]:
        """Let the mesh look at a square.

        Args:
            reduced: the photograph at whole fractions of its size, to which more are added.
            view: what the mesh is to see.
            mirrored: left and right changed.

        Returns:
            (468,) positions x + iy and (468,) depths in pixels of the photograph; above 0 where there is a face.
        """
        factor = 2 ** max(0, math.floor(math.log2(view.side_px / _MESH_SIDE_PX)))
        if factor not in reduced:
            height, width = (max(1, length // factor) for length in reduced[1].shape[:2])
            whole = reduced[1][: height * factor, : width * factor]
            reduced[factor] = np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        matrix = _from_square(view, _MESH_SIDE_PX, mirrored=mirrored)
        seen = _warp(reduced[factor], matrix / factor, _MESH_SIDE_PX, cv2.BORDER_REPLICATE)
        self._mesh.setInput(np.ascontiguousarray((seen.astype(np.float32) / 255).transpose(2, 0, 1)[None]))
        outputs = self._mesh.forward(self._outputs)
        points = max(outputs, key=np.size).reshape(_MESH_SIZE, 3).astype(np.float64)
        placed = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        logit = float(min(outputs, key=np.size).reshape(-1)[0])
        return placed[:, 0] + 1j * placed[:, 1], points[:, 2] * view.side_px / _MESH_SIDE_PX, logit

    def _problem(
        self, image: NDArray[np.uint8], square: Square, mesh: NDArray[np.complex128], depth: NDArray[np.float64]
    ) -> str | None:
        if square.side_px < self._least_side_px:
            return f"face too small: {square.side_px:.0f} px, at least {self._least_side_px} are wanted"
        degrees = turned_degrees(mesh, depth)
        if degrees > _MOST_TURNED_DEGREES:
            return f"face turned away: by {degrees:.0f} degrees, up to {_MOST_TURNED_DEGREES:.0f} are fine"
        # A smaller one is not to be blamed for being enlarged.
        if sharpness(crop(image, square, min(_SHARPNESS_PX, round(square.side_px)))) < _LEAST_SHARPNESS:
            return "face blurred"
        return None


def square_of(mesh: NDArray[np.complex128], *, mirrored: bool = False) -> tuple[complex, complex]:
    """Return CelebA-HQ's square around a face: its center, and from there the middle of its right edge.

    Args:
        mesh: (468,) positions x + iy.
        mirrored: whether it was found in the mirror, where each point is called as its partner.
    """
    eye, other_eye = mesh[list(_EYE)].mean(), mesh[list(_OTHER_EYE)].mean()
    mouth, other_mouth = mesh[_MOUTH], mesh[_OTHER_MOUTH]
    if mirrored:
        eye, other_eye = other_eye, eye
    eyes = (eye + other_eye) / 2
    across = other_eye - eye
    down = ((mouth + other_mouth) / 2 - eyes) * _MOUTH_FIT
    # Across the face as both say: from eye to eye, and from eyes to mouth, turned back by a right angle.
    direction = across - 1j * down
    half = direction / abs(direction) * max(_EYES_TO_SIDE * abs(across), _MOUTH_TO_SIDE * abs(down))
    return complex(eyes + _MOUTH_TO_CENTER * down - 1j * _UP_FIT * half), complex(half * _SIDE_FIT)


def turned_degrees(mesh: NDArray[np.complex128], depth: NDArray[np.float64]) -> float:
    """Return by how much a face is turned to its left or right.

    Args:
        mesh: (468,) positions x + iy.
        depth: (468,) in the same unit.
    """
    across = abs(mesh[list(_OTHER_EYE)].mean() - mesh[list(_EYE)].mean())
    return math.degrees(math.atan2(abs(depth[list(_OTHER_EYE)].mean() - depth[list(_EYE)].mean()), across))


def sharpness(image: NDArray[np.uint8]) -> float:
    """Return how much of a face's contrast is fine detail: from 0 on, less where it is blurred.

    Args:
        image: (W, W, 3) uint8 RGB, of which the part that shows little else than the face counts.
    """
    side = image.shape[0]
    shown = image[side // 4 : side * 7 // 8, side * 3 // 16 : side * 13 // 16]
    gray = cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = gray - cv2.GaussianBlur(gray, (0, 0), 1.0)
    return float(detail.var() / max(float(gray.var()), 1.0))


def crop(image: NDArray[np.uint8], square: Square, size_px: int) -> NDArray[np.uint8]:
    """Cut a turned square out of a photograph and bring it to a size, as CelebA-HQ was.

    Where it leaves the photograph, that is continued by its mirror image, which is blurred and fades to the median
    color the farther it is from the photograph. The square is sampled at four times the size, then averaged. One that
    is parallel to the photograph's sides, at whole pixels within it, is cut out as it is, then resized as any other
    photograph (`decoding.resize`).

    Args:
        image: (H, W, 3) uint8 RGB.
        square: which part of it.
        size_px: side of the result.

    Returns:
        (size_px, size_px, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    corners = square.corners()
    if square.angle == 0.0 and (corners == np.rint(corners)).all():
        left, top, right, bottom = corners[::2].astype(int).reshape(-1).tolist()
        if left >= 0 and top >= 0 and right <= width and bottom <= height:
            return decoding.resize(image[top:bottom, left:right], size_px)
    matrix = _from_square(square, _OVERSAMPLED * size_px)
    border = max(round(_BORDER * square.side_px), 3)
    least, most = np.floor(corners.min(0)).astype(int) - border, np.ceil(corners.max(0)).astype(int) + border
    start = np.clip(least, 0, (width - 1, height - 1))
    end = np.clip(most, start + 1, (width, height))
    part = image[start[1] : end[1], start[0] : end[0]]
    matrix[:, 2] -= start
    shrink = math.floor(square.side_px / size_px / 2)
    scale = np.ones(2)
    if shrink > 1:
        before = np.array(part.shape[1::-1])
        after = np.maximum(np.rint(before / shrink).astype(int), 1)
        part = np.asarray(cv2.resize(part, after.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
        scale = after / before
        matrix = matrix * scale[:, None]
    side_px = square.side_px * float(scale.mean())
    outside = np.ceil(np.concatenate([start - least, most - end]) * np.tile(scale, 2)).astype(int)
    if outside.max() > round(_BORDER * side_px) - 4:
        margins = np.maximum(outside, round(_PADDED * side_px))
        part = _padded(part, margins, _BLURRED * side_px)
        matrix[:, 2] += margins[:2]
    sampled = _warp(part, matrix, _OVERSAMPLED * size_px, cv2.BORDER_REFLECT)
    return np.asarray(cv2.resize(sampled, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8)


def _xy(points: NDArray[np.complex128]) -> NDArray[np.float64]:
    return np.stack([points.real, points.imag], axis=-1)


def _are_same(face: Face, other: Face) -> bool:
    one, two = face.square, other.square
    apart = math.hypot(one.center_x - two.center_x, one.center_y - two.center_y)
    return apart < _SAME_FACE * max(one.side_px, two.side_px)


def _view_of(mesh: NDArray[np.complex128]) -> Square:
    """Return the square that the mesh is to see of a face: around all of its points, upright by the eyes."""
    upright = mesh[[263, 362]].mean() - mesh[[33, 133]].mean()
    upright /= abs(upright)
    turned = _xy(mesh * upright.conjugate())
    least, most = turned.min(0), turned.max(0)
    center = complex(*(least + most) / 2) * upright
    return Square(center.real, center.imag, _MESH_MARGIN * float((most - least).max()), cmath.phase(upright))


def _from_square(square: Square, size_px: int, *, mirrored: bool = False) -> NDArray[np.float64]:
    """Return the (2, 3) matrix from positions in a square's picture to those in the photograph."""
    x, y = square.side_px / size_px * np.array([math.cos(square.angle), math.sin(square.angle)])
    turn = np.array([[x, -y], [y, x]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    center = np.array([square.center_x, square.center_y])
    return np.column_stack([turn, center - turn @ np.full(2, size_px / 2)])


def _warp(image: NDArray[np.uint8], matrix: NDArray[np.float64], size_px: int, border: int) -> NDArray[np.uint8]:
    """Take a picture's pixels from where a matrix, of positions, says that they are."""
    # OpenCV counts from the middle of the first pixel.
    of_middles = np.column_stack([matrix[:, :2], matrix @ [0.5, 0.5, 1.0] - 0.5])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, of_middles, (size_px, size_px), flags=how, borderMode=border), np.uint8)


def _padded(image: NDArray[np.uint8], margins: NDArray[np.int64], sigma_px: float) -> NDArray[np.uint8]:
    """Continue a picture by margins (left, top, right, bottom, none 0) in the way of CelebA-HQ; see `crop`."""
    left, top, right, bottom = margins.tolist()
    # What is farther than a picture from its border is mirrored again.
    mirrored = np.pad(image, ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width = mirrored.shape[:2]
    # A wide Gaussian takes long and leaves no detail, so it is done where there is little of it.
    shrink = max(1, math.floor(sigma_px / _BLUR_PX))
    size = max(1, width // shrink), max(1, height // shrink)
    small = cv2.resize(mirrored, size, interpolation=cv2.INTER_AREA)
    soft = np.asarray(cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma_px / shrink), (width, height)), np.uint8)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    inside = np.minimum(np.minimum(x / left, (width - 1 - x) / right), np.minimum(y / top, (height - 1 - y) / bottom))
    outside = 1.0 - inside
    median: NDArray[np.uint8] = np.full_like(mirrored, np.rint(np.median(small, axis=(0, 1))))
    softened = _mixed(mirrored, soft, np.clip(3.0 * outside + 1.0, 0.0, 1.0))
    return _mixed(softened, median, np.clip(outside, 0.0, 1.0))


def _mixed(image: NDArray[np.uint8], other: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture of which a share of each pixel, from 0 to 1, is another's."""
    return np.asarray(cv2.blendLinear(image, other, 1.0 - share, share), np.uint8)
