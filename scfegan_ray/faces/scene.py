"""One face in the making: where the head is, how it is lit, and the color fields that several parts share."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

from scfegan_ray.faces.canvas import F32, Canvas, Mask, array, both, enlarge, knots, noise, ribbon, smooth
from scfegan_ray.faces.traits import Traits

EYE_X = 0.112
FIELD_SIDE = 128  # smooth fields (light, backdrop) are computed on this grid and enlarged

_HEAD_X, _HEAD_Y, _HEAD_Z = 0.30, 0.45, 0.22
# Shadows of skin are redder than its lights: blood scatters red light farthest.
_SKIN_SHADOW = array([0.9, 1.1, 1.2])


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
    """What all parts of one face share: its decisions, canvas, pose, textures, outline and color fields."""

    def __init__(self, traits: Traits, canvas: Canvas, rng: np.random.Generator) -> None:
        self.traits = traits
        self.canvas = canvas
        self.pose = Pose(traits)
        self.noise = noise(rng, 64, 64, 1.0, 1.0)
        strands = _strand_noise(rng)
        self.outline_jitter = rng.standard_normal(160).astype(np.float32)
        self.backdrop_places = rng.random((24, 4)).astype(np.float32)
        self.skin, self.body = (enlarge(field, canvas.side) for field in _skin_fields(traits, self.pose, self.noise))
        # How bright the lamp makes each point of the face, (side, side, 1), for parts that are not skin.
        self.light = np.clip(self.skin[..., 1:2] / traits.skin[1], 0.4, 1.1)
        self.hair = _hair_field(traits, self.pose, strands, canvas.side)
        self.outline = _head_outline(traits, self.pose)
        self.head = canvas.shape(self.outline)

    def surface_shape(self, points: ArrayLike, lift: float = 0.0, blur: float = 0.0, clip: Mask | None = None) -> Mask:
        """Mask of a closed curve drawn on the face."""
        return self.canvas.shape(self.pose.surface(points, lift), blur=blur, clip=clip)

    def surface_line(self, path: ArrayLike, width: ArrayLike, lift: float = 0.0, blur: float = 0.0) -> Mask:
        """Mask of a smooth stroke drawn on the face."""
        return self.surface_shape(ribbon(smooth(path), width), lift, blur)

    def silhouette_shape(self, points: ArrayLike, blur: float = 0.0, clip: Mask | None = None) -> Mask:
        """Mask of a closed curve around or beside the head."""
        return self.canvas.shape(self.pose.silhouette(points), blur=blur, clip=clip)


def _head_outline(traits: Traits, pose: Pose) -> F32:
    """Outline of skull, cheeks and chin, (n, 2) image coordinates."""
    cheek, jaw, chin, drop = traits.cheek_width, traits.jaw_width, traits.chin_width, traits.chin_drop
    across = [0, 0.15, 0.235, 0.262 * cheek, 0.255 * cheek, 0.1135 * (cheek + jaw), 0.185 * jaw]
    across += [0.06 * (jaw + chin), 0.058 * chin, 0]
    down = [-0.37, -0.335, -0.22, -0.06, 0.07, 0.19, 0.28, 0.36 + 0.7 * drop, 0.394 + drop, 0.401 + drop]
    return pose.silhouette(smooth(both(knots(across, down)), closed=True))


def _skin_fields(traits: Traits, pose: Pose, mottle: F32) -> tuple[F32, F32]:
    """Lit skin of the head and of neck and shoulders, each (n, n, 3): a height map seen by one soft lamp."""
    x, y = pose.head_frame(FIELD_SIDE)
    radius = np.abs(x / 0.292) ** 2.2 + np.abs((y - 0.02) / 0.43) ** 2.2
    height = 0.21 * np.sqrt(np.clip(1 - radius, 0.02, None))
    lean_x, lean_y = (pose.surface([(0.0, 0.0)]) - pose.silhouette([(0.0, 0.0)]))[0].tolist()

    def bump(at_x: float, at_y: float, wide: float, tall: float, amount: float, lead: float = 1.0) -> F32:
        squared = ((x - at_x - lean_x * lead) / wide) ** 2 + ((y - at_y - lean_y * lead) / tall) ** 2
        return array(amount * np.exp(-squared))

    def bumps(at_x: float, at_y: float, wide: float, tall: float, amount: float) -> F32:
        return bump(-at_x, at_y, wide, tall, amount) + bump(at_x, at_y, wide, tall, amount)

    nose_y = 0.15 * traits.nose_length
    width = traits.nose_width
    height += bump(0, nose_y * 0.4, 0.029 * width, 0.075, 0.015, 1.1)
    height += bump(0, nose_y, 0.034 * width, 0.034, 0.030, 1.2)
    height += bump(0, nose_y * 0.75, 0.032 * width, 0.045, 0.012, 1.15)
    height += bump(0, 0.245, 0.085, 0.05, 0.016) + bump(0, 0.352 + traits.chin_drop, 0.05, 0.035, 0.020)
    height -= bump(0, 0.298, 0.045, 0.016, 0.007)
    for side in (-1, 1):
        height -= bump(side * 0.107, 0.0, 0.060, 0.034, 0.016)
        height += bump(side * EYE_X, 0.0, 0.040, 0.026, 0.008)
        height += bump(side * 0.11, -0.072, 0.075, 0.024, 0.008)
        height += bump(side * 0.145, 0.115, 0.065, 0.055, 0.008 + 0.012 * max(0.0, traits.smile))
        height += bump(side * 0.034 * width, nose_y + 0.008, 0.018, 0.018, 0.016, 1.1)
        height -= bump(side * 0.105, 0.205, 0.03, 0.05, 0.005)
    light = _lamp(height, traits)
    lit = traits.ambient + (1.03 - traits.ambient) * light.diffuse + traits.rim * light.edge
    tone = array(traits.skin)
    skin = tone * lit[..., None] ** _SKIN_SHADOW
    skin = skin + (traits.gloss * light.glint * (0.6 + 0.4 * tone.mean()))[..., None] * array([1, 0.95, 0.9])
    red = bumps(0.155, 0.125, 0.07, 0.06, 0.16 * traits.blush) + bump(0, nose_y, 0.04, 0.03, 0.05)
    uneven = 1 + enlarge(mottle, FIELD_SIDE)[..., None] * 0.008
    skin = skin * (uneven - red[..., None] * array([0.05, 0.75, 0.6]))
    if traits.freckles:
        speck = np.clip(np.tile(mottle, (3, 3))[:FIELD_SIDE, :FIELD_SIDE] - 1.5, 0, 1) * traits.freckles
        zone = bumps(0.11, 0.09, 0.10, 0.06, 0.5)
        skin = skin * (1 - (speck * zone)[..., None] * array([0.3, 0.6, 0.75]))
    tube = 0.10 * np.exp(-((x / 0.17) ** 2)) + 0.06 * np.exp(-((x / 0.45) ** 2))
    neck_light = traits.ambient + (1.0 - traits.ambient) * _lamp(tube, traits).diffuse
    body = tone * neck_light[..., None] ** _SKIN_SHADOW * 0.95
    return array(skin), array(body)


@dataclass(frozen=True, slots=True)
class _Lamp:
    """What the lamp does at each point of a height map: each (n, n) float32, about 0..1."""

    diffuse: F32
    glint: F32
    edge: F32


def _lamp(height: F32, traits: Traits) -> _Lamp:
    """Light a height map (n, n) whose unit, like its grid's, is the image's side."""
    down, right = np.gradient(height * FIELD_SIDE)
    length = np.sqrt(1 + down**2 + right**2)

    lamp = _unit(array(traits.light))

    def facing(direction: F32) -> F32:
        x, y, z = direction
        return array((-right * x - down * y + z) / length)

    diffuse = np.clip((facing(lamp) + 0.35) / 1.35, 0, 1)
    glint = np.clip(facing(_unit(lamp + array([0, 0, 1]))), 0, 1) ** 22
    edge = np.clip(1 - 1 / length, 0, 1) ** 2 * np.clip(0.5 - np.sign(lamp[0]) * -right / length, 0, 1)
    return _Lamp(array(diffuse), array(glint), array(edge))


def _unit(direction: F32) -> F32:
    return array(direction / np.linalg.norm(direction))


def _strand_noise(rng: np.random.Generator) -> F32:
    """Tileable texture (32, 512): long along the rows' axis, fine along the columns'."""
    coarse, middle, fine = (noise(rng, 32, 512, 3.5, width) for width in (9.0, 3.0, 1.0))
    return array(0.6 * coarse + 0.55 * middle + 0.5 * fine)


def _hair_field(traits: Traits, pose: Pose, texture: F32, side: int) -> F32:
    """Color of hair wherever it may lie, (side, side, 3): strands that follow the style's flow, gloss and light."""
    x, y = pose.head_frame(side)
    wave = traits.hair_wave * 0.012 * np.sin(26 * y + 4 * np.sign(x) + 9 * x) * np.clip(y + 0.25, 0, 0.5) * 2
    if traits.hair_style == "curly":
        across = x + 0.016 * np.sin(70 * y + 9 * x) + 0.01 * np.sin(131 * y + 40 * x)
        along = y + 0.016 * np.sin(64 * x + 11 * y) + 0.01 * np.sin(117 * x - 37 * y)
        columns, rows = across * 420, along * 75
    elif traits.hairline == "fringe":
        # A fringe fans out from the crown.
        across = np.arctan2(x + wave, np.maximum(y + 0.52, 0.02))
        columns, rows = across * 260, np.hypot(x, y + 0.52) * 20
    elif not traits.hair_length and traits.hairline == "back":
        columns = np.arctan2(x - traits.hair_part, 0.14 - y) * 150
        rows = np.hypot(x, y - 0.1) * 30
    else:
        # Parted hair arches from the parting over the skull, then hangs.
        center = x - traits.hair_part * np.clip(-y * 4, 0, 1)
        above = np.clip((y + 0.04) / -0.36, 0, None)
        across = np.sqrt((center / 0.27) ** 2 + above**2) + wave / 0.27
        columns, rows = across * 95 + 25 * center, (np.arctan2(np.abs(center), above * 0.3 + 0.02) + y * 3) * 5.5
    strands = cv2.remap(texture, array(columns), array(rows), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    dome = array(0.24 * np.sqrt(np.clip(1 - (x / 0.42) ** 2 - (np.minimum(y, 0.0) / 0.52) ** 2, 0.05, None)))
    lamp = _lamp(array(cv2.resize(dome, (FIELD_SIDE, FIELD_SIDE), interpolation=cv2.INTER_AREA)), traits)
    lit = enlarge(lamp.diffuse * (1.1 - traits.ambient * 0.7) + traits.ambient * 0.7, side)
    band = np.exp(-(((np.hypot(x - traits.light[0] * 0.1, y + 0.02) - 0.31) / 0.05) ** 2))
    band = band * np.clip(0.8 - 4 * y, 0, 1)
    base = array(traits.hair_color)
    depth = np.clip(0.86 + 0.24 * traits.hair_contrast * strands, 0.25, 1.7) * lit
    gloss = (band * np.clip(0.5 + 0.6 * strands, 0, 2) * 0.13 * traits.hair_contrast)[..., None]
    return array(base * depth[..., None] + gloss * (0.5 * base + 0.4))
