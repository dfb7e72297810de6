"""What surrounds a face and is worn with it: backdrop, neck, clothing, glasses, jewelry and hats."""

from __future__ import annotations

import cv2
import numpy as np

from scfegan_ray.faces.canvas import F32, array, both, ellipse, enlarge, flipped, knots, ribbon, ring, smooth
from scfegan_ray.faces.scene import EYE_X, FIELD_SIDE, Scene


def paint_backdrop(scene: Scene) -> None:
    """Fill the background: a gradient with discs, more or less out of focus."""
    first, second, third = scene.traits.backdrop_colors
    slope = np.linspace(0, 0.5, FIELD_SIDE, dtype=np.float32)[:, None, None]
    field = np.broadcast_to(first + slope * (second - first), (FIELD_SIDE, FIELD_SIDE, 3)).copy()
    for x, y, extent, choice in scene.rng.random((12, 4)).tolist():
        center, radius = (int(x * FIELD_SIDE), int(y * FIELD_SIDE)), int((0.04 + 0.2 * extent) * FIELD_SIDE)
        cv2.circle(field, center, radius, ((1 - choice) * second + choice * third).tolist(), -1)
    soft = cv2.GaussianBlur(field, (0, 0), scene.traits.backdrop_blur * FIELD_SIDE)
    scene.canvas.image[:] = enlarge(soft, scene.canvas.side)


def paint_body(scene: Scene) -> None:
    """Neck and shoulders, then clothing over them, then the head's shadow."""
    traits, canvas = scene.traits, scene.canvas
    neck = traits.neck_width
    half = [(neck, 0.1), (neck, 0.3), (neck + 0.01, 0.395), (neck + 0.07, 0.45), (0.36, 0.50), (0.52, 0.58), (0.6, 0.9)]
    right = array(half)
    canvas.paint(scene.silhouette_shape(_mirrored(right)), scene.body, "neck")
    edge, dip = {"round": (0.06, 0.48), "vee": (0.09, 0.62), "wide": (0.24, 0.53)}[traits.neckline]
    start, pointed = neck + edge, traits.neckline == "vee"
    top = float(np.interp(start, right[1:, 0], right[1:, 1])) - 0.008
    opening = [(0.0, dip), (0.5 * start, top + (0.5 if pointed else 0.82) * (dip - top)), (start, top)]
    outer = [(x + 0.004, y - 0.012) for x, y in half if x > start + 0.03]
    shading = np.clip(scene.body[..., 1:2] / traits.skin[1], 0, 1.2)
    cloth = scene.silhouette_shape(_mirrored(array([*opening, *outer, (0.62, 1.0)]), steps=1 if pointed else 6))
    canvas.paint(cloth, traits.cloth_color * shading, "cloth")
    # Narrowed about the image's middle and moved down, away from the lamp.
    shadow = scene.outline * array([0.94, 1]) + array([0.03 - 0.08 * traits.light[0], 0.055])
    canvas.shade(canvas.shape(shadow, blur=0.016, clip=canvas.where("neck")), 0.5)


def _mirrored(right: F32, steps: int = 8) -> F32:
    """Closed symmetrical curve from its right half (n, 2), top first; `steps` 1 keeps the corners."""
    return np.concatenate([smooth(part, steps=steps) for part in (right, flipped(right))])


