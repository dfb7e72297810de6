"""A face to a row of the dataset and back, its pictures as PNG, which loses nothing; and WebP for pages."""

from __future__ import annotations

import hashlib
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scfegan_ray.errors import DataError


def encode_row(
    key: str,
    image: NDArray[np.uint8],
    sketch: NDArray[np.uint8],
    color: NDArray[np.uint8],
    hair: NDArray[np.uint8] | None,
    eyes: NDArray[np.float32],
) -> dict[str, Any]:
    """Make the row of one face; its columns are documented in `dataset`.

    Args:
        key: of the image.
        image: (S, S, 3) uint8 RGB.
        sketch: (S, S) uint8 {0, 1}.
        color: (S, S, 3) uint8 RGB.
        hair: (S, S) uint8 {0, 1}, or None where nobody knows.
        eyes: (4,) float pixels.
    """
    row: dict[str, Any] = {
        "key": key,
        "image": encode_png(image),
        "sketch": encode_png(sketch * np.uint8(255)),
        "color": encode_png(color),
        "hair": None if hair is None else encode_png(hair * np.uint8(255)),
        "eyes": eyes.astype(np.float32),
    }
    digest = hashlib.sha256()
    for value in row.values():
        data = value.encode() if isinstance(value, str) else b"" if value is None else bytes(value)
        digest.update(len(data).to_bytes(8, "big") + data)
    packed = color.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    return row | {
        "sha256": digest.hexdigest(),
        "sketch_area": cv2.countNonZero(sketch) / sketch.size,
        "num_colors": pc.count_distinct(pa.array(packed.reshape(-1))).as_py(),
        "color_error": float(cv2.norm(image, color, cv2.NORM_L1)) / color.size,
        "hair_area": None if hair is None else cv2.countNonZero(hair) / hair.size,
    }


def decode_row(value: dict[str, Any]) -> dict[str, Any]:
    """Decode the columns of one stored row.

    Args:
        value: columns by name; the pictures are bytes or Arrow buffers.

    Returns:
        key: str; image: (S, S, 3) uint8 RGB; sketch: (S, S) uint8 {0, 1}; color: (S, S, 3) uint8 RGB;
        hair: (S, S) uint8 {0, 1} or None; eyes: (4,) float32 pixels.
    """
    return {
        "key": value["key"],
        "image": decode_png(value["image"]),
        "sketch": decode_png(value["sketch"]) & 1,
        "color": decode_png(value["color"]),
        "hair": None if value["hair"] is None else decode_png(value["hair"]) & 1,
        "eyes": np.asarray(value["eyes"], np.float32),
    }


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W) gray or (H, W, 3) RGB uint8 without loss, so that it decodes fast.

    Decoding is most of what a training image costs. Photographs are stored row by row as the difference from the row
    above: no other of PNG's filters is undone as fast, nor makes them much smaller. Flat areas are fastest unfiltered.
    """
    sample = image[::8]
    is_flat = 2 * np.count_nonzero(sample[:, 1:] == sample[:, :-1]) > sample.size
    row_filter = cv2.IMWRITE_PNG_FILTER_NONE if is_flat else cv2.IMWRITE_PNG_FILTER_UP
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, row_filter])
    assert ok, "OpenCV encodes every uint8 image as PNG"
    return data.tobytes()


def encode_webp(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) RGB uint8 for a page: smaller, and not quite the same."""
    ok, data = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 85])
    assert ok, "OpenCV encodes every uint8 image as WebP"
    return data.tobytes()


def decode_png(data: bytes | pa.Buffer) -> NDArray[np.uint8]:
    """Decode what `encode_png` made."""
    encoded = np.frombuffer(data, np.uint8)
    # The color type in a PNG's header: OpenCV decodes straight to RGB, but not before it is told to expect colors.
    is_rgb = encoded[25:26].tobytes() == b"\x02"
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB if is_rgb else cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise DataError("an image of the prepared dataset is damaged; delete the dataset and prepare it anew")
    return image.astype(np.uint8, copy=False)
