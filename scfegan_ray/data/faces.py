"""Portraits drawn by this module alone, with an exact label map for every pixel.

Training can start without any download: `draw_face` draws an endless, deterministic supply of faces. Every visible
thing is a *part*: a mask (a smooth closed curve), a color or color field, and the class it belongs to. Parts are
painted in order, so the paint and the labels come from the same shapes and cannot disagree. All random decisions are
made once, in `_Traits`, before any size is known; the same face therefore appears at each size.

Coordinates inside this module are fractions of the image's side. Heads are described in a frame whose origin is the
point between the eyes, x to the image's right, y down and z toward the camera; `_Pose` turns that frame into the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from scfegan_ray.data.parsing import LABELS
from scfegan_ray.errors import ConfigError

F32 = NDArray[np.float32]
Color = tuple[float, float, float]

_MIN_SIDE = 16
_CANVAS_SIDE = 256  # smaller images are painted at a multiple of their size and averaged down
_FIELD_SIDE = 128  # smooth fields (light, backdrop) are computed on this grid and enlarged
_CLASS = {name: number for number, name in enumerate(LABELS)}

_SKIN_TONES: tuple[Color, ...] = (
    (0.95, 0.80, 0.71),
    (0.92, 0.74, 0.63),
    (0.87, 0.68, 0.55),
    (0.81, 0.60, 0.46),
    (0.70, 0.49, 0.35),
    (0.57, 0.38, 0.27),
    (0.43, 0.28, 0.20),
    (0.32, 0.21, 0.16),
)
_HAIR_COLORS: tuple[Color, ...] = (
    (0.07, 0.06, 0.06),
    (0.13, 0.09, 0.07),
    (0.23, 0.14, 0.09),
    (0.36, 0.22, 0.13),
    (0.48, 0.31, 0.17),
    (0.66, 0.49, 0.28),
    (0.82, 0.67, 0.43),
    (0.50, 0.20, 0.09),
    (0.62, 0.60, 0.58),
)
_IRIS_COLORS: tuple[Color, ...] = (
    (0.20, 0.11, 0.06),
    (0.32, 0.19, 0.09),
    (0.42, 0.30, 0.14),
    (0.33, 0.40, 0.22),
    (0.30, 0.45, 0.58),
    (0.42, 0.50, 0.56),
)
_METALS: tuple[Color, ...] = ((0.86, 0.70, 0.36), (0.80, 0.81, 0.84), (0.88, 0.66, 0.56))


@dataclass(frozen=True, slots=True)
class DrawnFace:
    """One drawn portrait.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        labels: (size, size) uint8, class ids 0..18 in the order of `scfegan_ray.data.parsing.LABELS`. `l_` is the
            subject's left, at the image's right. Frames and lenses of glasses are `eye_g`, but eyes seen through
            clear lenses stay `l_eye` and `r_eye`; behind dark lenses everything is `eye_g`.
        eyes: x, y of the eye at the image's left, then x, y of the eye at the image's right, in pixels from the
            image's top left corner, so that `labels[int(y), int(x)]` is the pixel under the eye's center.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    eyes: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Traits:
    """Every random decision about one face; lengths are fractions of the image's side, angles radians."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: tuple[float, float]
    light: tuple[float, float, float]
    ambient: float
    rim: float
    cheek_width: float
    jaw_width: float
    chin_width: float
    chin_drop: float
    ear_size: float
    skin: Color
    blush: float
    freckles: float
    gloss: float
    feminine: bool
    beard: str
    beard_strength: float
    hair_style: str
    hairline: str
    hair_color: Color
    hair_volume: float
    hair_length: float
    hair_wave: float
    hair_contrast: float
    hair_part: float
    brow_thickness: float
    brow_height: float
    brow_arch: float
    brow_strength: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    iris: Color
    gaze: tuple[float, float]
    lash: float
    eyeshadow: Color
    eyeshadow_strength: float
    nose_width: float
    nose_length: float
    mouth_width: float
    mouth_drop: float
    lip_fullness: float
    lip_color: Color
    smile: float
    mouth_open: float
    glasses: str
    glasses_color: Color
    glasses_roundness: float
    earring: str
    metal: Color
    necklace: bool
    pendant: bool
    hat: str
    hat_color: Color
    cloth_style: str
    cloth_color: Color
    cloth_second: Color
    neck_width: float
    backdrop: str
    backdrop_colors: tuple[Color, Color, Color]
    exposure: float
    white_balance: Color
    blur: float
    grain: float


def draw_face(seed: int, index: int, size_px: int) -> DrawnFace:
    """Draw one portrait; a pure function of its arguments.

    Args:
        seed: chooses the population of faces; 0 or more.
        index: chooses the face within the population; 0 or more.
        size_px: side of the square image in pixels, 16 or more. It changes the sampling of the face, not the face.

    Returns:
        The portrait, its label map and the position of its eyes.

    Raises:
        ConfigError: an argument is out of range.
    """
    if size_px < _MIN_SIDE:
        raise ConfigError(f"size_px is {size_px}: a drawn face needs at least {_MIN_SIDE} pixels a side")
    if seed < 0 or index < 0:
        raise ConfigError(f"seed {seed} and index {index} of a drawn face must be 0 or more")
    traits = _draw_traits(np.random.default_rng([seed, index, 0]))
    textures = np.random.default_rng([seed, index, 1])
    factor = -(-_CANVAS_SIDE // size_px)
    scene = _Scene(traits, _Canvas(size_px * factor), textures)
    _paint_backdrop(scene)
    _paint_hair_back(scene)
    _paint_body(scene)
    _paint_ears(scene)
    _paint_head(scene)
    _paint_beard(scene)
    _paint_nose(scene)
    _paint_mouth(scene)
    for side in (-1, 1):
        _paint_eye(scene, side)
        _paint_brow(scene, side)
    _paint_glasses(scene)
    _paint_necklace(scene)
    _paint_hair_front(scene)
    _paint_hat(scene)
    _paint_earrings(scene)
    image = _photograph(scene, size_px, textures)
    labels = np.ascontiguousarray(scene.canvas.labels[factor // 2 :: factor, factor // 2 :: factor])
    left, right = (scene.pose.surface([(side * _EYE_X, 0.0)])[0] * size_px for side in (-1, 1))
    return DrawnFace(image, labels, (float(left[0]), float(left[1]), float(right[0]), float(right[1])))


# --- decisions ---------------------------------------------------------------------------------------------------


def _draw_traits(rng: np.random.Generator) -> _Traits:
    """Make every decision about one face, in a fixed order."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    def pick(options: Sequence[str], weights: Sequence[float]) -> str:
        return options[int(rng.choice(len(options), p=np.asarray(weights) / np.sum(weights)))]

    def any_color(low: float, high: float, saturation: float) -> Color:
        gray = between(low, high)
        red, green, blue = (float(np.clip(gray + rng.normal(0, saturation), 0.02, 0.98)) for _ in range(3))
        return red, green, blue

    feminine = chance(0.55)
    tone = between(0, len(_SKIN_TONES) - 1.001)
    lower = int(tone)
    mixed = _array(_SKIN_TONES[lower]) * (1 - tone + lower) + _array(_SKIN_TONES[lower + 1]) * (tone - lower)
    skin = _color(np.clip(mixed + rng.normal(0, 0.012, 3), 0.05, 1))
    # Light hair and eyes are drawn for light skin only, as they mostly occur.
    hair_choices = 9 if tone < 2.5 else 4
    hair_index = int(rng.integers(hair_choices))
    hair_color = _color(np.clip(np.asarray(_HAIR_COLORS[hair_index]) * between(0.8, 1.2), 0.03, 0.95))
    iris = _color(np.asarray(_IRIS_COLORS[int(rng.integers(6 if tone < 2.5 else 2))]) * between(0.8, 1.2))
    if feminine:
        hair_style = pick(("long", "bob", "curly", "bun", "short", "bald"), (46, 20, 12, 14, 7, 1))
        hairline = pick(("center", "side", "back", "fringe"), (25, 35, 20, 20))
    else:
        hair_style = pick(("short", "curly", "long", "bald", "bob"), (66, 12, 7, 11, 4))
        hairline = pick(("side", "back", "fringe"), (40, 45, 15))
    if hair_style in ("bun", "bald"):
        hairline = "back"
    length = {
        "long": between(0.5, 0.75),
        "bob": between(0.24, 0.42),
        "curly": between(0.24, 0.42) if chance(0.6) else 0.0,
    }.get(hair_style, 0.0)
    volume = {"bald": 0.0, "bun": between(0.015, 0.035), "curly": between(0.06, 0.11)}.get(
        hair_style, between(0.03, 0.06 if hair_style == "short" else 0.10)
    )
    hat = "none" if hair_style in ("bun", "curly") else pick(("none", "beanie", "brim", "cap"), (89, 4, 4, 3))
    mouth_open = between(0.35, 1.0) if chance(0.42) else 0.0
    azimuth, elevation = float(rng.normal(0, 0.6)), between(0.15, 0.75)
    natural_lip = np.asarray(skin) * (0.84, 0.58, 0.58)
    lipstick = np.asarray([(0.68, 0.12, 0.17), (0.78, 0.36, 0.40), (0.52, 0.10, 0.17), (0.82, 0.45, 0.42)])
    painted = between(0.2, 0.8) if feminine else 0.0
    lip = natural_lip * (1 - painted) + lipstick[int(rng.integers(4))] * painted
    warmth = float(rng.normal(0, 0.025))
    return _Traits(
        yaw=float(np.clip(rng.normal(0, 0.20), -0.42, 0.42)),
        pitch=float(np.clip(rng.normal(0, 0.06), -0.12, 0.12)),
        roll=float(np.clip(rng.normal(0, 0.045), -0.12, 0.12)),
        scale=between(0.96, 1.07),
        shift=(float(rng.normal(0, 0.01)), float(rng.normal(0, 0.01))),
        light=(float(np.sin(azimuth)) * 0.9, -elevation, float(np.cos(azimuth)) * 0.8 + 0.15),
        ambient=between(0.32, 0.6),
        rim=between(0.05, 0.3) if chance(0.35) else 0.0,
        cheek_width=between(0.95, 1.04),
        jaw_width=between(0.90, 1.0) if feminine else between(0.97, 1.1),
        chin_width=between(0.8, 1.05) if feminine else between(0.95, 1.3),
        chin_drop=between(-0.015, 0.02),
        ear_size=between(0.85, 1.15),
        skin=skin,
        blush=between(0.0, 0.8) if feminine else between(0.0, 0.4),
        freckles=between(0.3, 1.0) if tone < 2 and chance(0.18) else 0.0,
        gloss=between(0.05, 0.3),
        feminine=feminine,
        beard="none" if feminine else pick(("none", "stubble", "full", "goatee", "moustache"), (50, 22, 14, 9, 5)),
        beard_strength=between(0.6, 1.0),
        hair_style=hair_style,
        hairline=hairline,
        hair_color=hair_color,
        hair_volume=volume if hat == "none" else min(volume, 0.035),
        hair_length=length,
        hair_wave=between(0.3, 1.0) if chance(0.5) else between(0.0, 0.2),
        hair_contrast=between(0.6, 1.25),
        hair_part=between(0.04, 0.10) * (1 if chance(0.5) else -1) if hairline == "side" else 0.0,
        brow_thickness=between(0.010, 0.015) if feminine else between(0.013, 0.021),
        brow_height=between(0.068, 0.085) if feminine else between(0.058, 0.074),
        brow_arch=between(0.010, 0.024) if feminine else between(0.002, 0.014),
        brow_strength=between(0.6, 0.95),
        eye_width=between(0.050, 0.057),
        eye_open=between(0.85, 1.2) if feminine else between(0.72, 1.05),
        eye_tilt=between(-0.004, 0.010),
        iris=iris,
        gaze=(float(rng.normal(0, 0.12)), float(rng.normal(0, 0.06))),
        lash=between(0.6, 1.0) if feminine else between(0.2, 0.45),
        eyeshadow=any_color(0.15, 0.5, 0.1),
        eyeshadow_strength=between(0.1, 0.55) if feminine and chance(0.5) else 0.0,
        nose_width=between(1.0, 1.3) if feminine else between(1.15, 1.45),
        nose_length=between(0.93, 1.06),
        mouth_width=between(0.082, 0.098),
        mouth_drop=between(-0.008, 0.012),
        lip_fullness=between(0.95, 1.45) if feminine else between(0.75, 1.2),
        lip_color=_color(np.clip(lip, 0.04, 1)),
        smile=between(0.45, 1.0) if mouth_open else between(-0.15, 0.6),
        mouth_open=mouth_open,
        glasses=pick(("none", "clear", "dark"), (80, 14, 6)),
        glasses_color=any_color(0.05, 0.3, 0.05) if chance(0.8) else any_color(0.3, 0.7, 0.15),
        glasses_roundness=between(2.0, 4.5),
        earring=pick(("none", "stud", "hoop", "drop"), (55, 12, 16, 17))
        if feminine
        else pick(("none", "stud"), (9, 1)),
        metal=_METALS[int(rng.integers(3))],
        necklace=chance(0.2 if feminine else 0.04),
        pendant=chance(0.5),
        hat=hat,
        hat_color=any_color(0.08, 0.6, 0.12),
        cloth_style=pick(("round", "vee", "crew", "jacket", "wide"), (25, 20, 20, 20, 15 if feminine else 1)),
        cloth_color=any_color(0.05, 0.9, 0.16),
        cloth_second=any_color(0.5, 0.95, 0.08),
        neck_width=between(0.125, 0.145) if feminine else between(0.155, 0.185),
        backdrop=pick(("gradient", "blobs", "bokeh", "panels"), (30, 30, 20, 20)),
        backdrop_colors=(any_color(0.05, 0.95, 0.08), any_color(0.1, 0.9, 0.14), any_color(0.1, 0.9, 0.14)),
        exposure=between(0.9, 1.08),
        white_balance=(1 + warmth, 1.0, 1 - warmth),
        blur=between(0.0, 0.0026),
        grain=between(0.002, 0.011),
    )