def paint_glasses(scene: Scene) -> None:
    """Lenses, rims, bridge and temples."""
    traits, canvas = scene.traits, scene.canvas
    if traits.glasses == "none":
        return
    frame, dark = traits.glasses_color, traits.glasses == "dark"
    half_width, half_height = (0.090, 0.066) if dark else (0.085, 0.058)
    seen = np.zeros_like(canvas.labels, bool) if dark else canvas.where("l_eye", "r_eye") > 0
    eyes = canvas.labels[seen]
    for side in (-1, 1):
        temple = array([(side * (0.112 + half_width * 0.97), -0.02), (side * 0.268, -0.012)])
        arm = scene.surface_shape(ribbon(temple, 0.010), 0.01, clip=canvas.where("skin"))
        canvas.paint(arm, frame * 0.8, "eye_g")
        rim = scene.pose.surface(ellipse(side * EYE_X, 0.008, half_width, half_height, 3.0), 0.03)
        canvas.shade(canvas.shape(rim + array([0, 0.012]), blur=0.008), 0.16)
        color = 0.1 + 0.15 * frame if dark else array([0.85, 0.9, 0.95])
        canvas.paint(canvas.shape(rim), color, "eye_g", opacity=0.95 if dark else 0.08)
        canvas.paint(canvas.shape(ring(rim, 0.010)), frame, "eye_g")
    bridge = [(-0.028, 0.0), (0.0, -0.012), (0.028, 0.0)]
    canvas.paint(scene.surface_line(bridge, 0.009, 0.03), frame, "eye_g")
    canvas.labels[seen] = eyes


def paint_jewelry(scene: Scene) -> None:
    """A chain around the neck; hoops or drops below the ears."""
    traits, canvas = scene.traits, scene.canvas
    if traits.necklace:
        neck = traits.neck_width + 0.03
        chain = smooth(both(knots([-neck, -0.7 * neck, 0], [0.405, 0.462, 0.485])))
        mask = canvas.shape(scene.pose.silhouette(ribbon(chain, 0.018)), clip=canvas.where("neck", "cloth"))
        canvas.paint(mask, traits.metal, "neck_l")
    if traits.earring == "none":
        return
    for side in (-1, 1):
        if side * traits.yaw > 0.2:  # a turned head hides the ear on its far side
            continue
        x, y = scene.pose.silhouette([(side * (0.262 * traits.cheek_width + 0.012), 0.115)])[0].tolist()
        outline = {
            "hoop": ring(ellipse(x, y + 0.038, 0.026, 0.038), 0.011),
            "drop": ellipse(x, y + 0.03, 0.014, 0.04),
        }[traits.earring]
        canvas.paint(canvas.shape(outline), traits.metal, "ear_r")


def paint_hat(scene: Scene) -> None:
    """A knitted hat or a brimmed one, with its shadow on the forehead."""
    traits, canvas, pose = scene.traits, scene.canvas, scene.pose
    if traits.hat == "none":
        return
    x, _ = pose.head_frame(canvas.side)
    crown = knots([0.29, 0.30, 0.24, 0.11, 0], [-0.14, -0.26, -0.40, -0.475, -0.485])
    low = knots([0.29, 0.16, 0], [-0.12, -0.17, -0.185])
    if traits.hat == "beanie":
        parts = [(crown, low, 1.0), (knots([0.30, 0.31, 0.17, 0], [-0.11, -0.20, -0.262, -0.28]), low, 0.82)]
    else:
        brim = knots([0.47, 0.385, 0.19, 0], [-0.20, -0.235, -0.245, -0.25])
        edge = knots([0.47, 0.40, 0.21, 0], [-0.195, -0.163, -0.136, -0.135])
        parts = [(crown, low, 1.0), (brim, edge, 0.85)]
    # Each part runs over the top and back along the bottom.
    outlines = [pose.silhouette(np.concatenate([smooth(both(top)), smooth(both(end)[::-1])])) for top, end, _ in parts]
    shadow = outlines[-1] + array([-0.015 * traits.light[0], 0.03])
    canvas.shade(canvas.shape(shadow, blur=0.015, clip=1 - canvas.where("background")), 0.5)
    knit = 1 + 0.12 * np.sin(x * 190) if traits.hat == "beanie" else 1.0
    field = (np.clip(1.05 - 13 * (x - 0.12 * traits.light[0]) ** 2, 0.4, 1.1) * knit)[..., None] * traits.hat_color
    for outline, (_, _, brightness) in zip(outlines, parts, strict=True):
        canvas.paint(canvas.shape(outline), field * brightness, "hat")
        canvas.shade(canvas.shape(ring(outline, 0.012), blur=0.007, clip=canvas.where("hat")), 0.4)
