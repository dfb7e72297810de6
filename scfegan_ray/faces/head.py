"""The parts of the head: ears, skin, beard, nose, mouth, eyes and brows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scfegan_ray.faces.canvas import F32, Mask, array, both, ellipse, enlarge, knots, ribbon, shrunk, smooth
from scfegan_ray.faces.scene import EYE_X, Scene


def paint_ears(scene: Scene) -> None:
    """Both ears, behind the head; the one a turned head shows more stands out more."""
    traits, canvas = scene.traits, scene.canvas
    for side in (-1, 1):
        out = 0.262 * traits.cheek_width - 0.03 * max(0.0, side * float(np.sin(traits.yaw)))
        size = traits.ear_size
        points = [(-0.01, -0.045), (0.018, -0.055), (0.036, -0.035), (0.034, 0.005), (0.022, 0.045), (0.004, 0.075)]
        ear = array([(side * (out + dx * size), 0.045 + dy * size) for dx, dy in [*points, (-0.02, 0.05)]])
        mask = scene.silhouette_shape(smooth(ear, closed=True))
        canvas.paint(mask, scene.body * array([0.95, 0.855, 0.83]), "l_ear" if side > 0 else "r_ear")
        inner = array([(side * (out + dx * size), 0.042 + dy * size) for dx, dy in points[1:-1]])
        inner = shrunk(inner, 0.55) - array([side * 0.004, 0])
        canvas.shade(scene.silhouette_shape(ribbon(smooth(inner), 0.007), blur=0.003, clip=mask), 0.5)


def paint_skin(scene: Scene) -> None:
    """The face's skin, with soft occlusion along its edge, folds from nose to mouth and shadows of brows and hair."""
    traits, canvas = scene.traits, scene.canvas
    canvas.paint(scene.head, scene.skin, "skin")
    canvas.shade(canvas.shape(ribbon(scene.outline, 0.02), blur=0.014, clip=scene.head), 0.24)
    if traits.hair_style == "bald":
        scalp = both(knots([0, 0.13, 0.21, 0.25, 0.3, 0.3], [-0.27, -0.245, -0.14, 0, 0, -0.5]))
        mask = scene.surface_shape(smooth(scalp, closed=True), blur=0.02, clip=scene.head)
        canvas.paint(mask, scene.skin * 0.5 + array(traits.hair_color) * 0.4, opacity=0.3 * traits.beard_strength)
    for side in (-1, 1):
        bend = 0.012 * traits.smile
        fold = [(side * 0.043, 0.145), (side * (0.075 + bend), 0.19), (side * (0.096 + 2 * bend), 0.235 - bend)]
        canvas.shade(scene.surface_line(fold, 0.010, blur=0.006), 0.10 + 0.30 * max(0.0, traits.smile))
        below = [(side * 0.068, 0.026), (side * 0.103, 0.042), (side * 0.147, 0.036)]
        canvas.shade(scene.surface_line(below, 0.010, blur=0.006), 0.16)
    canvas.shade(scene.surface_shape(ellipse(0, 0.292 + traits.mouth_drop, 0.045, 0.008), blur=0.008), 0.22)


def paint_beard(scene: Scene) -> None:
    """Facial hair; it stays skin in the labels, as in CelebAMask-HQ."""
    traits, canvas = scene.traits, scene.canvas
    if traits.beard == "none":
        return
    mouth = 0.245 + traits.mouth_drop
    moustache = knots([0, 0.05, 0.1, 0.085, 0], mouth + array([-0.052, -0.042, 0.01, 0.03, -0.012]))
    goatee = knots(
        [0, 0.06, 0.098, 0.105, 0.07, 0], [mouth + 0.045, mouth + 0.03, mouth - 0.01, mouth + 0.06, 0.40, 0.43]
    )
    cheeks = knots(
        [0, 0.06, 0.10, 0.16, 0.235, 0.262, 0.32, 0.22, 0],
        [mouth + 0.04, mouth + 0.03, mouth - 0.005, 0.20, 0.13, 0.04, 0.2, 0.4, 0.48],
    )
    areas = {"moustache": (moustache,), "goatee": (moustache, goatee)}.get(traits.beard, (moustache, cheeks))
    opacity = (0.34 if traits.beard == "stubble" else 0.8) * traits.beard_strength
    bristle = 0.85 + 0.22 * enlarge(np.tile(scene.noise, (4, 4)), canvas.side)
    field = array(traits.hair_color) * 0.8 * bristle[..., None] + 0.18 * scene.skin
    for area in areas:
        mask = scene.surface_shape(smooth(both(area), closed=True), blur=0.012, clip=scene.head)
        canvas.paint(mask, field, opacity=opacity)


