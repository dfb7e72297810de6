"""What surrounds a face and is worn with it: backdrop, hair, neck, clothing, glasses, jewelry and hats."""

from __future__ import annotations

import cv2
import numpy as np

from scfegan_ray.faces.canvas import (
    CLASS,
    F32,
    array,
    both,
    ellipse,
    enlarge,
    flipped,
    knots,
    ribbon,
    ring,
    shrunk,
    smooth,
)
from scfegan_ray.faces.scene import EYE_X, FIELD_SIDE, Scene
from scfegan_ray.faces.traits import Traits

# --- background and body -----------------------------------------------------------------------------------------


def paint_backdrop(scene: Scene) -> None:
    """Fill the background: a gradient, then blurred blobs, bokeh discs or out-of-focus panels."""
    traits = scene.traits
    first, second, third = (array(color) for color in traits.backdrop_colors)
    small = np.linspace(0, 1, FIELD_SIDE, dtype=np.float32)
    lean = scene.backdrop_places[0, 0]
    slope = lean * small[:, None] + (1 - lean) * small[None, :]
    field = first + slope[..., None] * (0.45 * (second - first))
    for order, (x, y, extent, choice) in enumerate(scene.backdrop_places.tolist()):
        color = ((1 - choice) * second + choice * third).tolist()
        center = (int(x * FIELD_SIDE), int(y * FIELD_SIDE))
        if traits.backdrop == "blobs" and order < 9:
            cv2.circle(field, center, int((0.08 + 0.2 * extent) * FIELD_SIDE), color, -1)
        elif traits.backdrop == "bokeh":
            disc = field.copy()
            bright = [min(1.0, channel * 0.6 + 0.5) for channel in color]
            cv2.circle(disc, center, int((0.02 + 0.05 * extent) * FIELD_SIDE), bright, -1, cv2.LINE_AA)
            field += 0.5 * (disc - field)
        elif traits.backdrop == "panels" and order < 6:
            corner = (center[0] + int((0.1 + 0.3 * extent) * FIELD_SIDE), center[1] + FIELD_SIDE)
            cv2.rectangle(field, center, corner, color, -1)
    sigma = {"gradient": 1.0, "blobs": 14.0, "bokeh": 1.2, "panels": 2.0}[traits.backdrop]
    scene.canvas.image[:] = enlarge(array(cv2.GaussianBlur(field, (0, 0), sigma)), scene.canvas.side)


def paint_body(scene: Scene) -> None:
    """Neck and shoulders, then clothing over them, then the head's shadow."""
    traits, canvas = scene.traits, scene.canvas
    neck = traits.neck_width
    half = [(neck, 0.1), (neck, 0.3), (neck + 0.01, 0.395), (neck + 0.07, 0.45), (0.36, 0.50), (0.52, 0.58), (0.6, 0.9)]
    right = array(half)
    canvas.paint(scene.silhouette_shape(_mirror(right)), scene.body, "neck")
    for side in (-1, 1):
        tendon = ribbon(smooth([(side * neck * 0.85, 0.34), (side * 0.07, 0.45), (side * 0.03, 0.54)]), 0.02)
        canvas.shade(scene.silhouette_shape(tendon, blur=0.012), 0.22, only=("neck",))
    edge, dip = {"round": (0.10, 0.50), "vee": (0.09, 0.62), "crew": (0.03, 0.455), "jacket": (0.04, 0.60)}.get(
        traits.cloth_style, (0.24, 0.53)
    )
    pointed = traits.cloth_style in ("vee", "jacket")
    start = neck + edge
    top = float(np.interp(start, right[1:, 0], right[1:, 1])) - 0.008
    opening = [(0.0, dip), (0.5 * start, top + (0.5 if pointed else 0.82) * (dip - top)), (start, top)]
    outer = [(x + 0.004, y - 0.012) for x, y in half if x > start + 0.03]
    cloth = array([*opening, *outer, (0.62, 1.0)])
    folds = 1 + 0.54 * enlarge(array(cv2.GaussianBlur(scene.noise, (0, 0), 3.0)), canvas.side)
    shading = (folds * np.clip(scene.body[..., 1] / traits.skin[1], 0, 1.2))[..., None]
    if traits.cloth_style == "jacket":
        inner = array([(0.0, dip - 0.1), (0.08, 0.47), (neck + 0.02, 0.40), (0.3, 0.6), (0.3, 1.0)])
        canvas.paint(scene.silhouette_shape(_mirror(inner)), array(traits.cloth_second) * shading, "cloth")
    mask = scene.silhouette_shape(_mirror(cloth, steps=1 if pointed else 6))
    canvas.paint(mask, array(traits.cloth_color) * shading, "cloth")
    for side in (-1, 1):
        seam = smooth(array(opening) * (side, 1) + (0, 0.012))
        canvas.shade(scene.silhouette_shape(ribbon(seam, 0.006), blur=0.002), 0.4, only=("cloth",))
    # Narrowed about the image's middle and moved down, away from the lamp.
    shadow = scene.outline * array([0.94, 1]) + array([0.03 - 0.08 * traits.light[0], 0.055])
    canvas.shade(canvas.shape(shadow, blur=0.016), 0.5, only=("neck",))
    canvas.shade(canvas.shape(shadow, blur=0.03), 0.35, only=("cloth", "hair"))


