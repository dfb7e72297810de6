"""One face in the making: where the head is, how it is lit, and the color fields that several parts share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from scfegan_ray.faces.canvas import F32, Canvas, Mask, array, both, enlarge, knots, ribbon, smooth
from scfegan_ray.faces.traits import Traits

EYE_X = 0.112
FIELD_SIDE = 128  # smooth fields (light, backdrop) are computed on this grid and enlarged

_HEAD_X, _HEAD_Y, _HEAD_Z = 0.30, 0.45, 0.22


class Pose:
    """Turns head coordinates into image coordinates."""

    def __init__(self, traits: Traits) -> None:
        self._turn = array([np.sin(traits.yaw), np.sin(traits.pitch)])
        self._shrink = array([np.cos(traits.yaw), np.cos(traits.pitch)])
        self._eye_depth = float(_depth(array([[EYE_X, 0.0]]))[0])
        cosine, sine = np.cos(traits.roll) * traits.scale, np.sin(traits.roll) * traits.scale
        self._rotation = array([[cosine, -sine], [sine, cosine]])
        self._origin = array([0.5 + traits.shift[0], 0.48 + traits.shift[1]])

    def surface(self, points: ArrayLike, lift: float = 0.0) -> F32:
        """Place (n, 2) points that lie on the face, `lift` in front of its ellipsoid; a turned head moves them."""
        flat = array(points)
        depth = (_depth(flat) + lift - self._eye_depth)[:, None]
        return self._to_image(flat * self._shrink + depth * self._turn)

    def silhouette(self, points: ArrayLike) -> F32:
        """Place (n, 2) points of the head's outline: it keeps its width when the head turns, but the chin leads."""
        flat = array(points)
        low = np.clip((flat[:, 1] - 0.05) / 0.35, 0, 1) ** 2
        middle = np.clip(1 - np.abs(flat[:, 0]) / 0.3, 0, 1) ** 0.7
        # The cheek that comes into view is farther back than the ellipsoid's edge: it must not bulge.
        toward = np.clip(-flat[:, 0] * np.sign(self._turn[0]) / 0.25, 0, 1)
        beside = toward * np.clip(flat[:, 1] / 0.25 + 0.4, 0, 1) * np.clip((0.5 - flat[:, 1]) / 0.1, 0, 1)
        depth = (0.17 * low * middle + 0.10 * beside - self._eye_depth)[:, None]
        return self._to_image(flat + depth * self._turn)

    def head_frame(self, side: int) -> tuple[F32, F32]:
        """Head coordinates (x, y) of every pixel of a square image, each (side, side), as `silhouette` sees them."""
        axis = (np.arange(side, dtype=np.float32) + 0.5) / side
        x, y = axis[None, :] - self._origin[0], axis[:, None] - self._origin[1]
        inverse = np.linalg.inv(self._rotation)
        away = self._eye_depth * self._turn
        return inverse[0, 0] * x + inverse[0, 1] * y + away[0], inverse[1, 0] * x + inverse[1, 1] * y + away[1]

    def _to_image(self, points: F32) -> F32:
        return points @ self._rotation.T + self._origin


def _depth(points: F32) -> F32:
    """Depth of the face's ellipsoid at (n, 2) head coordinates."""
    inside = 1 - (points[:, 0] / _HEAD_X) ** 2 - (points[:, 1] / _HEAD_Y) ** 2
    return array(_HEAD_Z * np.sqrt(np.clip(inside, 0, None)))


class Scene:
    """What all parts of one face share: its decisions, canvas, pose, random numbers, outline and color fields."""

    def __init__(self, traits: Traits, canvas: Canvas, rng: np.random.Generator) -> None:
        self.traits, self.canvas, self.rng, self.pose = traits, canvas, rng, Pose(traits)
        relief, body = _reliefs(traits, self.pose)
        self.skin, self.body = (enlarge(_lit(height, traits), canvas.side) for height in (relief, body))
        # How bright the lamp makes each point of the face, (side, side, 1), for parts that are not skin.
        self.light = np.clip(self.skin[..., 1:2] / traits.skin[1], 0.4, 1.1)
        self.outline = _head_outline(traits, self.pose)
        self.head = canvas.spread(canvas.shape(self.outline))

    def surface_shape(self, points: ArrayLike, lift: float = 0.0, blur: float = 0.0, clip: F32 | None = None) -> Mask:
        """Mask of a closed curve drawn on the face."""
        return self.canvas.shape(self.pose.surface(points, lift), blur=blur, clip=clip)

    def surface_line(self, path: ArrayLike, width: ArrayLike, lift: float = 0.0, blur: float = 0.0) -> Mask:
        """Mask of a smooth stroke drawn on the face."""
        return self.surface_shape(ribbon(smooth(path), width), lift, blur)

    def silhouette_shape(self, points: ArrayLike) -> Mask:
        """Mask of a closed curve around or beside the head."""
        return self.canvas.shape(self.pose.silhouette(points))