def paint_nose(scene: Scene) -> None:
    """The nose: its light is part of the skin field; here come its label, nostrils, wings and shadow."""
    traits, canvas = scene.traits, scene.canvas
    width, base = traits.nose_width, 0.165 * traits.nose_length
    cast = ellipse(-0.03 * traits.light[0], base + 0.014, 0.035 * width, 0.011)
    canvas.shade(scene.surface_shape(cast, 0.015, blur=0.007), 0.34)
    across = width * array([0, 0.015, 0.015, 0.026, 0.046, 0.047, 0.03, 0])
    down = [-0.02, -0.012, 0.05, 0.105, base - 0.025, base - 0.004, base + 0.006, base + 0.012]
    outline = scene.pose.surface(smooth(both(knots(across, down)), closed=True), 0.02)
    mask = canvas.shape(outline)
    canvas.label(mask, "nose")  # a nose has no painted edge
    # Its underside, the lowest tenth or so, is in shadow.
    limit = float(outline[:, 1].min() + 0.9 * np.ptp(outline[:, 1]))
    underside = knots(outline[:, 0], np.maximum(outline[:, 1], limit))
    canvas.shade(canvas.shape(underside, blur=0.006, clip=mask), 0.16)
    for side in (-1, 1):
        wing = knots(side * width * array([0.040, 0.049, 0.040]), base + array([-0.036, -0.016, 0]))
        canvas.shade(scene.surface_line(wing, 0.006, 0.02, blur=0.003), 0.42)
        hole = ellipse(side * 0.021 * width, base - 0.001, 0.0125 * width, 0.0052)
        canvas.shade(scene.surface_shape(hole, 0.024, blur=0.003), 0.72)
        bridge = [(side * 0.03, -0.035), (side * 0.021, 0.0), (side * 0.022, 0.06)]
        canvas.shade(scene.surface_line(bridge, 0.012, blur=0.008), 0.06 + 0.12 * max(0.0, -side * traits.light[0]))


def paint_mouth(scene: Scene) -> None:
    """Lips, and between parted lips the teeth."""
    traits, canvas = scene.traits, scene.canvas
    middle = 0.245 + traits.mouth_drop
    smile, gap = traits.smile, 0.036 * traits.mouth_open
    half = traits.mouth_width * (1 + 0.2 * max(0.0, smile))
    corner = middle - 0.016 * smile
    full = traits.lip_fullness * (1 - 0.25 * max(0.0, smile))

    def curve(x: Sequence[float], y: Sequence[float]) -> F32:
        # From the corner at the image's left over the middle to the other corner; y is measured from the closed lips.
        return smooth(both(knots([-half, *(half * u for u in x)], [corner, *(middle + v for v in y)])))

    bow = curve([-0.55, -0.2, 0], [-0.012 * full - 0.3 * gap, -0.023 * full - 0.3 * gap, -0.018 * full - 0.3 * gap])
    upper_in = curve([-0.5, 0], [-0.25 * gap, 0.002 - 0.3 * gap])
    lower_in = curve([-0.5, 0], [0.55 * gap, 0.002 + 0.75 * gap])
    under = curve([-0.6, 0], [0.018 * full + 0.55 * gap, 0.034 * full + 0.75 * gap])
    canvas.shade(scene.surface_shape(np.concatenate([bow, under[::-1]]), 0.01, blur=0.005), 0.22)
    upper = scene.surface_shape(np.concatenate([bow, upper_in[::-1]]), 0.01)
    lower = scene.surface_shape(np.concatenate([lower_in, under[::-1]]), 0.01)
    if traits.mouth_open:
        inside = scene.surface_shape(np.concatenate([upper_in, lower_in[::-1]]), 0.01)
        canvas.paint(inside, (0.20, 0.06, 0.06), "mouth")
        teeth = ellipse(0.0, middle - 0.012, half * 0.80, 0.012 + 0.66 * gap, 2.6)
        mask = scene.surface_shape(teeth, 0.005, blur=0.0015, clip=inside)
        canvas.paint(mask, (0.90, 0.87, 0.81), opacity=0.95, light=scene.light)
        between = [
            ribbon(array([(place * half, middle - 0.02), (place * half * 0.98, middle + 0.02)]), 0.0025)
            for place in (-0.62, -0.44, -0.22, 0.0, 0.22, 0.44, 0.62)
        ]
        lines = [scene.pose.surface(line, 0.005) for line in between]
        canvas.shade(canvas.shape(*lines, blur=0.001, clip=inside), 0.16)
        canvas.shade(scene.surface_shape(ribbon(upper_in, 0.008), 0.01, blur=0.003, clip=inside), 0.45)
    lip = array(traits.lip_color)
    canvas.paint(upper, lip * 0.86, "u_lip", light=scene.light)
    canvas.paint(lower, lip, "l_lip", light=scene.light)
    shine = ellipse(0.012 * traits.light[0], middle + 0.016 * full + 0.65 * gap, 0.4 * half, 0.0045)
    mask = scene.surface_shape(shine, 0.01, blur=0.005)
    canvas.paint(mask, (1, 0.9, 0.88), opacity=0.15 + 0.6 * traits.gloss, only=("l_lip",))
    canvas.shade(scene.surface_shape(ribbon(under, 0.006), 0.01, blur=0.003, clip=lower), 0.25)
    if not traits.mouth_open:
        canvas.shade(scene.surface_shape(ribbon(upper_in, 0.0055), 0.01, blur=0.0012), 0.75)
    for side in (-1, 1):
        dimple = ellipse(side * half, corner, 0.006, 0.005)
        canvas.shade(scene.surface_shape(dimple, 0.01, blur=0.004), 0.5)