def _mirror(right: F32, steps: int = 8) -> F32:
    """Closed symmetrical curve from its right half (n, 2), top first; `steps` 1 keeps the corners."""
    return np.concatenate([smooth(part, steps=steps) for part in (right, flipped(right))])


# --- hair --------------------------------------------------------------------------------------------------------


def _hair_outer(scene: Scene) -> F32:
    """Outer edge of the hair from the image's left end over the top to the right, (n, 2) in head coordinates."""
    traits = scene.traits
    curly = traits.hair_style == "curly"
    volume, cheek = traits.hair_volume, traits.cheek_width
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
    return smooth(curve * (1 + rough * scene.outline_jitter[: len(curve), None]), steps=4)


def _hairline_points(traits: Traits) -> F32:
    """Lower edge of the hair over the forehead from the image's right temple to its left, (n, 2) head coordinates."""
    if traits.hairline == "fringe":
        return both(knots([0.222, 0.19, 0.10, 0], [-0.03, -0.085, -0.108, -0.112]))
    if traits.hairline == "center":
        return both(knots([0.226, 0.195, 0.115, 0.03, 0], [-0.02, -0.12, -0.205, -0.258, -0.285]))
    if traits.hairline == "side":
        part = abs(traits.hair_part)
        across = [0.226, 0.205, part + 0.06, part, part - 0.06, -0.08, -0.175, -0.222]
        points = knots(across, [-0.02, -0.12, -0.225, -0.275, -0.245, -0.195, -0.135, -0.03])
        return points if traits.hair_part > 0 else flipped(points)
    return both(knots([0.236, 0.228, 0.205, 0.15, 0.07, 0], [-0.01, -0.09, -0.165, -0.225, -0.24, -0.242]))


def paint_hair_back(scene: Scene) -> None:
    """Hair behind the neck and, for a bun, above the head."""
    canvas, style = scene.canvas, scene.traits.hair_style
    if style == "bun":
        outline = scene.pose.silhouette(ellipse(0.0, -0.42, 0.095, 0.085))
        bun = canvas.shape(outline)
        canvas.paint(bun, scene.hair, "hair")
        canvas.shade(canvas.shape(ribbon(outline, 0.03), blur=0.015, clip=bun), 0.6)
    if style != "bald":
        # Short hair needs its back too: a turned head would show the background between hair and temple.
        canvas.paint(scene.silhouette_shape(_hair_outer(scene)), scene.hair * 0.62, "hair")


def paint_hair_front(scene: Scene) -> None:
    """Hair over the forehead and beside the face, with its shadow on the skin."""
    traits, canvas, pose = scene.traits, scene.canvas, scene.pose
    if traits.hair_style == "bald":
        return
    line = smooth(_hairline_points(traits), steps=6)
    line[:, 1] += scene.outline_jitter[-len(line) :] * (0.009 if traits.hairline == "fringe" else 0.005)
    line = smooth(line, steps=4)
    inner = array([(0.245, 0.045)])
    end = traits.hair_length
    if end:
        inner = smooth(knots([0.2, 0.235, 0.243, 0.236], [end, min(0.36, 0.8 * end), min(0.2, 0.5 * end), 0.07]))
    opening = np.concatenate([pose.silhouette(inner), pose.surface(line, 0.012), pose.silhouette(flipped(inner))])
    outline = np.concatenate([pose.silhouette(_hair_outer(scene)), opening])
    drop = array([-0.012 * traits.light[0], 0.014])
    canvas.shade(canvas.shape(outline + drop, blur=0.012, clip=scene.head), 0.38)
    canvas.paint(canvas.shape(outline), scene.hair, "hair")
    canvas.shade(canvas.shape(ribbon(opening, 0.012), blur=0.008), 0.25, only=("hair",))


