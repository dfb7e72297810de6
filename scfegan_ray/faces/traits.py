"""The random decisions about one face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

Color = tuple[float, float, float]

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
_LIPSTICKS: tuple[Color, ...] = ((0.68, 0.12, 0.17), (0.78, 0.36, 0.40), (0.52, 0.10, 0.17), (0.82, 0.45, 0.42))
_METALS: tuple[Color, ...] = ((0.86, 0.70, 0.36), (0.80, 0.81, 0.84), (0.88, 0.66, 0.56))


@dataclass(frozen=True, slots=True)
class Traits:
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


def draw_traits(rng: np.random.Generator) -> Traits:
    """Make every decision about one face, in a fixed order: another order gives other faces."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    def normal(deviation: float, limit: float = np.inf) -> float:
        return float(np.clip(rng.normal(0, deviation), -limit, limit))

    def pick(options: Sequence[str], weights: Sequence[float]) -> str:
        return options[int(rng.choice(len(options), p=np.asarray(weights) / np.sum(weights)))]

    def one(palette: Sequence[Color]) -> Color:
        return palette[int(rng.integers(len(palette)))]

    def any_color(low: float, high: float, saturation: float) -> Color:
        gray = between(low, high)
        red, green, blue = (float(np.clip(gray + normal(saturation), 0.02, 0.98)) for _ in range(3))
        return red, green, blue

    feminine = chance(0.55)
    tone = between(0, len(_SKIN_TONES) - 1.001)
    lower = int(tone)
    lighter, darker = np.asarray(_SKIN_TONES[lower : lower + 2], np.float32)
    mixed = lighter * (1 - tone + lower) + darker * (tone - lower)
    skin = _color(np.clip(mixed + rng.normal(0, 0.012, 3), 0.05, 1))
    # Light hair and eyes are drawn for light skin only, as they mostly occur.
    hair_colors, iris_colors = (_HAIR_COLORS, _IRIS_COLORS) if tone < 2.5 else (_HAIR_COLORS[:4], _IRIS_COLORS[:2])
    hair_color = _color(np.clip(np.asarray(one(hair_colors)) * between(0.8, 1.2), 0.03, 0.95))
    iris = _color(np.asarray(one(iris_colors)) * between(0.8, 1.2))
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
    azimuth, elevation = normal(0.6), between(0.15, 0.75)
    natural_lip = np.asarray(skin) * (0.84, 0.58, 0.58)
    painted = between(0.2, 0.8) if feminine else 0.0
    lip = natural_lip * (1 - painted) + np.asarray(one(_LIPSTICKS)) * painted
    warmth = normal(0.025)
    return Traits(
        yaw=normal(0.20, 0.42),
        pitch=normal(0.06, 0.12),
        roll=normal(0.045, 0.12),
        scale=between(0.96, 1.07),
        shift=(normal(0.01), normal(0.01)),
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
        gaze=(normal(0.12), normal(0.06)),
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
        metal=one(_METALS),
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


def _color(values: ArrayLike) -> Color:
    red, green, blue = np.asarray(values, np.float64).tolist()
    return red, green, blue