def _array(values: ArrayLike) -> F32:
    return np.asarray(values, np.float32)


def _knots(x: ArrayLike, y: ArrayLike) -> F32:
    """Points (n, 2) from their x and their y."""
    return np.stack([_array(x), _array(y)], axis=1)


def _both(half: F32) -> F32:
    """The points (n, 2) and then their mirror images in reverse; points on the axis are not repeated."""
    return np.concatenate([half, (half * _array([-1, 1]))[::-1][np.abs(half[::-1, 0]) > 1e-6]])


def _color(values: ArrayLike) -> Color:
    red, green, blue = np.asarray(values, np.float64).tolist()
    return red, green, blue


# --- geometry and paint ------------------------------------------------------------------------------------------

_EYE_X = 0.112
_DEPTH = 0.22
_HEAD_X, _HEAD_Y = 0.30, 0.45


class _Pose:
    """Turns head coordinates into image coordinates."""

    def __init__(self, traits: _Traits) -> None:
        self._turn = _array([np.sin(traits.yaw), np.sin(traits.pitch)])
        self._shrink = _array([np.cos(traits.yaw), np.cos(traits.pitch)])
        self._eye_depth = float(_depth(_array([[_EYE_X, 0.0]]))[0])
        cosine, sine = np.cos(traits.roll) * traits.scale, np.sin(traits.roll) * traits.scale
        self._rotation = _array([[cosine, -sine], [sine, cosine]])
        self._origin = _array([0.5 + traits.shift[0], 0.48 + traits.shift[1]])

    def surface(self, points: ArrayLike, lift: float = 0.0) -> F32:
        """Place (n, 2) points that lie on the face, `lift` in front of its ellipsoid; a turned head moves them."""
        flat = np.asarray(points, np.float32).reshape(-1, 2)
        depth = (_depth(flat) + lift - self._eye_depth)[:, None]
        return self._to_image(flat * self._shrink + depth * self._turn)

    def silhouette(self, points: ArrayLike) -> F32:
        """Place (n, 2) points of the head's outline: it keeps its width when the head turns, but the chin leads."""
        flat = np.asarray(points, np.float32).reshape(-1, 2)
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
        inverse = np.linalg.inv(self._rotation).astype(np.float32)
        away = self._eye_depth * self._turn
        return inverse[0, 0] * x + inverse[0, 1] * y + away[0], inverse[1, 0] * x + inverse[1, 1] * y + away[1]

    def _to_image(self, points: F32) -> F32:
        return (points @ self._rotation.T + self._origin).astype(np.float32)


def _depth(points: F32) -> F32:
    """Depth of the face's ellipsoid at (n, 2) head coordinates."""
    inside = 1 - (points[:, 0] / _HEAD_X) ** 2 - (points[:, 1] / _HEAD_Y) ** 2
    return np.asarray(_DEPTH * np.sqrt(np.clip(inside, 0, None)), np.float32)


@dataclass(frozen=True, slots=True)
class _Mask:
    """Coverage 0..1 of one part inside a rectangle of the canvas."""

    rows: slice
    columns: slice
    alpha: F32