# --- things worn -------------------------------------------------------------------------------------------------


def paint_glasses(scene: Scene) -> None:
    """Lenses, rims, bridge and temples."""
    traits, canvas = scene.traits, scene.canvas
    if traits.glasses == "none":
        return
    frame = array(traits.glasses_color)
    dark = traits.glasses == "dark"
    half_width, half_height = (0.090, 0.066) if dark else (0.085, 0.058)
    eyes = np.isin(canvas.labels, (CLASS["l_eye"], CLASS["r_eye"]))
    eye_labels = canvas.labels[eyes]
    for side in (-1, 1):
        outline = ellipse(side * EYE_X, 0.008, half_width, half_height, traits.glasses_roundness)
        rim = scene.pose.surface(outline, 0.03)
        canvas.shade(canvas.shape(rim + array([0, 0.012]), blur=0.008), 0.16)
        lens = canvas.shape(rim)
        if dark:
            slope = np.linspace(0.0, 0.16, canvas.side, dtype=np.float32)[:, None, None] + 0.03 + 0.15 * frame
            canvas.paint(lens, np.broadcast_to(slope, canvas.image.shape), "eye_g", opacity=0.95)
        else:
            canvas.paint(lens, (0.85, 0.9, 0.95), "eye_g", opacity=0.06)
        streak = array([(-0.06, 0.05), (-0.025, 0.05), (0.03, -0.05), (-0.005, -0.05)]) + (side * EYE_X, 0.0)
        glare = scene.surface_shape(streak, 0.03, 0.006, lens)
        canvas.paint(glare, (1, 1, 1), opacity=0.12 if dark else 0.10)
        canvas.paint(canvas.shape(ring(rim, 0.011 if dark else 0.008)), frame, "eye_g")
        upper_edge = ribbon(np.concatenate([rim[18:], rim[:2]]) - array([0, 0.001]), 0.002)
        canvas.paint(canvas.shape(upper_edge, blur=0.001), frame + 0.35, opacity=0.5)
        temple = array([(side * (0.112 + half_width * 0.97), -0.02), (side * 0.268, -0.012)])
        arm = scene.surface_shape(ribbon(temple, 0.010), 0.01)
        canvas.paint(arm, frame * 0.8, "eye_g", only=("skin",))
    bridge = [(-0.028, 0.0), (0.0, -0.012), (0.028, 0.0)]
    canvas.paint(scene.surface_line(bridge, 0.009, 0.03), frame, "eye_g")
    if not dark:
        canvas.labels[eyes] = eye_labels


