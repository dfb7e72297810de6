"""Pixels from files that strangers made: every format and color model, and no harm from what is none."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from scfegan_ray.data import decoding
from scfegan_ray.errors import DataError

FORMATS = {"JPEG": "RGB", "PNG": "RGB", "WEBP": "RGB", "BMP": "RGB", "TIFF": "RGB", "GIF": "P", "AVIF": "RGB"}


def halves(width: int = 64, height: int = 64) -> Image.Image:
    """Return a picture whose left half is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (250, 10, 10)
    pixels[:, width // 2 :] = (10, 10, 250)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return buffer.getvalue()


def decode(data: bytes, **how: Any) -> np.ndarray:
    return decoding.decode_photograph(data, **{"max_megapixels": 100.0, "at_least_px": 64} | how)


def is_red(pixel: np.ndarray) -> bool:
    return bool(pixel[0] > 200 and pixel[2] < 60)


def is_blue(pixel: np.ndarray) -> bool:
    return bool(pixel[2] > 200 and pixel[0] < 60)


@pytest.mark.parametrize(("form", "mode"), FORMATS.items())
def test_every_format_comes_as_rgb(form: str, mode: str) -> None:
    pixels = decode(encoded(halves().convert(mode), form))
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert is_red(pixels[32, 10]) and is_blue(pixels[32, 50])


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_color_model_comes_as_rgb(mode: str) -> None:
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    gray = np.full((32, 32), 128, np.uint8)
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    pixels = decode(encoded(image, form))
    assert pixels.shape == (32, 32, 3)
    assert pixels.mean() == pytest.approx(128, abs=2)


def test_inverted_cmyk_of_photo_editors() -> None:
    pixels = decode(encoded(halves().convert("CMYK"), "JPEG", quality=95))
    assert is_red(pixels[32, 10]) and is_blue(pixels[32, 50])


def test_what_is_transparent_is_white() -> None:
    image = halves().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[255] * 32 + [0] * 32], 64, 0).astype(np.uint8)))
    pixels = decode(encoded(image))
    assert is_red(pixels[32, 10]) and (pixels[32, 50] == 255).all()
    palette = halves().convert("P")
    pixels = decode(encoded(palette, transparency=palette.getpixel((50, 32))))
    assert is_red(pixels[32, 10]) and (pixels[32, 50] == 255).all()


def test_orientation_of_the_camera_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    pixels = decode(encoded(halves(), "JPEG", quality=95, exif=exif))
    assert is_red(pixels[10, 32]) and is_blue(pixels[50, 32])


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "lime")]
    pixels = decode(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    assert is_red(pixels[16, 16])


@pytest.mark.parametrize(("width", "height"), [(90, 40), (40, 90), (41, 40)])
def test_central_square(width: int, height: int) -> None:
    pixels = decode(encoded(halves(width, height)))
    assert pixels.shape == (40, 40, 3)
    assert is_red(pixels[20, 18]) and is_blue(pixels[20, 22])


def test_large_photograph_is_decoded_small_enough() -> None:
    data = encoded(halves(2048, 1024), "JPEG")
    assert decode(data, at_least_px=200).shape == (256, 256, 3)
    assert decode(data, at_least_px=512).shape == (512, 512, 3)
    assert decode(data, at_least_px=1000).shape == (1024, 1024, 3)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) * 4


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not a readable image"),
        (b"%PDF-1.7 " + bytes(100), "not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not a readable image"),
        (encoded(halves(1, 1)), "1x1 pixels, a side smaller than 16"),
        (encoded(halves(2000, 3)), "2000x3 pixels, a side smaller than 16"),
        (encoded(halves(2000, 40)), "2000x40 pixels, longer than 3 times its width"),
        (png_bomb(60_000, 60_000), "more than 100 megapixels"),
        (png_bomb(12_000, 10_000), "12000x10000 pixels, more than 100 megapixels"),
        (encoded(halves(), "JPEG")[:-40], "not a readable image: image file is truncated"),
        (encoded(halves())[:-60], "not a readable image"),
        (encoded(Image.fromarray(np.ones((32, 32), np.float32)), "TIFF"), "pixels are fractions"),
        (encoded(Image.fromarray(np.full((32, 32), 70_000, np.int32)), "TIFF"), "more than 16 bits"),
    ],
)
def test_reason_of_refusal(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(data)


@pytest.mark.parametrize("side", [9_000, 13_000, 60_000])
def test_bomb_is_refused_from_its_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: object) -> None:
        raise AssertionError("pixels are decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(DataError, match="more than 20 megapixels"):
        decode(png_bomb(side, side), max_megapixels=20.0)
    with pytest.raises(DataError, match="pixels are decoded"):
        decode(png_bomb(100, 100), max_megapixels=20.0)


@pytest.mark.parametrize("form", FORMATS)
def test_damage_gives_pixels_or_a_reason(form: str) -> None:
    whole = encoded(halves(80, 70).convert(FORMATS[form]), form)
    rng = np.random.default_rng(len(whole))
    refused = 0
    for trial in range(150):
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[int(rng.integers(1, len(data))) :]
        else:
            for _ in range(trial % 5 + 1):
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        try:
            pixels = decode(bytes(data))
        except DataError as error:
            assert str(error)
            refused += 1
        else:
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    assert refused >= 30, "what was cut short is refused"


def test_mask_is_what_is_bright() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 5:7] = 255
    for mode in ("L", "RGB", "1"):
        found = decoding.decode_mask(encoded(Image.fromarray(mask).convert(mode)), max_megapixels=1.0)
        assert found.dtype == np.bool_
        assert np.array_equal(found, mask > 0)


def test_resize_keeps_an_image_of_the_right_size() -> None:
    image = np.asarray(halves())
    assert decoding.resize(image, 64) is image
    assert decoding.resize(image, 32).shape == (32, 32, 3)
    small = decoding.resize(image, 2)
    assert is_red(small[0, 0]) and is_blue(small[1, 1])
    assert decoding.resize(image, 130).shape == (130, 130, 3)