class _Canvas:
    """Float RGB paint in 0..1 and class ids, changed together."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = np.zeros((side, side, 3), np.float32)
        self.labels = np.zeros((side, side), np.uint8)

    def shape(self, *outlines: F32, blur: float = 0.0, clip: _Mask | None = None) -> _Mask:
        """Coverage of closed curves, each (n, 2) image coordinates, softened by `blur`, inside `clip`."""
        sigma = blur * self.side
        margin = int(np.ceil(3 * sigma)) + 2
        pixels = [outline * self.side for outline in outlines]
        every = np.concatenate(pixels)
        left, top = (max(0, int(value) - margin) for value in every.min(axis=0))
        right, bottom = (min(self.side, int(value) + 1 + margin) for value in every.max(axis=0))
        stencil = np.zeros((max(0, bottom - top), max(0, right - left)), np.uint8)
        rows, columns = slice(top, top + stencil.shape[0]), slice(left, left + stencil.shape[1])
        if not stencil.size:
            return _Mask(rows, columns, stencil.astype(np.float32))
        corner = _array([left + 0.5, top + 0.5])  # OpenCV's pixel centers are whole numbers
        for curve in pixels:
            # Four fractional bits keep small curves smooth.
            cv2.fillPoly(stencil, [np.round((curve - corner) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        alpha = stencil * np.float32(1 / 255)
        if sigma > 0.3:
            alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), sigma), np.float32)
        if clip is not None:
            inside = np.zeros_like(alpha)
            upper, lower = max(top, clip.rows.start), min(rows.stop, clip.rows.stop)
            near, far = max(left, clip.columns.start), min(columns.stop, clip.columns.stop)
            if upper < lower and near < far:
                own = (slice(upper - top, lower - top), slice(near - left, far - left))
                up, back = clip.rows.start, clip.columns.start
                inside[own] = alpha[own] * clip.alpha[upper - up : lower - up, near - back : far - back]
            alpha = inside
        return _Mask(rows, columns, alpha)

    def paint(
        self,
        mask: _Mask,
        color: ArrayLike,
        label: str | None = None,
        *,
        opacity: float = 1.0,
        light: F32 | None = None,
        only: Sequence[str] = (),
    ) -> None:
        """Cover `mask` with a color or a (side, side, 3) field.

        Args:
            mask: the part's coverage.
            color: RGB in 0..1, or such a field.
            label: class of the part; None leaves the labels as they are.
            opacity: 0..1; it changes the paint, not the label.
            light: (side, side, 1 or 3) factors of the color.
            only: classes that may be covered; empty for all.
        """
        window = (mask.rows, mask.columns)
        cover = self._restrict(mask, only)
        paint = np.asarray(color, np.float32)
        if paint.ndim == 3:
            paint = paint[window]
        if light is not None:
            paint = paint * light[window]
        if opacity > 0:
            image = self.image[window]
            image += (cover * np.float32(opacity))[..., None] * (paint - image)
        if label is not None:
            self.labels[window][cover >= 0.5] = _CLASS[label]

    def shade(self, mask: _Mask, strength: float, only: Sequence[str] = ()) -> None:
        """Darken `mask`, blue most: shadows on skin are warm."""
        cover = self._restrict(mask, only)
        self.image[mask.rows, mask.columns] *= 1 - cover[..., None] * (_array([0.82, 0.96, 1.0]) * strength)

    def _restrict(self, mask: _Mask, only: Sequence[str]) -> F32:
        """The mask's coverage, without pixels of classes not in `only`."""
        if not only:
            return mask.alpha
        allowed = np.isin(self.labels[mask.rows, mask.columns], [_CLASS[name] for name in only])
        return np.asarray(mask.alpha * allowed, np.float32)


def _smooth(points: ArrayLike, closed: bool = True, steps: int = 8) -> F32:
    """Catmull-Rom curve through (n, 2) points, `steps` samples a span."""
    knots = np.asarray(points, np.float32).reshape(-1, 2)
    padded = np.concatenate([knots[-1:], knots, knots[:2]] if closed else [knots[:1], knots, knots[-1:]])
    before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False, dtype=np.float32)[None, :, None]
    linear, square, cube = end - before, 2 * before - 5 * start + 4 * end - after, 3 * start - before - 3 * end + after
    curve = start[:, None] + 0.5 * (linear[:, None] * t + square[:, None] * t**2 + cube[:, None] * t**3)
    flat = curve.reshape(-1, 2)
    return (flat if closed else np.concatenate([flat, knots[-1:]])).astype(np.float32)