def paint_necklace(scene: Scene) -> None:
    """A chain around the neck, perhaps with a pendant."""
    traits, canvas = scene.traits, scene.canvas
    if not traits.necklace:
        return
    neck = traits.neck_width + 0.03
    chain = scene.pose.silhouette(smooth(both(knots([-neck, -0.7 * neck, 0], [0.405, 0.462, 0.485])), steps=12))
    canvas.shade(canvas.shape(ribbon(chain + array([0, 0.006]), 0.013), blur=0.003), 0.4)
    metal = array(traits.metal)
    canvas.paint(canvas.shape(ribbon(chain, 0.015)), metal * 0.72, "neck_l", only=("neck", "cloth"))
    beads = [(x, y, 0.007) for x, y in chain[1::2].tolist()]
    if traits.pendant:
        x, y = chain[len(chain) // 2].tolist()
        beads.append((x, y + 0.02, 0.02))
    balls = [ellipse(x, y, radius, radius, count=14) for x, y, radius in beads]
    canvas.paint(canvas.shape(*balls), metal, "neck_l", only=("neck", "cloth", "neck_l"))
    glints = [ellipse(x - 0.3 * r, y - 0.3 * r, 0.35 * r, 0.35 * r, count=10) for x, y, r in beads]
    canvas.paint(canvas.shape(*glints, blur=0.001), (1.0, 1.0, 0.97), opacity=0.8, only=("neck_l",))


def paint_hat(scene: Scene) -> None:
    """A knitted hat, a brimmed hat or a cap, with its shadow on the forehead."""
    traits, canvas, pose = scene.traits, scene.canvas, scene.pose
    if traits.hat == "none":
        return
    x, y = pose.head_frame(canvas.side)
    if traits.hat == "beanie":
        knit = 1 + 0.14 * np.sin(x / np.sqrt(np.clip(1 - (y / 0.8) ** 2, 0.3, 1)) * 190)
        crown = knots([0.29, 0.305, 0.24, 0.11, 0], [-0.12, -0.25, -0.40, -0.475, -0.485])
        low = knots([0.29, 0.16, 0], [-0.10, -0.165, -0.185])
        fold = knots([0.30, 0.31, 0.17, 0], [-0.11, -0.20, -0.262, -0.28])
        parts = [(_hat_part(crown, low), 1.0), (_hat_part(fold, low), 0.82)]
    else:
        knit = 1 + 0.04 * np.sin(x * 300) * np.sin(y * 300)
        crown = knots([0.285, 0.29, 0.235, 0.10, 0], [-0.16, -0.27, -0.41, -0.475, -0.46])
        low = knots([0.285, 0.15, 0], [-0.14, -0.18, -0.19])
        band = knots([0.288, 0.29, 0.15, 0], [-0.2, -0.25, -0.285, -0.295])
        wide, deep, band_light = (0.47, 0.055, 0.45) if traits.hat == "brim" else (0.27, 0.062, 1.0)
        brim = knots(wide * array([1, 0.82, 0.4, 0]), [-0.20, -0.235, -0.245, -0.25])
        edge_y = [-0.195, -0.19 + deep * 0.5, -0.185 + deep * 0.9, -0.19 + deep]
        edge = knots(wide * array([1, 0.85, 0.45, 0]), edge_y)
        parts = [(_hat_part(crown, low), 1.0), (_hat_part(band, low), band_light), (_hat_part(brim, edge), 0.85)]
    round_light = np.clip(1.05 - 1.6 * (x - 0.12 * traits.light[0]) ** 2 / 0.12, 0.4, 1.1)
    field = array(traits.hat_color) * (round_light * knit)[..., None]
    shadow = pose.silhouette(parts[-1][0]) + array([-0.015 * traits.light[0], 0.03])
    canvas.shade(canvas.shape(shadow, blur=0.015), 0.5, only=("skin", "l_brow", "r_brow", "hair", "l_ear", "r_ear"))
    for part, brightness in parts:
        outline = pose.silhouette(part)
        mask = canvas.shape(outline)
        canvas.paint(mask, field * brightness, "hat")
        canvas.shade(canvas.shape(ring(outline, 0.012), blur=0.007, clip=mask), 0.4)


def _hat_part(top: F32, bottom: F32) -> F32:
    """Closed curve over the top and back along the bottom; both (n, 2), from the right edge to the middle."""
    return np.concatenate([smooth(both(top)), smooth(both(bottom)[::-1])])


def paint_earrings(scene: Scene) -> None:
    """Studs, hoops or drops below the ears."""
    traits, canvas = scene.traits, scene.canvas
    if traits.earring == "none":
        return
    metal = array(traits.metal)
    for side in (-1, 1):
        # A turned head hides the ear on its far side.
        if side * traits.yaw > 0.2:
            continue
        lobe = (side * (0.262 * traits.cheek_width + 0.012), 0.045 + 0.066 * traits.ear_size)
        x, y = scene.pose.silhouette([lobe])[0].tolist()
        if traits.earring == "hoop":
            parts = [ring(ellipse(x, y + 0.038, 0.026, 0.038), 0.011)]
        elif traits.earring == "drop":
            drop = [(x, y + 0.01), (x + 0.016, y + 0.055), (x, y + 0.085), (x - 0.016, y + 0.055)]
            parts = [ellipse(x, y, 0.010, 0.010), smooth(drop, closed=True)]
        else:
            parts = [ellipse(x, y, 0.014, 0.014)]
        for outline in parts:
            canvas.shade(canvas.shape(outline + array([0.002, 0.006]), blur=0.004), 0.35)
            canvas.paint(canvas.shape(outline), metal * 0.78, "ear_r")
            glint = canvas.shape(shrunk(outline, 0.5) - array([0.003, 0.004]), blur=0.002)
            canvas.paint(glint, np.clip(metal * 1.35, 0, 1), opacity=0.7, only=("ear_r",))
