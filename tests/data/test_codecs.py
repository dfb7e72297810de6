"""Pictures come back as they were, and others read them."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from scfegan_ray.data.codecs import decode_png, encode_png


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (40, 1), (1, 40, 3), (64, 64, 3)])
@pytest.mark.parametrize("levels", [2, 256])
def test_png_round_trip(shape: tuple[int, ...], levels: int) -> None:
    noise = np.random.default_rng(0).integers(0, levels, shape, np.uint8)
    for image in (noise, np.full_like(noise, 7), np.cumsum(noise, axis=0, dtype=np.uint8)):
        encoded = encode_png(image)
        for data in (encoded, pa.py_buffer(encoded)):
            decoded = decode_png(data)
            assert decoded.dtype == np.uint8
            assert np.array_equal(decoded, image)


def test_others_read_our_png() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(Image.open(io.BytesIO(encode_png(image))), image)