def _ellipse(x: float, y: float, half_width: float, half_height: float, power: float = 2.0, count: int = 36) -> F32:
    """Superellipse outline; power 2 is an ellipse, larger is boxier."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    cosine, sine = np.cos(angle), np.sin(angle)
    horizontal = np.sign(cosine) * np.abs(cosine) ** (2 / power) * half_width + x
    vertical = np.sign(sine) * np.abs(sine) ** (2 / power) * half_height + y
    return np.stack([horizontal, vertical], axis=1).astype(np.float32)


def _ribbon(path: F32, width: ArrayLike) -> F32:
    """Outline of a stroke along an (n, 2) path; `width` is a number or one for each point."""
    along = np.concatenate([path[1:], path[-1:]]) - np.concatenate([path[:1], path[:-1]])
    along /= np.hypot(along[:, :1], along[:, 1:]) + np.float32(1e-9)
    across = along[:, ::-1] * _array([-1, 1]) * np.broadcast_to(_array(width) / 2, len(path))[:, None]
    return np.concatenate([path + across, (path - across)[::-1]]).astype(np.float32)


def _noise(rng: np.random.Generator, rows: int, columns: int, blur_rows: float, blur_columns: float) -> F32:
    """Tileable smooth noise (rows, columns), mean 0 and deviation 1."""
    white = rng.standard_normal((rows, columns), np.float32)
    pad_y, pad_x = int(3 * blur_rows) + 1, int(3 * blur_columns) + 1
    wrapped = np.pad(white, ((pad_y, pad_y), (pad_x, pad_x)), mode="wrap")
    soft = cv2.GaussianBlur(wrapped, (0, 0), sigmaX=blur_columns, sigmaY=blur_rows)[pad_y:-pad_y, pad_x:-pad_x]
    return np.asarray((soft - soft.mean()) / (soft.std() + 1e-6), np.float32)


def _enlarge(field: F32, side: int) -> F32:
    return np.asarray(cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)


class _Scene:
    """One face in the making: its decisions, its canvas, and the color fields that several parts share."""

    def __init__(self, traits: _Traits, canvas: _Canvas, rng: np.random.Generator) -> None:
        self.traits = traits
        self.canvas = canvas
        self.pose = _Pose(traits)
        self.noise = _noise(rng, 64, 64, 1.0, 1.0)
        self.strands = _strand_noise(rng)
        self.outline_jitter = rng.standard_normal(160).astype(np.float32)
        self.backdrop_places = rng.random((24, 4)).astype(np.float32)
        self.skin, self.body = _skin_fields(self)
        # How bright the lamp makes each point of the face, (side, side, 1), for parts that are not skin.
        self.light = np.clip(self.skin[..., 1:2] / np.float32(traits.skin[1]), 0.4, 1.1)
        self.hair = _hair_field(self)
        self.head = canvas.shape(_head_outline(self))

    def surface_shape(
        self, points: ArrayLike, lift: float = 0.0, blur: float = 0.0, clip: _Mask | None = None
    ) -> _Mask:
        """Mask of a closed curve drawn on the face."""
        return self.canvas.shape(self.pose.surface(points, lift), blur=blur, clip=clip)

    def surface_line(self, path: ArrayLike, width: ArrayLike, blur: float = 0.0, clip: _Mask | None = None) -> _Mask:
        """Mask of a smooth stroke drawn on the face."""
        return self.canvas.shape(self.pose.surface(_ribbon(_smooth(path, closed=False), width)), blur=blur, clip=clip)


# --- shared fields -----------------------------------------------------------------------------------------------


def _skin_fields(scene: _Scene) -> tuple[F32, F32]:
    """Lit skin of the head and of neck and shoulders, each (side, side, 3): a height map seen by one soft lamp."""
    traits, pose = scene.traits, scene.pose
    x, y = pose.head_frame(_FIELD_SIDE)
    radius = np.abs(x / 0.292) ** 2.2 + np.abs((y - 0.02) / 0.43) ** 2.2
    height = 0.21 * np.sqrt(np.clip(1 - radius, 0.02, None))
    shift = pose.surface([(0.0, 0.0)]) - pose.silhouette([(0.0, 0.0)])
    lean_x, lean_y = float(shift[0, 0]), float(shift[0, 1])

    def bump(at_x: float, at_y: float, wide: float, tall: float, amount: float, lead: float = 1.0) -> F32:
        squared = ((x - at_x - lean_x * lead) / wide) ** 2 + ((y - at_y - lean_y * lead) / tall) ** 2
        return np.asarray(amount * np.exp(-squared), np.float32)

    nose_y = 0.15 * traits.nose_length
    width = traits.nose_width
    height += bump(0, nose_y * 0.4, 0.029 * width, 0.075, 0.015, 1.1)
    height += bump(0, nose_y, 0.034 * width, 0.034, 0.030, 1.2)
    height += bump(0, nose_y * 0.75, 0.032 * width, 0.045, 0.012, 1.15)
    height += bump(0, 0.245, 0.085, 0.05, 0.016) + bump(0, 0.352 + traits.chin_drop, 0.05, 0.035, 0.020)
    height -= bump(0, 0.298, 0.045, 0.016, 0.007)
    for side in (-1, 1):
        height -= bump(side * 0.107, 0.0, 0.060, 0.034, 0.016)
        height += bump(side * _EYE_X, 0.0, 0.040, 0.026, 0.008)
        height += bump(side * 0.11, -0.072, 0.075, 0.024, 0.008)
        height += bump(side * 0.145, 0.115, 0.065, 0.055, 0.008 + 0.012 * max(0.0, traits.smile))
        height += bump(side * 0.034 * width, nose_y + 0.008, 0.018, 0.018, 0.016, 1.1)
        height -= bump(side * 0.105, 0.205, 0.03, 0.05, 0.005)
    light = _lamp(height, traits)
    lit = traits.ambient + (1.03 - traits.ambient) * light.diffuse
    lit = lit + traits.rim * light.edge
    tone = _array(traits.skin)
    # Shadows of skin are redder than its lights: blood scatters red light farthest.
    skin = tone * lit[..., None] ** _array([0.9, 1.1, 1.2])
    skin = skin + (traits.gloss * light.glint * (0.6 + 0.4 * tone.mean()))[..., None] * _array([1, 0.95, 0.9])
    red = sum(bump(side * 0.155, 0.125, 0.07, 0.06, 0.16 * traits.blush) for side in (-1, 1))
    red = red + bump(0, nose_y, 0.04, 0.03, 0.05)
    mottle = _enlarge(scene.noise, _FIELD_SIDE) * 0.008
    skin = skin * (1 + mottle[..., None] - np.asarray(red)[..., None] * _array([0.05, 0.75, 0.6]))
    tube = 0.10 * np.exp(-((x / 0.17) ** 2)) + 0.06 * np.exp(-((x / 0.45) ** 2))
    neck_light = traits.ambient + (1.0 - traits.ambient) * _lamp(tube, traits).diffuse
    body = tone * neck_light[..., None] ** _array([0.9, 1.1, 1.2]) * 0.95
    if traits.freckles:
        speck = np.clip(np.tile(scene.noise, (3, 3))[:_FIELD_SIDE, :_FIELD_SIDE] - 1.5, 0, 1) * traits.freckles
        zone = sum(bump(side * 0.11, 0.09, 0.10, 0.06, 0.5) for side in (-1, 1))
        skin = skin * (1 - (speck * zone)[..., None] * _array([0.3, 0.6, 0.75]))
    side_px = scene.canvas.side
    return _enlarge(skin.astype(np.float32), side_px), _enlarge(body.astype(np.float32), side_px)


@dataclass(frozen=True, slots=True)
class _Lamp:
    """What the lamp does at each point of a height map: each (n, n) float32, about 0..1."""

    diffuse: F32
    glint: F32
    edge: F32


def _lamp(height: F32, traits: _Traits) -> _Lamp:
    """Light a height map (n, n) whose unit, like its grid's, is the image's side."""
    down, right = np.gradient(height * _FIELD_SIDE)
    length = np.sqrt(1 + down**2 + right**2)
    lamp = _array(traits.light)
    lamp = lamp / np.linalg.norm(lamp)
    facing = (-right * lamp[0] - down * lamp[1] + lamp[2]) / length
    diffuse = np.clip((facing + 0.35) / 1.35, 0, 1)
    half = lamp + _array([0, 0, 1])
    half = half / np.linalg.norm(half)
    glint = np.clip((-right * half[0] - down * half[1] + half[2]) / length, 0, 1) ** 22
    edge = np.clip(1 - 1 / length, 0, 1) ** 2 * np.clip(0.5 - np.sign(lamp[0]) * -right / length, 0, 1)
    return _Lamp(diffuse.astype(np.float32), glint.astype(np.float32), edge.astype(np.float32))


def _strand_noise(rng: np.random.Generator) -> F32:
    """Tileable texture (32, 512): long along the rows' axis, fine along the columns'."""
    coarse, middle, fine = (_noise(rng, 32, 512, 3.5, width) for width in (9.0, 3.0, 1.0))
    return np.asarray(0.6 * coarse + 0.55 * middle + 0.5 * fine, np.float32)


def _hair_field(scene: _Scene) -> F32:
    """Color of hair wherever it may lie, (side, side, 3): strands that follow the style's flow, gloss and light."""
    traits, side = scene.traits, scene.canvas.side
    x, y = scene.pose.head_frame(side)
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
    strands = cv2.remap(
        scene.strands, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    dome = 0.24 * np.sqrt(np.clip(1 - (x / 0.42) ** 2 - (np.minimum(y, 0.0) / 0.52) ** 2, 0.05, None))
    grid = cv2.resize(dome.astype(np.float32), (_FIELD_SIDE, _FIELD_SIDE), interpolation=cv2.INTER_AREA)
    lamp = _lamp(np.asarray(grid, np.float32), traits)
    lit = _enlarge(lamp.diffuse * (1.1 - traits.ambient * 0.7) + traits.ambient * 0.7, side)
    band = np.exp(-(((np.hypot(x - traits.light[0] * 0.1, y + 0.02) - 0.31) / 0.05) ** 2))
    band = band * np.clip(0.8 - 4 * y, 0, 1)
    base = _array(traits.hair_color)
    depth = np.clip(0.86 + 0.24 * traits.hair_contrast * strands, 0.25, 1.7) * lit
    gloss = (band * np.clip(0.5 + 0.6 * strands, 0, 2) * 0.13 * traits.hair_contrast)[..., None]
    return np.asarray(base * depth[..., None] + gloss * (0.5 * base + 0.4), np.float32)


# --- parts, back to front ----------------------------------------------------------------------------------------


def _paint_backdrop(scene: _Scene) -> None:
    """Fill the background: a gradient, then blurred blobs, bokeh discs or out-of-focus panels."""
    traits = scene.traits
    first, second, third = (_array(color) for color in traits.backdrop_colors)
    small = np.linspace(0, 1, _FIELD_SIDE, dtype=np.float32)
    slope = scene.backdrop_places[0, 0] * small[:, None] + (1 - scene.backdrop_places[0, 0]) * small[None, :]
    field = np.ascontiguousarray(first + slope[..., None] * (0.45 * (second - first)))
    for order, (x, y, extent, choice) in enumerate(scene.backdrop_places.tolist()):
        color = ((1 - choice) * second + choice * third).tolist()
        center = (int(x * _FIELD_SIDE), int(y * _FIELD_SIDE))
        if traits.backdrop == "blobs" and order < 9:
            cv2.circle(field, center, int((0.08 + 0.2 * extent) * _FIELD_SIDE), color, -1)
        elif traits.backdrop == "bokeh":
            disc = field.copy()
            bright = [min(1.0, channel * 0.6 + 0.5) for channel in color]
            cv2.circle(disc, center, int((0.02 + 0.05 * extent) * _FIELD_SIDE), bright, -1, cv2.LINE_AA)
            field += 0.5 * (disc - field)
        elif traits.backdrop == "panels" and order < 6:
            corner = (center[0] + int((0.1 + 0.3 * extent) * _FIELD_SIDE), center[1] + _FIELD_SIDE)
            cv2.rectangle(field, center, corner, color, -1)
    sigma = {"gradient": 1.0, "blobs": 14.0, "bokeh": 1.2, "panels": 2.0}[traits.backdrop]
    scene.canvas.image[:] = _enlarge(np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32), scene.canvas.side)


def _hair_outer(scene: _Scene) -> F32:
    """Outer edge of the hair from the image's left end over the top to the right, (n, 2) in head coordinates."""
    traits = scene.traits
    volume, cheek = traits.hair_volume, traits.cheek_width
    across = [0, 0.155 + 0.5 * volume, 0.242 + volume, 0.272 * cheek + volume]
    down = [-0.37 - volume, -0.335 - 0.85 * volume, -0.21 - 0.3 * volume, -0.05]
    end = traits.hair_length
    if end:
        flare = volume + (0.03 if traits.hair_style == "curly" else 0.012)
        across += [0.28 + flare, 0.275 + flare, 0.25 + volume, 0.21 + 0.5 * volume]
        down += [0.35 * end, 0.72 * end, end, end + 0.025]
    else:
        across.append(0.274 * cheek + 0.3 * volume)
        down.append(0.02)
    left = (_knots(across, down) * _array([-1, 1]))[::-1]
    curve = _smooth(_both(left), closed=False, steps=9 if traits.hair_style == "curly" else 4)
    rough = 0.024 if traits.hair_style == "curly" else 0.006 + 0.008 * traits.hair_wave
    uneven = curve * (1 + rough * scene.outline_jitter[: len(curve), None])
    return _smooth(uneven, closed=False, steps=4)


