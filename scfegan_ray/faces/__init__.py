"""Portraits drawn by this package alone, with an exact label map for every pixel.

Training can start without any download: `draw_face` draws an endless, deterministic supply of faces. Every visible
thing is a *part*: a mask (a smooth closed curve), a color or color field, and the class it belongs to. Parts are
painted in order, so the paint and the labels come from the same shapes and cannot disagree. All random decisions are
made once, in `traits`, before any size is known; the same face therefore appears at each size.

Coordinates inside this package are fractions of the image's side. Heads are described in a frame whose origin is the
point between the eyes, x to the image's right, y down and z toward the camera; `scene.Pose` turns that frame into the
image.
"""

from __future__ import annotations

from scfegan_ray.faces.portrait import DrawnFace, draw_face

__all__ = ["VERSION", "DrawnFace", "draw_face"]

VERSION = 2
"""Of the drawings: raised with each change of a pixel, so that no dataset mixes two."""
