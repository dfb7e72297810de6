"""The parts of the head: ears, skin, beard, nose, mouth, eyes and brows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scfegan_ray.faces.canvas import F32, Mask, array, both, ellipse, enlarge, knots, ribbon, smooth
from scfegan_ray.faces.scene import EYE_X, Scene


def paint_ears(scene: Scene) -> None:
    """Both ears, behind the head; the one a turned head shows more stands out more."""
    traits, canvas = scene.traits, scene.canvas
    for side in (-1, 1):
        out = 0.262 * traits.cheek_width - 0.03 * max(0.0, side * float(np.sin(traits.yaw)))
        points = [
            (-0.01, 0.0),
            (0.018, -0.01),
            (0.036, 0.01),
            (0.034, 0.05),
            (0.022, 0.09),
            (0.004, 0.12),
            (-0.02, 0.095),
        ]
        ear = smooth([(side * (out + dx), y) for dx, y in points], closed=True)
        canvas.paint(scene.silhouette_shape(ear), scene.body * 0.88, "l_ear" if side > 0 else "r_ear")
        inner = ribbon(
            smooth([(side * (out + dx), y) for dx, y in [(0.012, 0.015), (0.022, 0.03), (0.012, 0.08)]]), 0.008
        )
        canvas.shade(scene.silhouette_shape(inner), 0.35)


def paint_skin(scene: Scene) -> None:
    """The face's skin, with soft occlusion along its edge and folds from nose to mouth."""
    traits, canvas = scene.traits, scene.canvas
    canvas.paint(Mask((slice(None), slice(None)), scene.head), scene.skin, "skin")
    canvas.shade(canvas.shape(ribbon(scene.outline, 0.02), blur=0.014, clip=scene.head), 0.24)
    for side in (-1, 1):
        bend = 0.012 * traits.smile
        fold = [(side * 0.043, 0.145), (side * (0.075 + bend), 0.19), (side * (0.096 + 2 * bend), 0.235 - bend)]
        canvas.shade(scene.surface_line(fold, 0.010, blur=0.006), 0.10 + 0.30 * max(0.0, traits.smile))


def paint_beard(scene: Scene) -> None:
    """Facial hair; it stays skin in the labels, as in CelebAMask-HQ."""
    traits, mouth = scene.traits, 0.245 + scene.traits.mouth_drop
    if traits.beard == "none":
        return
    moustache = knots([0, 0.05, 0.1, 0.085, 0], mouth + array([-0.052, -0.042, 0.01, 0.03, -0.012]))
    down = [mouth + 0.045, mouth + 0.03, mouth - 0.01, mouth + 0.06, 0.40, 0.43]
    goatee = knots([0, 0.06, 0.098, 0.105, 0.07, 0], down)
    down = [mouth + 0.04, mouth + 0.03, mouth - 0.005, 0.20, 0.13, 0.04, 0.2, 0.4, 0.48]
    cheeks = knots([0, 0.06, 0.10, 0.16, 0.235, 0.262, 0.32, 0.22, 0], down)
    areas = {"moustache": [moustache], "goatee": [moustache, goatee]}.get(traits.beard, [moustache, cheeks])
    bristle = 0.85 + 0.2 * enlarge(scene.rng.standard_normal((192, 192), np.float32), scene.canvas.side)
    color = traits.hair_color * 0.8 * bristle[..., None] + 0.18 * scene.skin
    for area in areas:
        mask = scene.surface_shape(smooth(both(area), closed=True), blur=0.012, clip=scene.head)
        scene.canvas.paint(mask, color, opacity=0.3 if traits.beard == "stubble" else 0.7)


def paint_nose(scene: Scene) -> None:
    """The nose: its light is part of the skin field; here come its label, nostrils, wings and shadow."""
    traits, canvas, base = scene.traits, scene.canvas, 0.165
    width = traits.nose_width
    across = width * array([0, 0.015, 0.015, 0.026, 0.046, 0.047, 0.03, 0])
    down = [-0.02, -0.012, 0.05, 0.105, base - 0.025, base - 0.004, base + 0.006, base + 0.012]
    canvas.label(scene.surface_shape(smooth(both(knots(across, down)), closed=True), 0.02), "nose")  # no painted edge
    cast = ellipse(-0.03 * traits.light[0], base + 0.010, 0.038 * width, 0.012)
    canvas.shade(scene.surface_shape(cast, 0.015, blur=0.007), 0.34)
    for side in (-1, 1):
        wing = knots(side * width * array([0.040, 0.049, 0.040]), base + array([-0.036, -0.016, 0]))
        canvas.shade(scene.surface_line(wing, 0.006, 0.02, blur=0.003), 0.42)
        hole = ellipse(side * 0.021 * width, base - 0.001, 0.0125 * width, 0.0052)
        canvas.shade(scene.surface_shape(hole, 0.024, blur=0.003), 0.72)


