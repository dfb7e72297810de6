"""The random decisions about one face."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scfegan_ray.faces.canvas import F32, array


def _palette(colors: str) -> F32:
    """Colors (n, 3) in 0..1 from their hexadecimal names."""
    return array([[byte / 255 for byte in bytes.fromhex(color)] for color in colors.split()])


_SKIN_TONES = _palette("f2ccb5 dead8c cf9975 b27d59 916145 523629")  # from light to dark
# Dark ones first: light hair and light eyes are drawn for light skin only, as they mostly occur.
_HAIR_COLORS = _palette("120f0f 211712 3b2417 5c3821 7a4f2b d1ab6e 803317 9e9994")
_IRIS_COLORS = _palette("331c0f 523017 546638 4c7394")
_LIPSTICKS = _palette("ad1f2b c75c66 851a2b")
_METALS = _palette("dbb25c cccfd6")


class Traits:
    """Every random decision about one face; lengths are fractions of the image's side, angles radians."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Make the decisions in a fixed order: another order gives other faces."""

        def between(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        def chance(probability: float) -> bool:
            return bool(rng.random() < probability)

        def normal(deviation: float, limit: float = np.inf) -> float:
            return float(np.clip(rng.normal(0, deviation), -limit, limit))

        def pick(options: str, weights: Sequence[float]) -> str:
            names = options.split()
            return names[int(rng.choice(len(names), p=np.asarray(weights) / np.sum(weights)))]

        def one(palette: F32) -> F32:
            return array(palette[int(rng.integers(len(palette)))] * between(0.85, 1.15))

        def any_color(low: float, high: float, saturation: float) -> F32:
            return array(np.clip(between(low, high) + rng.normal(0, saturation, 3), 0.02, 0.98))

        self.yaw, self.pitch, self.roll = normal(0.20, 0.42), normal(0.06, 0.12), normal(0.045, 0.12)
        self.scale, self.shift = between(0.96, 1.07), (normal(0.01), normal(0.01))
        azimuth = normal(0.6)
        self.light = (float(np.sin(azimuth)) * 0.9, -between(0.15, 0.75), float(np.cos(azimuth)) * 0.8 + 0.15)
        self.ambient = between(0.32, 0.6)
        self.backdrop_colors = (any_color(0.05, 0.95, 0.08), any_color(0.1, 0.9, 0.14), any_color(0.1, 0.9, 0.14))
        self.backdrop_blur = between(0.01, 0.1)
        self.warmth, self.blur, self.grain = normal(0.025), between(0.0, 0.0026), between(0.002, 0.011)

        feminine = chance(0.55)
        tone = between(0, len(_SKIN_TONES) - 1)
        self.skin = array([np.interp(tone, range(len(_SKIN_TONES)), channel) for channel in _SKIN_TONES.T])
        self.cheek_width = between(0.95, 1.04)
        self.jaw_width = between(0.90, 1.0) if feminine else between(0.97, 1.1)
        self.chin_width = between(0.8, 1.05) if feminine else between(0.95, 1.3)
        self.neck_width = between(0.125, 0.145) if feminine else between(0.155, 0.185)
        self.gloss = between(0.05, 0.3)
        self.beard = "none" if feminine else pick("none stubble full goatee moustache", (50, 22, 14, 9, 5))

        if feminine:
            self.hair_style = pick("long bob curly bun short", (46, 20, 12, 14, 8))
            self.hairline = pick("parted back fringe", (60, 20, 20))
        else:
            self.hair_style = pick("short curly long bald", (66, 12, 11, 11))
            self.hairline = pick("parted back fringe", (40, 45, 15))
        if self.hair_style in ("bun", "bald"):
            self.hairline = "back"
        curly, short = self.hair_style == "curly", self.hair_style in ("short", "bun", "bald")
        self.hair_color = one(_HAIR_COLORS if tone < 2 else _HAIR_COLORS[:3])
        self.hair_length = 0.0 if short else between(0.5, 0.75) if self.hair_style == "long" else between(0.24, 0.42)
        self.hair_volume = between(0.06, 0.11) if curly else between(0.02, 0.05) if short else between(0.03, 0.10)
        self.hair_wave = between(0.0, 1.0)
        self.hair_part = between(-0.1, 0.1) if self.hairline == "parted" else 0.0
        self.hat = "none" if curly or self.hair_style == "bun" else pick("none beanie brim", (89, 5, 6))
        self.hat_color = any_color(0.08, 0.6, 0.12)
        if self.hat != "none":
            self.hair_volume = min(self.hair_volume, 0.035)

        self.brow_thickness = between(0.012, 0.018) if feminine else between(0.016, 0.026)
        self.brow_height = between(0.068, 0.085) if feminine else between(0.058, 0.074)
        self.brow_arch = between(0.010, 0.024) if feminine else between(0.002, 0.014)
        self.eye_open = between(0.85, 1.2) if feminine else between(0.72, 1.05)
        self.eye_tilt, self.gaze = between(-0.004, 0.010), normal(0.12)
        self.iris = one(_IRIS_COLORS if tone < 2 else _IRIS_COLORS[:2])
        self.lash = between(0.6, 1.0) if feminine else between(0.2, 0.45)
        self.nose_width = between(1.0, 1.3) if feminine else between(1.15, 1.45)
        self.mouth_width, self.mouth_drop = between(0.082, 0.098), between(-0.008, 0.012)
        self.mouth_open = between(0.35, 1.0) if chance(0.42) else 0.0
        self.smile = between(0.45, 1.0) if self.mouth_open else between(-0.15, 0.6)
        self.lip_fullness = between(0.95, 1.45) if feminine else between(0.75, 1.2)
        painted = between(0.2, 0.8) if feminine else 0.0
        self.lip_color = (1 - painted) * self.skin * array([0.84, 0.58, 0.58]) + painted * one(_LIPSTICKS)

        self.glasses, self.glasses_color = pick("none clear dark", (80, 14, 6)), any_color(0.05, 0.5, 0.1)
        self.metal = one(_METALS)
        self.earring = pick("none hoop drop", (55, 20, 25) if feminine else (94, 6, 0))
        self.necklace = chance(0.2 if feminine else 0.04)
        self.neckline, self.cloth_color = pick("round vee wide", (45, 35, 20)), any_color(0.05, 0.9, 0.16)