def _paint_hair_back(scene: _Scene) -> None:
    """Hair behind the neck and, for a bun, above the head."""
    traits = scene.traits
    if traits.hair_style == "bun":
        outline = scene.pose.silhouette(_ellipse(0.0, -0.42, 0.095, 0.085))
        bun = scene.canvas.shape(outline)
        scene.canvas.paint(bun, scene.hair, "hair")
        scene.canvas.shade(scene.canvas.shape(_ribbon(outline, 0.03), blur=0.015, clip=bun), 0.6)
    if traits.hair_style != "bald":
        # Short hair needs its back too: a turned head would show the background between hair and temple.
        mask = scene.canvas.shape(scene.pose.silhouette(_hair_outer(scene)))
        scene.canvas.paint(mask, scene.hair * 0.62, "hair")


def _paint_body(scene: _Scene) -> None:
    """Neck and shoulders, then clothing over them, then the head's shadow."""
    traits, canvas, pose = scene.traits, scene.canvas, scene.pose
    neck = traits.neck_width
    half = [(neck, 0.1), (neck, 0.3), (neck + 0.01, 0.395), (neck + 0.07, 0.45), (0.36, 0.50), (0.52, 0.58), (0.6, 0.9)]
    right = _array(half)
    canvas.paint(canvas.shape(pose.silhouette(_mirror(right))), scene.body, "neck")
    for side in (-1, 1):
        tendon = _ribbon(_smooth([(side * neck * 0.85, 0.34), (side * 0.07, 0.45), (side * 0.03, 0.54)], False), 0.02)
        canvas.shade(canvas.shape(pose.silhouette(tendon), blur=0.012), 0.22, only=("neck",))
    edge, dip = {"round": (0.10, 0.50), "vee": (0.09, 0.62), "crew": (0.03, 0.455), "jacket": (0.04, 0.60)}.get(
        traits.cloth_style, (0.24, 0.53)
    )
    start = neck + edge
    top = float(np.interp(start, right[1:, 0], right[1:, 1])) - 0.008
    belly = 0.5 if traits.cloth_style in ("vee", "jacket") else 0.82
    opening = [(0.0, dip), (0.5 * start, top + belly * (dip - top)), (start, top)]
    outer = [(x + 0.004, y - 0.012) for x, y in half if x > start + 0.03]
    cloth = _array([*opening, *outer, (0.62, 1.0)])
    folds = 1 + 0.54 * _enlarge(_array(cv2.GaussianBlur(scene.noise, (0, 0), 3.0)), canvas.side)
    shading = (folds * np.clip(scene.body[..., 1] / traits.skin[1], 0, 1.2))[..., None]
    if traits.cloth_style == "jacket":
        inner = _array([(0.0, dip - 0.1), (0.08, 0.47), (neck + 0.02, 0.40), (0.3, 0.6), (0.3, 1.0)])
        canvas.paint(canvas.shape(pose.silhouette(_mirror(inner))), _array(traits.cloth_second) * shading, "cloth")
    mask = canvas.shape(pose.silhouette(_mirror(cloth, steps=1 if traits.cloth_style in ("vee", "jacket") else 6)))
    canvas.paint(mask, _array(traits.cloth_color) * shading, "cloth")
    for side in (-1, 1):
        seam = _smooth(_array(opening) * (side, 1) + (0, 0.012), closed=False)
        canvas.shade(canvas.shape(pose.silhouette(_ribbon(seam, 0.006)), blur=0.002), 0.4, only=("cloth",))
    # Narrowed about the image's middle and moved down, away from the lamp.
    shadow = _head_outline(scene) * _array([0.94, 1]) + _array([0.03 - 0.08 * traits.light[0], 0.055])
    canvas.shade(canvas.shape(shadow, blur=0.016), 0.5, only=("neck",))
    canvas.shade(canvas.shape(shadow, blur=0.03), 0.35, only=("cloth", "hair"))


def _mirror(right: F32, steps: int = 8) -> F32:
    """Closed symmetrical curve from its right half (n, 2), top first; `steps` 1 keeps the corners."""
    left = (right * _array([-1, 1]))[::-1]
    return np.concatenate([_smooth(part, closed=False, steps=steps) for part in (right, left)])


def _head_outline(scene: _Scene) -> F32:
    """Outline of skull, cheeks and chin, (n, 2) image coordinates."""
    traits = scene.traits
    cheek, jaw, chin, drop = traits.cheek_width, traits.jaw_width, traits.chin_width, traits.chin_drop
    across = [0, 0.15, 0.235, 0.262 * cheek, 0.255 * cheek, 0.1135 * (cheek + jaw), 0.185 * jaw]
    across += [0.06 * (jaw + chin), 0.058 * chin, 0]
    down = [-0.37, -0.335, -0.22, -0.06, 0.07, 0.19, 0.28, 0.36 + 0.7 * drop, 0.394 + drop, 0.401 + drop]
    return scene.pose.silhouette(_smooth(_both(_knots(across, down))))


def _paint_ears(scene: _Scene) -> None:
    """Both ears, behind the head; the one a turned head shows more stands out more."""
    traits, canvas, pose = scene.traits, scene.canvas, scene.pose
    for side in (-1, 1):
        out = 0.262 * traits.cheek_width - 0.03 * max(0.0, side * float(np.sin(traits.yaw)))
        size = traits.ear_size
        points = [(-0.01, -0.045), (0.018, -0.055), (0.036, -0.035), (0.034, 0.005), (0.022, 0.045), (0.004, 0.075)]
        ear = _array([(side * (out + dx * size), 0.045 + dy * size) for dx, dy in [*points, (-0.02, 0.05)]])
        mask = canvas.shape(pose.silhouette(_smooth(ear)))
        canvas.paint(mask, scene.body * _array([0.95, 0.855, 0.83]), "l_ear" if side > 0 else "r_ear")
        inner = _array([(side * (out + dx * size), 0.042 + dy * size) for dx, dy in points[1:-1]])
        inner = (inner - inner.mean(axis=0)) * 0.55 + inner.mean(axis=0) - _array([side * 0.004, 0])
        canvas.shade(canvas.shape(pose.silhouette(_ribbon(_smooth(inner, False), 0.007)), blur=0.003, clip=mask), 0.5)


def _paint_head(scene: _Scene) -> None:
    """The face's skin, with soft occlusion along its edge, folds from nose to mouth and shadows of brows and hair."""
    traits, canvas = scene.traits, scene.canvas
    canvas.paint(scene.head, scene.skin, "skin")
    outline = _head_outline(scene)
    canvas.shade(canvas.shape(_ribbon(outline, 0.02), blur=0.014, clip=scene.head), 0.24)
    if traits.hair_style == "bald":
        scalp = _smooth(_both(_knots([0, 0.13, 0.21, 0.25, 0.3, 0.3], [-0.27, -0.245, -0.14, 0, 0, -0.5])))
        mask = scene.surface_shape(scalp, blur=0.02, clip=scene.head)
        canvas.paint(mask, scene.skin * 0.5 + _array(traits.hair_color) * 0.4, opacity=0.3 * traits.beard_strength)
    for side in (-1, 1):
        bend = 0.012 * traits.smile
        fold = [(side * 0.043, 0.145), (side * (0.075 + bend), 0.19), (side * (0.096 + 2 * bend), 0.235 - bend)]
        canvas.shade(scene.surface_line(fold, 0.010, blur=0.006), 0.10 + 0.30 * max(0.0, traits.smile))
        below = [(side * 0.068, 0.026), (side * 0.103, 0.042), (side * 0.147, 0.036)]
        canvas.shade(scene.surface_line(below, 0.010, blur=0.006), 0.16)
    canvas.shade(scene.surface_shape(_ellipse(0, 0.292 + traits.mouth_drop, 0.045, 0.008), blur=0.008), 0.22)


