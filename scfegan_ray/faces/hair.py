"""Hair: its outline, its strands, and what of it lies behind and before the face."""

from __future__ import annotations

import cv2
import numpy as np

from scfegan_ray.faces.canvas import F32, array, both, ellipse, flipped, knots, ribbon, smooth
from scfegan_ray.faces.scene import Scene
from scfegan_ray.faces.traits import Traits


class Hair:
    """The hair of one face; it is painted twice, before body and face and after them."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._jitter = scene.rng.standard_normal(160).astype(np.float32)
        self._color = _strands(scene)
        self._outer = scene.pose.silhouette(_outer_edge(scene.traits, self._jitter))

    def paint_back(self) -> None:
        """Hair behind the neck and, for a bun, above the head."""
        canvas, style = self._scene.canvas, self._scene.traits.hair_style
        if style == "bun":
            outline = self._scene.pose.silhouette(ellipse(0.0, -0.42, 0.095, 0.085))
            canvas.paint(canvas.shape(outline), self._color, "hair")
            canvas.shade(canvas.shape(ribbon(outline, 0.03), blur=0.015, clip=canvas.where("hair")), 0.6)
        if style != "bald":
            # Short hair needs its back too: a turned head would show the background between hair and temple.
            canvas.paint(canvas.shape(self._outer), self._color * 0.62, "hair")

    def paint_front(self) -> None:
        """Hair over the forehead and beside the face, with its shadow on the skin."""
        traits, canvas, pose = self._scene.traits, self._scene.canvas, self._scene.pose
        if traits.hair_style == "bald":
            return
        line = smooth(_hairline(traits), steps=6)
        line[:, 1] += self._jitter[-len(line) :] * (0.009 if traits.hairline == "fringe" else 0.005)
        inner, end = array([(0.245, 0.045)]), traits.hair_length
        if end:
            inner = smooth(knots([0.2, 0.235, 0.243, 0.236], [end, min(0.36, 0.8 * end), min(0.2, 0.5 * end), 0.07]))
        line = pose.surface(smooth(line, steps=4), 0.012)
        outline = np.concatenate([self._outer, pose.silhouette(inner), line, pose.silhouette(flipped(inner))])
        shadow = outline + array([-0.012 * traits.light[0], 0.014])
        canvas.shade(canvas.shape(shadow, blur=0.012, clip=self._scene.head), 0.38)
        canvas.paint(canvas.shape(outline), self._color, "hair")


def _outer_edge(traits: Traits, jitter: F32) -> F32:
    """Outer edge of the hair from the image's left end over the top to the right, (n, 2) in head coordinates."""
    curly, volume, cheek = traits.hair_style == "curly", traits.hair_volume, traits.cheek_width
    across = [0, 0.155 + 0.5 * volume, 0.242 + volume, 0.272 * cheek + volume]
    down = [-0.37 - volume, -0.335 - 0.85 * volume, -0.21 - 0.3 * volume, -0.05]
    end = traits.hair_length
    if end:
        flare = volume + (0.03 if curly else 0.012)
        across += [0.28 + flare, 0.275 + flare, 0.25 + volume, 0.21 + 0.5 * volume]
        down += [0.35 * end, 0.72 * end, end, end + 0.025]
    else:
        across.append(0.274 * cheek + 0.3 * volume)
        down.append(0.02)
    curve = smooth(both(flipped(knots(across, down))), steps=9 if curly else 4)
    rough = 0.024 if curly else 0.006 + 0.008 * traits.hair_wave
    return smooth(curve * (1 + rough * jitter[: len(curve), None]), steps=4)


def _hairline(traits: Traits) -> F32:
    """Lower edge of the hair over the forehead from the image's right temple to its left, (n, 2) head coordinates."""
    if traits.hairline == "fringe":
        return both(knots([0.222, 0.19, 0.10, 0], [-0.03, -0.085, -0.108, -0.112]))
    if traits.hairline == "parted":
        part = abs(traits.hair_part)
        across = [0.226, 0.205, part + 0.06, part, part - 0.06, -0.08, -0.175, -0.222]
        points = knots(across, [-0.02, -0.12, -0.225, -0.275, -0.245, -0.195, -0.135, -0.03])
        return points if traits.hair_part > 0 else flipped(points)
    return both(knots([0.236, 0.228, 0.205, 0.15, 0.07, 0], [-0.01, -0.09, -0.165, -0.225, -0.24, -0.242]))


def _strands(scene: Scene) -> F32:
    """Color of hair wherever it may lie, (side, side, 3): strands that follow the style's flow, gloss and light."""
    traits = scene.traits
    x, y = scene.pose.head_frame(scene.canvas.side)
    wave = traits.hair_wave * 0.012 * np.sin(26 * y + 4 * np.sign(x) + 9 * x) * np.clip(y + 0.25, 0, 0.5) * 2
    if traits.hair_style == "curly":
        columns, rows = (x + 0.016 * np.sin(70 * y + 9 * x)) * 420, (y + 0.016 * np.sin(64 * x + 11 * y)) * 75
    elif traits.hairline == "fringe":  # fans out from the crown
        columns, rows = np.arctan2(x + wave, np.maximum(y + 0.52, 0.02)) * 260, np.hypot(x, y + 0.52) * 20
    elif traits.hairline == "back" and not traits.hair_length:  # runs up and back from the forehead
        columns, rows = np.arctan2(x, 0.14 - y) * 150, np.hypot(x, y - 0.1) * 30
    else:  # arches from the parting over the skull, then hangs
        center = x - traits.hair_part * np.clip(-y * 4, 0, 1)
        above = np.clip((y + 0.04) / -0.36, 0, None)
        columns = (np.hypot(center / 0.27, above) + wave / 0.27) * 95 + 25 * center
        rows = (np.arctan2(np.abs(center), above * 0.3 + 0.02) + y * 3) * 5.5
    white = scene.rng.standard_normal((32, 512), np.float32)  # a texture long along the rows, fine along the columns
    texture = sum(cv2.GaussianBlur(white, (0, 0), sigmaX=fine, sigmaY=3.5) * np.sqrt(fine) for fine in (1.0, 3.0, 9.0))
    flow = cv2.remap(array(texture), array(columns), array(rows), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    lit = 0.75 + 0.35 * np.clip(0.9 - y + 1.5 * traits.light[0] * x, 0, 1)
    band = np.exp(-(((np.hypot(x - traits.light[0] * 0.1, y + 0.02) - 0.31) / 0.05) ** 2)) * np.clip(0.8 - 4 * y, 0, 1)
    depth = np.clip(0.86 + 0.9 * flow, 0.25, 1.7) * lit
    gloss = (0.13 * band * np.clip(0.5 + 2 * flow, 0, 2))[..., None]
    return array(traits.hair_color * depth[..., None] + gloss * (0.5 * traits.hair_color + 0.4))
