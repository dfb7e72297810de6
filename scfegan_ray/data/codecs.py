"""Pictures of the dataset to bytes and back: PNG, which loses nothing, and WebP for pages."""

from __future__ import annotations

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scfegan_ray.errors import DataError


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