def _paint_beard(scene: _Scene) -> None:
    """Facial hair; it stays skin in the labels, as in CelebAMask-HQ."""
    traits, canvas = scene.traits, scene.canvas
    if traits.beard == "none":
        return
    mouth = 0.245 + traits.mouth_drop
    moustache = _knots([0, 0.05, 0.1, 0.085, 0], mouth + _array([-0.052, -0.042, 0.01, 0.03, -0.012]))
    goatee = _knots(
        [0, 0.06, 0.098, 0.105, 0.07, 0], [mouth + 0.045, mouth + 0.03, mouth - 0.01, mouth + 0.06, 0.40, 0.43]
    )
    cheeks = _knots(
        [0, 0.06, 0.10, 0.16, 0.235, 0.262, 0.32, 0.22, 0],
        [mouth + 0.04, mouth + 0.03, mouth - 0.005, 0.20, 0.13, 0.04, 0.2, 0.4, 0.48],
    )
    areas = {"moustache": (moustache,), "goatee": (moustache, goatee)}.get(traits.beard, (moustache, cheeks))
    opacity = (0.34 if traits.beard == "stubble" else 0.8) * traits.beard_strength
    bristle = 0.85 + 0.22 * _enlarge(np.tile(scene.noise, (4, 4)), canvas.side)
    field = _array(traits.hair_color) * 0.8 * bristle[..., None] + 0.18 * scene.skin
    for area in areas:
        mask = scene.surface_shape(_smooth(_both(area)), blur=0.012, clip=scene.head)
        canvas.paint(mask, field, opacity=opacity)


def _paint_nose(scene: _Scene) -> None:
    """The nose: its light is part of the skin field; here come its label, nostrils, wings and shadow."""
    traits, canvas = scene.traits, scene.canvas
    width, base = traits.nose_width, 0.165 * traits.nose_length
    cast = _ellipse(-0.03 * traits.light[0], base + 0.014, 0.035 * width, 0.011)
    canvas.shade(scene.surface_shape(cast, lift=0.015, blur=0.007), 0.34)
    across = width * _array([0, 0.015, 0.015, 0.026, 0.046, 0.047, 0.03, 0])
    down = [-0.02, -0.012, 0.05, 0.105, base - 0.025, base - 0.004, base + 0.006, base + 0.012]
    outline = scene.pose.surface(_smooth(_both(_knots(across, down))), 0.02)
    mask = canvas.shape(outline)
    canvas.paint(mask, scene.skin, "nose", opacity=0.0)  # a nose has no painted edge

    canvas.shade(canvas.shape(_lower_part(outline), blur=0.006, clip=mask), 0.16)
    for side in (-1, 1):
        wing = _knots(side * width * _array([0.040, 0.049, 0.040]), base + _array([-0.036, -0.016, 0]))
        path = scene.pose.surface(_ribbon(_smooth(wing, False), 0.006), 0.02)
        canvas.shade(canvas.shape(path, blur=0.003), 0.42)
        hole = scene.pose.surface(_ellipse(side * 0.021 * width, base - 0.001, 0.0125 * width, 0.0052), 0.024)
        canvas.shade(canvas.shape(hole, blur=0.003), 0.72)
        bridge = [(side * 0.03, -0.035), (side * 0.021, 0.0), (side * 0.022, 0.06)]
        canvas.shade(scene.surface_line(bridge, 0.012, blur=0.008), 0.06 + 0.12 * max(0.0, -side * traits.light[0]))


def _lower_part(outline: F32) -> F32:
    """The lowest tenth or so of a closed curve, as a closed curve."""
    limit = float(outline[:, 1].min() + 0.9 * np.ptp(outline[:, 1]))
    return np.stack([outline[:, 0], np.maximum(outline[:, 1], limit)], axis=1).astype(np.float32)


def _paint_mouth(scene: _Scene) -> None:
    """Lips, and between parted lips the teeth."""
    traits, canvas = scene.traits, scene.canvas
    middle = 0.245 + traits.mouth_drop
    smile, gap = traits.smile, 0.036 * traits.mouth_open
    half = traits.mouth_width * (1 + 0.2 * max(0.0, smile))
    corner = middle - 0.016 * smile
    full = traits.lip_fullness * (1 - 0.25 * max(0.0, smile))

    def curve(x: Sequence[float], y: Sequence[float]) -> F32:
        # From the corner at the image's left over the middle to the other corner; y is measured from the closed lips.
        return _smooth(
            _both(_knots([-half, *(half * value for value in x)], [corner, *(middle + v for v in y)])), False
        )

    bow = curve([-0.55, -0.2, 0], [-0.012 * full - 0.3 * gap, -0.023 * full - 0.3 * gap, -0.018 * full - 0.3 * gap])
    upper_in = curve([-0.5, 0], [-0.25 * gap, 0.002 - 0.3 * gap])
    lower_in = curve([-0.5, 0], [0.55 * gap, 0.002 + 0.75 * gap])
    under = curve([-0.6, 0], [0.018 * full + 0.55 * gap, 0.034 * full + 0.75 * gap])
    lip = _array(traits.lip_color)
    canvas.shade(scene.surface_shape(np.concatenate([bow, under[::-1]]), lift=0.01, blur=0.005), 0.22)
    upper = scene.surface_shape(np.concatenate([bow, upper_in[::-1]]), lift=0.01)
    lower = scene.surface_shape(np.concatenate([lower_in, under[::-1]]), lift=0.01)
    if traits.mouth_open:
        inside = scene.surface_shape(np.concatenate([upper_in, lower_in[::-1]]), lift=0.01)
        canvas.paint(inside, _array([0.20, 0.06, 0.06]), "mouth")
        teeth = _ellipse(0.0, middle - 0.012, half * 0.80, 0.012 + 0.66 * gap, 2.6)
        mask = scene.surface_shape(teeth, lift=0.005, blur=0.0015, clip=inside)
        canvas.paint(mask, _array([0.90, 0.87, 0.81]), opacity=0.95, light=scene.light)
        gaps = [
            _ribbon(_array([(place * half, middle - 0.02), (place * half * 0.98, middle + 0.02)]), 0.0025)
            for place in (-0.62, -0.44, -0.22, 0.0, 0.22, 0.44, 0.62)
        ]
        lines = [scene.pose.surface(gap, 0.005) for gap in gaps]
        canvas.shade(canvas.shape(*lines, blur=0.001, clip=inside), 0.16)
        shadow = scene.pose.surface(_ribbon(upper_in, 0.008), 0.01)
        canvas.shade(canvas.shape(shadow, blur=0.003, clip=inside), 0.45)
    canvas.paint(upper, lip * 0.86, "u_lip", light=scene.light)
    canvas.paint(lower, lip, "l_lip", light=scene.light)
    shine = _ellipse(0.012 * traits.light[0], middle + 0.016 * full + 0.65 * gap, 0.4 * half, 0.0045)
    shine_mask = scene.surface_shape(shine, 0.01, 0.005)
    canvas.paint(shine_mask, _array([1, 0.9, 0.88]), opacity=0.15 + 0.6 * traits.gloss, only=("l_lip",))
    edge = scene.pose.surface(_ribbon(under, 0.006), 0.01)
    canvas.shade(canvas.shape(edge, blur=0.003, clip=lower), 0.25)
    if not traits.mouth_open:
        seam = scene.pose.surface(_ribbon(upper_in, 0.0055), 0.01)
        canvas.shade(canvas.shape(seam, blur=0.0012), 0.75)
    for side in (-1, 1):
        dimple = _ellipse(side * half, corner, 0.006, 0.005)
        canvas.shade(scene.surface_shape(dimple, 0.01, blur=0.004), 0.5)