def paint_eye(scene: Scene, side: int) -> None:
    """One eye: lids, white, iris, pupil, catchlight and lashes; `side` is 1 at the image's right."""
    traits, canvas = scene.traits, scene.canvas
    wide, tall = traits.eye_width, 0.0225 * traits.eye_open * (1 - 0.15 * max(0.0, traits.smile))

    def at(points: Sequence[tuple[float, float]]) -> F32:
        # Eye coordinates run from the inner corner (-1) to the outer (+1); y is in half heights.
        return array([(side * (EYE_X + wide * u), tall * v - traits.eye_tilt * u) for u, v in points])

    upper = smooth(at([(-1, 0.25), (-0.72, -0.45), (-0.3, -0.98), (0.15, -1.05), (0.62, -0.68), (1, 0.05)]))
    lower = smooth(at([(-1, 0.25), (-0.6, 0.55), (-0.05, 0.85), (0.5, 0.72), (1, 0.05)]))
    crease = smooth(at([(-0.9, -0.5), (-0.4, -1.55), (0.2, -1.75), (0.75, -1.3), (1.12, -0.55)]))
    lid = scene.surface_shape(np.concatenate([crease, upper[::-1]]), blur=0.006)
    canvas.paint(lid, traits.eyeshadow, opacity=traits.eyeshadow_strength)
    canvas.shade(lid, 0.12)
    canvas.shade(scene.surface_shape(ribbon(crease, 0.005), blur=0.002), 0.42)
    canvas.shade(scene.surface_line(at([(-1.3, -0.3), (-1.1, 0.2), (-0.95, 0.5)]), 0.012, blur=0.006), 0.28)
    almond = scene.surface_shape(np.concatenate([upper, lower[::-1]]))
    canvas.paint(almond, (0.87, 0.85, 0.84), "l_eye" if side > 0 else "r_eye", light=scene.light)

    def spot(x: float, y: float, half_width: float, half_height: float, blur: float) -> Mask:
        return scene.surface_shape(ellipse(x, y, half_width, half_height), blur=blur, clip=almond)

    corner = spot(side * (EYE_X - wide * 0.93), 0.2 * tall, 0.007, 0.007, 0.002)
    canvas.paint(corner, (0.72, 0.42, 0.38), opacity=0.8, light=scene.light)
    # Both eyes look the same way, so the gaze does not follow `side`; a turned head mostly looks at the camera.
    x = side * EYE_X + (traits.gaze[0] - 0.5 * float(np.sin(traits.yaw))) * 0.4 * wide
    y = traits.gaze[1] * tall - 0.08 * tall
    radius = 0.0225
    iris = array(traits.iris)
    canvas.paint(spot(x, y, radius, radius, 0.0008), iris * 0.45, light=scene.light)
    canvas.paint(spot(x, y, radius * 0.86, radius * 0.86, 0.002), iris, light=scene.light)
    glow = spot(x, y + radius * 0.4, radius * 0.55, radius * 0.35, 0.004)
    canvas.paint(glow, np.clip(iris * 1.7 + 0.05, 0, 1), opacity=0.7, light=scene.light)
    canvas.paint(spot(x, y, radius * 0.42, radius * 0.42, 0.001), (0.03, 0.025, 0.025))
    shadow = ribbon(upper + array([0, 0.003]), 0.013)
    canvas.shade(scene.surface_shape(shadow, blur=0.004, clip=almond), 0.55)
    toward_lamp = 0.008 * float(np.clip(2 * traits.light[0], -1, 1))
    canvas.paint(spot(x + toward_lamp + 0.001, y - 0.007, 0.0042, 0.0042, 0.0008), (1, 1, 1), opacity=0.95)
    _paint_lashes(scene, side, upper, lower)