def _head_outline(traits: Traits, pose: Pose) -> F32:
    """Outline of skull, cheeks and chin, (n, 2) image coordinates."""
    cheek, jaw, chin = traits.cheek_width, traits.jaw_width, traits.chin_width
    across = [0, 0.15, 0.235, 0.262 * cheek, 0.255 * cheek, 0.1135 * (cheek + jaw), 0.185 * jaw]
    across += [0.06 * (jaw + chin), 0.058 * chin, 0]
    down = [-0.37, -0.335, -0.22, -0.06, 0.07, 0.19, 0.28, 0.36, 0.394, 0.401]
    return pose.silhouette(smooth(both(knots(across, down)), closed=True))


def _reliefs(traits: Traits, pose: Pose) -> tuple[F32, F32]:
    """Height maps of the face and of neck and shoulders, each (n, n), in fractions of the image's side."""
    x, y = pose.head_frame(FIELD_SIDE)
    radius = np.abs(x / 0.292) ** 2.2 + np.abs((y - 0.02) / 0.43) ** 2.2
    face = 0.21 * np.sqrt(np.clip(1 - radius, 0.02, None))
    lean_x, lean_y = (pose.surface([(0.0, 0.0)]) - pose.silhouette([(0.0, 0.0)]))[0].tolist()
    width, cheek = traits.nose_width, 0.008 + 0.012 * max(0.0, traits.smile)
    for at_x, at_y, wide, tall, amount in [
        (0.0, 0.060, 0.029 * width, 0.075, 0.015),  # bridge, tip and wings of the nose
        (0.0, 0.150, 0.034 * width, 0.034, 0.030),
        (0.0, 0.112, 0.032 * width, 0.045, 0.012),
        *((side * 0.034 * width, 0.158, 0.018, 0.018, 0.016) for side in (-1, 1)),
        (0.0, 0.245, 0.085, 0.050, 0.016),  # mouth, the hollow below it, chin
        (0.0, 0.298, 0.045, 0.016, -0.007),
        (0.0, 0.352, 0.050, 0.035, 0.020),
        *((side * 0.107, 0.000, 0.060, 0.034, -0.010) for side in (-1, 1)),  # sockets, brows, cheeks
        *((side * 0.110, -0.072, 0.075, 0.024, 0.008) for side in (-1, 1)),
        *((side * 0.145, 0.115, 0.065, 0.055, cheek) for side in (-1, 1)),
    ]:
        face += amount * np.exp(-(((x - at_x - lean_x) / wide) ** 2) - ((y - at_y - lean_y) / tall) ** 2)
    return face, array(0.10 * np.exp(-((x / 0.17) ** 2)) + 0.06 * np.exp(-((x / 0.45) ** 2)))


def _lit(height: F32, traits: Traits) -> F32:
    """Color (n, n, 3) of skin of this height (n, n) under one soft lamp."""
    down, right = np.gradient(height * FIELD_SIDE)
    normal = np.stack([-right, -down, np.ones_like(down)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    lamp = array(traits.light) / np.linalg.norm(traits.light)
    half = lamp + array([0, 0, 1])
    lit = traits.ambient + (1.03 - traits.ambient) * np.clip((normal @ lamp + 0.35) / 1.35, 0, 1)
    glint = traits.gloss * np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** 22
    # Shadows of skin are redder than its lights: blood scatters red light farthest.
    return array(traits.skin * lit[..., None] ** array([0.9, 1.1, 1.2]) + glint[..., None] * array([0.9, 0.85, 0.8]))