def _paint_eye(scene: _Scene, side: int) -> None:
    """One eye: lids, white, iris, pupil, catchlight and lashes; `side` is 1 at the image's right."""
    traits, canvas = scene.traits, scene.canvas
    wide, tall = traits.eye_width, 0.0225 * traits.eye_open * (1 - 0.15 * max(0.0, traits.smile))
    tilt = traits.eye_tilt

    def at(points: Sequence[tuple[float, float]]) -> F32:
        # Eye coordinates run from the inner corner (-1) to the outer (+1); y is in half heights.
        return _array([(side * (_EYE_X + wide * u), tall * v - tilt * u) for u, v in points])

    upper = at([(-1, 0.25), (-0.72, -0.45), (-0.3, -0.98), (0.15, -1.05), (0.62, -0.68), (1, 0.05)])
    lower = at([(-1, 0.25), (-0.6, 0.55), (-0.05, 0.85), (0.5, 0.72), (1, 0.05)])
    upper_c, lower_c = _smooth(upper, False), _smooth(lower, False)
    crease = at([(-0.9, -0.5), (-0.4, -1.55), (0.2, -1.75), (0.75, -1.3), (1.12, -0.55)])
    crease_c = _smooth(crease, False)
    lid = scene.surface_shape(np.concatenate([crease_c, upper_c[::-1]]), blur=0.006)
    canvas.paint(lid, traits.eyeshadow, opacity=traits.eyeshadow_strength)
    canvas.shade(lid, 0.12)
    canvas.shade(canvas.shape(scene.pose.surface(_ribbon(crease_c, 0.005)), blur=0.002), 0.42)
    canvas.shade(scene.surface_line(at([(-1.3, -0.3), (-1.1, 0.2), (-0.95, 0.5)]), 0.012, blur=0.006), 0.28)
    almond = scene.surface_shape(np.concatenate([upper_c, lower_c[::-1]]))
    lit = scene.light
    canvas.paint(almond, _array([0.87, 0.85, 0.84]), "l_eye" if side > 0 else "r_eye", light=lit)
    corner = scene.surface_shape(_ellipse(side * (_EYE_X - wide * 0.93), 0.2 * tall, 0.007, 0.007), 0, 0.002, almond)
    canvas.paint(corner, _array([0.72, 0.42, 0.38]), opacity=0.8, light=lit)
    # Both eyes look the same way, so the gaze does not follow `side`; a turned head mostly looks at the camera.
    gaze_x = side * _EYE_X + (traits.gaze[0] - 0.5 * float(np.sin(traits.yaw))) * 0.4 * wide
    gaze_y = traits.gaze[1] * tall - 0.08 * tall
    radius = 0.0225
    iris = _array(traits.iris)
    disc = scene.surface_shape(_ellipse(gaze_x, gaze_y, radius, radius), 0, 0.0008, almond)
    canvas.paint(disc, iris * 0.45, light=lit)
    inner = scene.surface_shape(_ellipse(gaze_x, gaze_y, radius * 0.86, radius * 0.86), 0, 0.002, almond)
    canvas.paint(inner, iris, light=lit)
    glow = scene.surface_shape(_ellipse(gaze_x, gaze_y + radius * 0.4, radius * 0.55, radius * 0.35), 0, 0.004, almond)
    canvas.paint(glow, np.clip(iris * 1.7 + 0.05, 0, 1), opacity=0.7, light=lit)
    pupil = scene.surface_shape(_ellipse(gaze_x, gaze_y, radius * 0.42, radius * 0.42), 0, 0.001, almond)
    canvas.paint(pupil, _array([0.03, 0.025, 0.025]))
    shadow = scene.pose.surface(_ribbon(upper_c + _array([0, 0.003]), 0.013))
    canvas.shade(canvas.shape(shadow, blur=0.004, clip=almond), 0.55)
    spot_x, spot_y = gaze_x + 0.008 * np.clip(2 * traits.light[0], -1, 1) + 0.001, gaze_y - 0.007
    spot = scene.surface_shape(_ellipse(spot_x, spot_y, 0.0042, 0.0042), 0, 0.0008, almond)
    canvas.paint(spot, _array([1, 1, 1]), opacity=0.95)
    lash_color = _array(traits.hair_color) * 0.25
    taper = np.interp(np.linspace(0, 1, len(upper_c)), (0, 0.25, 0.8, 1), (0.002, 0.005, 0.0075, 0.003))
    line = canvas.shape(scene.pose.surface(_ribbon(upper_c, taper * (0.65 + 0.6 * traits.lash))), blur=0.0008)
    canvas.paint(line, lash_color, opacity=0.65 + 0.3 * traits.lash)
    canvas.shade(canvas.shape(scene.pose.surface(_ribbon(lower_c, 0.004)), blur=0.0012), 0.3 + 0.4 * traits.lash)
    if traits.lash > 0.5:
        place = np.linspace(0.25, 1.0, 11, dtype=np.float32)
        roots = upper_c[(place * (len(upper_c) - 1)).astype(int)]
        reach = _knots(side * 0.014 * (place - 0.35), -0.011 - 0.004 * place) * np.float32(traits.lash)
        lashes = canvas.shape(*_hairs(scene, roots, reach, 0.004))
        canvas.paint(lashes, lash_color, opacity=0.5)


def _hairs(scene: _Scene, roots: F32, reach: F32, width: float) -> list[F32]:
    """Outlines of short tapering hairs on the face from (n, 2) roots, each `reach` (n, 2) long."""
    half = _array([width / 2, 0])
    corners = np.stack([roots - half, roots + half, roots + reach], axis=1)
    return list(scene.pose.surface(corners).reshape(-1, 3, 2))


def _paint_brow(scene: _Scene, side: int) -> None:
    """One eyebrow with its hairs; `side` is 1 at the image's right."""
    traits, canvas = scene.traits, scene.canvas
    height, arch, thick = traits.brow_height, traits.brow_arch, traits.brow_thickness
    path = [(0.045, -height + 0.006), (0.08, -height - 0.3 * arch), (0.128, -height - arch), (0.185, -height + 0.014)]
    spine = _smooth(_array(path) * _array([side, 1]), closed=False, steps=10)
    width = np.interp(np.linspace(0, 1, len(spine)), (0, 0.12, 0.55, 1), (0.6, 1.15, 1.0, 0.15)) * thick * 1.25
    outline = scene.pose.surface(_ribbon(spine, width))
    canvas.paint(canvas.shape(outline, clip=scene.head), 0, "l_brow" if side > 0 else "r_brow", opacity=0.0)
    color = _array(traits.hair_color) * 0.72 + 0.06 * _array(traits.skin)
    canvas.paint(canvas.shape(outline, blur=0.0032, clip=scene.head), color, opacity=0.72 * traits.brow_strength)
    order = np.arange(1, len(spine) - 2)
    roots = spine[order] + np.stack([0 * order, 0.4 * width[order]], axis=1).astype(np.float32)
    reach = np.stack([0 * order + side * 0.010, -0.011 + 0.015 * order / len(spine)], axis=1).astype(np.float32)
    canvas.paint(
        canvas.shape(*_hairs(scene, roots, reach, 0.004), clip=scene.head),
        color * 0.75,
        opacity=0.4 * traits.brow_strength,
    )


def _paint_glasses(scene: _Scene) -> None:
    """Lenses, rims, bridge and temples."""
    traits, canvas = scene.traits, scene.canvas
    if traits.glasses == "none":
        return
    frame = _array(traits.glasses_color)
    dark = traits.glasses == "dark"
    half_width, half_height = (0.090, 0.066) if dark else (0.085, 0.058)
    eyes = np.isin(canvas.labels, (_CLASS["l_eye"], _CLASS["r_eye"]))
    eye_labels = canvas.labels[eyes]
    for side in (-1, 1):
        outline = _ellipse(side * _EYE_X, 0.008, half_width, half_height, traits.glasses_roundness)
        rim = scene.pose.surface(outline, 0.03)
        canvas.shade(canvas.shape(rim + _array([0, 0.012]), blur=0.008), 0.16)
        lens = canvas.shape(rim)
        if dark:
            slope = np.linspace(0.0, 0.16, canvas.side, dtype=np.float32)[:, None, None] + 0.03 + 0.15 * frame
            canvas.paint(lens, np.broadcast_to(slope, (canvas.side, canvas.side, 3)), "eye_g", opacity=0.95)
        else:
            canvas.paint(lens, _array([0.85, 0.9, 0.95]), "eye_g", opacity=0.06)
        streak = _array([(-0.06, 0.05), (-0.025, 0.05), (0.03, -0.05), (-0.005, -0.05)]) + (side * _EYE_X, 0.0)
        glare = scene.surface_shape(streak, 0.03, 0.006, lens)
        canvas.paint(glare, _array([1, 1, 1]), opacity=0.12 if dark else 0.10)
        ring = _ribbon(np.concatenate([rim, rim[:2]]), 0.011 if dark else 0.008)
        canvas.paint(canvas.shape(ring), frame, "eye_g")
        light_edge = _ribbon(np.concatenate([rim, rim[:2]])[18:] - _array([0, 0.001]), 0.002)
        canvas.paint(canvas.shape(light_edge, blur=0.001), frame + 0.35, opacity=0.5)
        temple = _array([(side * (0.112 + half_width * 0.97), -0.02), (side * 0.268, -0.012)])
        arm = canvas.shape(scene.pose.surface(_ribbon(temple, 0.010), 0.01))
        canvas.paint(arm, frame * 0.8, "eye_g", only=("skin",))
    bridge = _smooth([(-0.028, 0.0), (0.0, -0.012), (0.028, 0.0)], closed=False)
    canvas.paint(canvas.shape(scene.pose.surface(_ribbon(bridge, 0.009), 0.03)), frame, "eye_g")
    if not dark:
        canvas.labels[eyes] = eye_labels