def paint_mouth(scene: Scene) -> None:
    """Lips, and between parted lips the teeth."""
    traits, canvas = scene.traits, scene.canvas
    middle = 0.245 + traits.mouth_drop
    smile, gap = traits.smile, 0.036 * traits.mouth_open
    half = traits.mouth_width * (1 + 0.2 * max(0.0, smile))
    full = traits.lip_fullness * (1 - 0.25 * max(0.0, smile))

    def curve(x: Sequence[float], y: Sequence[float]) -> F32:
        # From the corner at the image's left over the middle to the other corner; y is measured from the closed lips.
        corner = middle - 0.016 * smile
        return smooth(both(knots([-half, *(half * u for u in x)], [corner, *(middle + v for v in y)])))

    bow = curve([-0.55, -0.2, 0], [-0.012 * full - 0.3 * gap, -0.023 * full - 0.3 * gap, -0.018 * full - 0.3 * gap])
    upper_in = curve([-0.5, 0], [-0.25 * gap, 0.002 - 0.3 * gap])
    lower_in = curve([-0.5, 0], [0.55 * gap, 0.002 + 0.75 * gap])
    under = curve([-0.6, 0], [0.018 * full + 0.55 * gap, 0.034 * full + 0.75 * gap])
    canvas.shade(scene.surface_shape(np.concatenate([bow, under[::-1]]) + array([0, 0.01]), 0.01, blur=0.008), 0.25)
    upper = scene.surface_shape(np.concatenate([bow, upper_in[::-1]]), 0.01)
    lower = scene.surface_shape(np.concatenate([lower_in, under[::-1]]), 0.01)
    if traits.mouth_open:
        inside = scene.surface_shape(np.concatenate([upper_in, lower_in[::-1]]), 0.01)
        canvas.paint(inside, array([0.86, 0.83, 0.77]) * scene.light, "mouth")
    canvas.paint(upper, traits.lip_color * 0.86 * scene.light, "u_lip")
    canvas.paint(lower, traits.lip_color * scene.light, "l_lip")
    shine = ellipse(0.012 * traits.light[0], middle + 0.016 * full + 0.65 * gap, 0.4 * half, 0.0045)
    mask = scene.surface_shape(shine, 0.01, blur=0.005, clip=canvas.where("l_lip"))
    canvas.paint(mask, (1, 0.9, 0.88), opacity=0.15 + 0.6 * traits.gloss)
    if not traits.mouth_open:
        canvas.shade(scene.surface_shape(ribbon(upper_in, 0.0055), 0.01, blur=0.0012), 0.75)


def paint_eye(scene: Scene, side: int) -> None:
    """One eye: lids, white, iris, pupil, catchlight and lashes; `side` is 1 at the image's right."""
    traits, canvas = scene.traits, scene.canvas
    wide, tall = 0.054, 0.0225 * traits.eye_open * (1 - 0.15 * max(0.0, traits.smile))

    def at(points: Sequence[tuple[float, float]]) -> F32:
        # Eye coordinates run from the inner corner (-1) to the outer (+1); y is in half heights.
        return smooth([(side * (EYE_X + wide * u), tall * v - traits.eye_tilt * u) for u, v in points])

    upper = at([(-1, 0.25), (-0.72, -0.45), (-0.3, -0.98), (0.15, -1.05), (0.62, -0.68), (1, 0.05)])
    lower = at([(-1, 0.25), (-0.6, 0.55), (-0.05, 0.85), (0.5, 0.72), (1, 0.05)])
    crease = at([(-0.9, -0.5), (-0.4, -1.55), (0.2, -1.75), (0.75, -1.3), (1.12, -0.55)])
    canvas.shade(scene.surface_shape(ribbon(crease, 0.005), blur=0.002), 0.42)
    almond = scene.surface_shape(np.concatenate([upper, lower[::-1]]))
    canvas.paint(almond, array([0.87, 0.85, 0.84]) * scene.light, "l_eye" if side > 0 else "r_eye")
    inside = canvas.spread(almond)

    def disc(x: float, y: float, radius: float, blur: float = 0.001) -> Mask:
        return scene.surface_shape(ellipse(x, y, radius, radius), blur=blur, clip=inside)

    # Both eyes look the same way, so the gaze does not follow `side`; a turned head mostly looks at the camera.
    x = side * EYE_X + (traits.gaze - 0.5 * float(np.sin(traits.yaw))) * 0.4 * wide
    y, radius = -0.08 * tall, 0.0225
    canvas.paint(disc(x, y, radius), traits.iris * 0.45 * scene.light)
    canvas.paint(disc(x, y + 0.2 * radius, radius * 0.75, blur=0.003), traits.iris * 1.25 * scene.light)
    canvas.paint(disc(x, y, radius * 0.42), (0.03, 0.025, 0.025))
    canvas.shade(scene.surface_shape(ribbon(upper + array([0, 0.003]), 0.013), blur=0.004, clip=inside), 0.55)
    canvas.paint(disc(x + 0.012 * traits.light[0], y - 0.007, 0.0042), (1, 1, 1))
    taper = np.interp(np.linspace(0, 1, len(upper)), (0, 0.25, 0.8, 1), (0.002, 0.005, 0.0075, 0.003))
    lashes = scene.surface_shape(ribbon(upper, taper * (0.65 + 0.8 * traits.lash)), blur=0.0008)
    canvas.paint(lashes, traits.hair_color * 0.25, opacity=0.65 + 0.3 * traits.lash)
    canvas.shade(scene.surface_shape(ribbon(lower, 0.004), blur=0.0012), 0.3 + 0.4 * traits.lash)


def paint_brow(scene: Scene, side: int) -> None:
    """One eyebrow; `side` is 1 at the image's right."""
    traits, height, arch = scene.traits, scene.traits.brow_height, scene.traits.brow_arch
    path = [(0.045, -height + 0.006), (0.08, -height - 0.3 * arch), (0.128, -height - arch), (0.185, -height + 0.014)]
    spine = smooth(array(path) * array([side, 1]))
    width = np.interp(np.linspace(0, 1, len(spine)), (0, 0.12, 0.55, 1), (0.6, 1.15, 1.0, 0.15))
    outline = ribbon(spine, width * traits.brow_thickness)
    scene.canvas.label(scene.surface_shape(outline, clip=scene.head), "l_brow" if side > 0 else "r_brow")
    soft = scene.surface_shape(outline, blur=0.0032, clip=scene.head)
    scene.canvas.paint(soft, traits.hair_color * 0.68 + 0.06 * traits.skin, opacity=0.75)