def _paint_lashes(scene: Scene, side: int, upper: F32, lower: F32) -> None:
    """Lashes of one eye along the edges of its lids, each (n, 2) from the inner corner to the outer."""
    traits, canvas = scene.traits, scene.canvas
    color = array(traits.hair_color) * 0.25
    taper = np.interp(np.linspace(0, 1, len(upper)), (0, 0.25, 0.8, 1), (0.002, 0.005, 0.0075, 0.003))
    line = scene.surface_shape(ribbon(upper, taper * (0.65 + 0.6 * traits.lash)), blur=0.0008)
    canvas.paint(line, color, opacity=0.65 + 0.3 * traits.lash)
    canvas.shade(scene.surface_shape(ribbon(lower, 0.004), blur=0.0012), 0.3 + 0.4 * traits.lash)
    if traits.lash > 0.5:
        place = np.linspace(0.25, 1.0, 11, dtype=np.float32)
        roots = upper[(place * (len(upper) - 1)).astype(int)]
        reach = knots(side * 0.014 * (place - 0.35), -0.011 - 0.004 * place) * traits.lash
        canvas.paint(canvas.shape(*_hairs(scene, roots, reach)), color, opacity=0.5)


def paint_brow(scene: Scene, side: int) -> None:
    """One eyebrow with its hairs; `side` is 1 at the image's right."""
    traits, canvas = scene.traits, scene.canvas
    height, arch = traits.brow_height, traits.brow_arch
    path = [(0.045, -height + 0.006), (0.08, -height - 0.3 * arch), (0.128, -height - arch), (0.185, -height + 0.014)]
    spine = smooth(array(path) * array([side, 1]), steps=10)
    width = np.interp(np.linspace(0, 1, len(spine)), (0, 0.12, 0.55, 1), (0.6, 1.15, 1.0, 0.15))
    width = width * traits.brow_thickness * 1.25
    outline = ribbon(spine, width)
    canvas.label(scene.surface_shape(outline, clip=scene.head), "l_brow" if side > 0 else "r_brow")
    color = array(traits.hair_color) * 0.72 + 0.06 * array(traits.skin)
    soft = scene.surface_shape(outline, blur=0.0032, clip=scene.head)
    canvas.paint(soft, color, opacity=0.72 * traits.brow_strength)
    order = np.arange(1, len(spine) - 2)
    roots = spine[order] + knots(0, 0.4 * width[order])
    reach = knots(side * 0.010, -0.011 + 0.015 * order / len(spine))
    hairs = canvas.shape(*_hairs(scene, roots, reach), clip=scene.head)
    canvas.paint(hairs, color * 0.75, opacity=0.4 * traits.brow_strength)


def _hairs(scene: Scene, roots: F32, reach: F32) -> list[F32]:
    """Outlines of short tapering hairs on the face from (n, 2) roots, each `reach` (n, 2) long."""
    half = array([0.002, 0])
    corners = np.stack([roots - half, roots + half, roots + reach], axis=1)
    return list(scene.pose.surface(corners.reshape(-1, 2)).reshape(-1, 3, 2))