def _paint_necklace(scene: _Scene) -> None:
    """A chain around the neck, perhaps with a pendant."""
    traits, canvas = scene.traits, scene.canvas
    if not traits.necklace:
        return
    neck = traits.neck_width + 0.03
    path = _smooth([(-neck, 0.405), (-0.7 * neck, 0.462), (0.0, 0.485), (0.7 * neck, 0.462), (neck, 0.405)], False, 12)
    chain = scene.pose.silhouette(path)
    canvas.shade(canvas.shape(_ribbon(chain + _array([0, 0.006]), 0.013), blur=0.003), 0.4)
    canvas.paint(canvas.shape(_ribbon(chain, 0.015)), _array(traits.metal) * 0.72, "neck_l", only=("neck", "cloth"))
    beads = [(x, y, 0.007) for x, y in chain[1::2].tolist()]
    if traits.pendant:
        low = chain[len(chain) // 2]
        beads.append((float(low[0]), float(low[1]) + 0.02, 0.02))
    balls = [_ellipse(x, y, radius, radius, count=14) for x, y, radius in beads]
    canvas.paint(canvas.shape(*balls), _array(traits.metal), "neck_l", only=("neck", "cloth", "neck_l"))
    glints = [_ellipse(x - 0.3 * r, y - 0.3 * r, 0.35 * r, 0.35 * r, count=10) for x, y, r in beads]
    canvas.paint(canvas.shape(*glints, blur=0.001), (1.0, 1.0, 0.97), opacity=0.8, only=("neck_l",))


def _hairline_points(traits: _Traits) -> F32:
    """Lower edge of the hair over the forehead from the image's right temple to its left, (n, 2) head coordinates."""
    if traits.hairline == "fringe":
        return _both(_knots([0.222, 0.19, 0.10, 0], [-0.03, -0.085, -0.108, -0.112]))
    if traits.hairline == "center":
        return _both(_knots([0.226, 0.195, 0.115, 0.03, 0], [-0.02, -0.12, -0.205, -0.258, -0.285]))
    if traits.hairline == "side":
        part = abs(traits.hair_part)
        across = [0.226, 0.205, part + 0.06, part, part - 0.06, -0.08, -0.175, -0.222]
        points = _knots(across, [-0.02, -0.12, -0.225, -0.275, -0.245, -0.195, -0.135, -0.03])
        return points if traits.hair_part > 0 else (points * _array([-1, 1]))[::-1]
    return _both(_knots([0.236, 0.228, 0.205, 0.15, 0.07, 0], [-0.01, -0.09, -0.165, -0.225, -0.24, -0.242]))


def _paint_hair_front(scene: _Scene) -> None:
    """Hair over the forehead and beside the face, with its shadow on the skin."""
    traits, canvas, pose = scene.traits, scene.canvas, scene.pose
    if traits.hair_style == "bald":
        return
    outer = _hair_outer(scene)
    line = _smooth(_hairline_points(traits), closed=False, steps=6)
    line[:, 1] += scene.outline_jitter[-len(line) :] * (0.009 if traits.hairline == "fringe" else 0.005)
    line = _smooth(line, closed=False, steps=4)
    inner = _knots([0.245], [0.045])
    end = traits.hair_length
    if end:
        inner = _smooth(
            _knots([0.2, 0.235, 0.243, 0.236], [end, min(0.36, 0.8 * end), min(0.2, 0.5 * end), 0.07]), False
        )
    left = (inner * _array([-1, 1]))[::-1]
    opening = np.concatenate([pose.silhouette(inner), pose.surface(line, 0.012), pose.silhouette(left)])
    outline = np.concatenate([pose.silhouette(outer), opening])
    drop = _array([-0.012 * traits.light[0], 0.014])
    canvas.shade(canvas.shape(outline + drop, blur=0.012, clip=scene.head), 0.38)
    canvas.paint(canvas.shape(outline), scene.hair, "hair")
    canvas.shade(canvas.shape(_ribbon(opening, 0.012), blur=0.008), 0.25, only=("hair",))


def _paint_hat(scene: _Scene) -> None:
    """A knitted hat, a brimmed hat or a cap, with its shadow on the forehead."""
    traits, canvas, pose = scene.traits, scene.canvas, scene.pose
    if traits.hat == "none":
        return
    x, y = pose.head_frame(canvas.side)
    round_light = np.clip(1.05 - 1.6 * (x - 0.12 * traits.light[0]) ** 2 / 0.12, 0.4, 1.1)
    color = _array(traits.hat_color)
    if traits.hat == "beanie":
        rib = 1 + 0.14 * np.sin(x / np.sqrt(np.clip(1 - (y / 0.8) ** 2, 0.3, 1)) * 190)
        field = color * (round_light * rib)[..., None]
        crown = _knots([0.29, 0.305, 0.24, 0.11, 0], [-0.12, -0.25, -0.40, -0.475, -0.485])
        low = _knots([0.29, 0.16, 0], [-0.10, -0.165, -0.185])
        fold = _knots([0.30, 0.31, 0.17, 0], [-0.11, -0.20, -0.262, -0.28])
        parts = [(crown, low, 1.0), (fold, low, 0.82)]
    else:
        weave = 1 + 0.04 * np.sin(x * 300) * np.sin(y * 300)
        field = color * (round_light * weave)[..., None]
        crown = _knots([0.285, 0.29, 0.235, 0.10, 0], [-0.16, -0.27, -0.41, -0.475, -0.46])
        low = _knots([0.285, 0.15, 0], [-0.14, -0.18, -0.19])
        wide, deep = (0.47, 0.055) if traits.hat == "brim" else (0.27, 0.062)
        brim = _knots(wide * _array([1, 0.82, 0.4, 0]), [-0.20, -0.235, -0.245, -0.25])
        edge_y = [-0.195, -0.19 + deep * 0.5, -0.185 + deep * 0.9, -0.19 + deep]
        edge = _knots(wide * _array([1, 0.85, 0.45, 0]), edge_y)
        band = _knots([0.288, 0.29, 0.15, 0], [-0.2, -0.25, -0.285, -0.295])
        parts = [(crown, low, 1.0), (band, low, 0.45 if traits.hat == "brim" else 1.0), (brim, edge, 0.85)]
    shadow = pose.silhouette(_hat_outline(*parts[-1][:2])) + _array([-0.015 * traits.light[0], 0.03])
    canvas.shade(canvas.shape(shadow, blur=0.015), 0.5, only=("skin", "l_brow", "r_brow", "hair", "l_ear", "r_ear"))
    for top, bottom, brightness in parts:
        outline = pose.silhouette(_hat_outline(top, bottom))
        mask = canvas.shape(outline)
        canvas.paint(mask, field * brightness, "hat")
        canvas.shade(canvas.shape(_ribbon(np.concatenate([outline, outline[:2]]), 0.012), blur=0.007, clip=mask), 0.4)


def _hat_outline(top: F32, bottom: F32) -> F32:
    """Closed curve over the top and back along the bottom; both (n, 2), from the right edge to the middle."""
    return np.concatenate([_smooth(_both(top), closed=False), _smooth(_both(bottom)[::-1], closed=False)])


def _paint_earrings(scene: _Scene) -> None:
    """Studs, hoops or drops below the ears."""
    traits, canvas = scene.traits, scene.canvas
    if traits.earring == "none":
        return
    metal = _array(traits.metal)
    for side in (-1, 1):
        # A turned head hides the ear on its far side.
        if side * traits.yaw > 0.2:
            continue
        base = (side * (0.262 * traits.cheek_width + 0.012), 0.045 + 0.066 * traits.ear_size)
        x, y = scene.pose.silhouette([base])[0].tolist()
        if traits.earring == "hoop":
            ring = _ellipse(x, y + 0.038, 0.026, 0.038)
            parts = [_ribbon(np.concatenate([ring, ring[:2]]), 0.011)]
        elif traits.earring == "drop":
            drop = [(x, y + 0.01), (x + 0.016, y + 0.055), (x, y + 0.085), (x - 0.016, y + 0.055)]
            parts = [_ellipse(x, y, 0.010, 0.010), _smooth(drop)]
        else:
            parts = [_ellipse(x, y, 0.014, 0.014)]
        for outline in parts:
            canvas.shade(canvas.shape(outline + _array([0.002, 0.006]), blur=0.004), 0.35)
            canvas.paint(canvas.shape(outline), metal * 0.78, "ear_r")
            glint = (outline - outline.mean(axis=0)) * 0.5 + outline.mean(axis=0) - _array([0.003, 0.004])
            canvas.paint(canvas.shape(glint, blur=0.002), np.clip(metal * 1.35, 0, 1), opacity=0.7, only=("ear_r",))


# --- camera ------------------------------------------------------------------------------------------------------


def _photograph(scene: _Scene, size_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Expose, blur, reduce to `size_px` and add the sensor's noise; (size_px, size_px, 3) uint8."""
    traits, image = scene.traits, scene.canvas.image
    sigma = traits.blur * scene.canvas.side
    if sigma > 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)
    if scene.canvas.side != size_px:
        image = np.asarray(cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA), np.float32)
    image = image * (_array(traits.white_balance) * _array(traits.exposure))
    grain = rng.standard_normal((size_px, size_px, 1), np.float32)
    image = image + grain * traits.grain
    # A soft shoulder keeps bright skin from clipping to flat white.
    knee = np.maximum(image - 0.8, 0)
    image = image - knee + 0.2 * np.tanh(knee / 0.2)
    return np.asarray(np.clip(np.round(image * 255), 0, 255), np.uint8)
