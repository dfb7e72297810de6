"""Pixels from files that strangers made: every format and color model, and no harm from what is none."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile
from profiles import icc

from scfegan_ray import faces
from scfegan_ray.data import decoding, parsing
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


def test_whole_photograph_however_long() -> None:
    image = halves(200, 40)
    whole = decoding.decode_whole(encoded(image), max_megapixels=1.0)
    assert np.array_equal(whole, np.asarray(image))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decoding.decode_whole(encoded(image, exif=exif), max_megapixels=1.0)
    assert upright.shape == (200, 40, 3) and np.array_equal(upright, np.rot90(whole, -1))
    with pytest.raises(DataError, match="more than 0.001 megapixels"):
        decoding.decode_whole(encoded(image), max_megapixels=0.001)
    with pytest.raises(DataError, match="longer than 3 times"):
        decode(encoded(image))


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


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ((0, 1), "L"),
        ((3, 40), "L"),
        ((0, 255), "I;16"),
        ((0, 65535), "I;16"),
        ((0.0, 1.0), "F"),
        (((0, 0, 0), (64, 0, 0)), "RGB"),
        (((0, 0, 1), (0, 0, 2)), "P"),
        (((0, 0, 0), (0, 0, 0)), "P"),
        (((9, 9, 9, 0), (9, 9, 9, 255)), "RGBA"),
        (((0, 0, 0, 255), (1, 1, 1, 255)), "RGBA"),
    ],
)
def test_mask_is_the_brighter_of_any_two_values(values: tuple[Any, Any], mode: str) -> None:
    inside = np.zeros((20, 30), bool)
    inside[4:9, 5:7] = True
    if mode == "P":
        image = Image.fromarray(inside.astype(np.uint8))
        image.putpalette([level for color in values for level in color])
    else:
        kind = {"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)
        image = Image.fromarray(np.array(values, kind)[inside.astype(int)])
    data = encoded(image, "TIFF" if mode == "F" else "PNG")
    assert np.array_equal(decoding.decode_mask(data, max_megapixels=1.0), inside)


@pytest.mark.parametrize(("value", "whole"), [(0, False), (1, True), (255, True)])
def test_mask_of_one_value(value: int, whole: bool) -> None:
    data = encoded(Image.new("L", (20, 20), value))
    assert (decoding.decode_mask(data, max_megapixels=1.0) == whole).all()


def test_profile_is_applied() -> None:
    wide = Image.new("RGB", (32, 32), (174, 71, 75))
    # Display-P3 to linear light, by its matrix to sRGB's, and back by hand: (190, 60, 70).
    pixels = decode(encoded(wide, icc_profile=icc("Display-P3")))
    assert np.abs(pixels[5, 5].astype(int) - (190, 60, 70)).max() <= 1
    alpha = wide.copy()
    alpha.putalpha(255)
    assert np.array_equal(decode(encoded(alpha, icc_profile=icc("Display-P3"))), pixels)
    # Half of the light is 188 in sRGB.
    gray = decode(encoded(Image.new("L", (32, 32), 128), icc_profile=icc("gray")))
    assert np.abs(gray.astype(int) - 188).max() <= 1


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_inks_are_those_of_their_profile(form: str) -> None:
    profile = icc("press")
    for inks, gray in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((0, 255, 0, 255), 59)):
        image = Image.new("CMYK", (32, 32), inks)
        # Lightness 100, 50 and 25 are 255, 119 and 59 in sRGB; as inks without a profile they are no grays.
        pixels = decode(encoded(image, form, icc_profile=profile))
        assert np.abs(pixels.astype(int) - gray).max() <= 2, inks
    assert (decode(encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "TIFF")) == (0, 255, 255)).all()


@pytest.mark.parametrize("profile", [b"no profile", icc("Display-P3")[:150], icc("gray"), icc("sRGB"), b""])
def test_profile_that_says_nothing_means_none(profile: bytes) -> None:
    image = Image.new("RGB", (32, 32), (174, 71, 75))
    assert (decode(encoded(image, icc_profile=profile)) == (174, 71, 75)).all()


@pytest.mark.parametrize("form", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_in_use(bits: int, channels: int, form: str) -> None:
    ramp = np.tile(np.linspace(0, 2**bits - 1, 64).astype(np.uint16), (64, 1))
    pixels = ramp if channels == 1 else np.dstack([ramp] * 3)
    if channels == 4:
        pixels = np.dstack([pixels, np.full_like(ramp, 2**bits - 1)])
    ok, data = cv2.imencode(form, pixels)
    assert ok
    notes: list[str] = []
    found = decode(data.tobytes(), note=notes.append)
    expected = np.linspace(0, 255, 64)
    assert np.abs(found - expected[None, :, None]).max() <= 1
    assert notes == ([] if bits == 16 else [f"a 16-bit file that uses {bits} bits; taken for {bits} bits"])


def label_map() -> np.ndarray:
    return faces.draw_face(0, 3, 256).labels


@pytest.mark.parametrize("size_px", [64, 256, 1000])
@pytest.mark.parametrize("kind", ["ids", "spread", "palette", "hair", "hair 0/1", "jpeg"])
def test_label_maps_are_no_photographs(kind: str, size_px: int) -> None:
    labels = parsing.resize_labels(label_map(), size_px)
    hair = parsing.hair_region(labels)
    palette = np.random.default_rng(0).integers(0, 256, (len(parsing.LABELS), 3), np.uint8)
    pixels = {
        "ids": labels,
        "spread": labels * np.uint8(13),
        "palette": palette[labels],
        "hair": hair * np.uint8(255),
        "hair 0/1": hair,
        "jpeg": hair * np.uint8(255),
    }[kind]
    how = ("JPEG", {"quality": 90}) if kind == "jpeg" and size_px > 64 else ("PNG", {})
    image = decode(encoded(Image.fromarray(pixels), how[0], **how[1]), at_least_px=size_px)
    with pytest.raises(
        DataError, match=r"a label map or mask, no photograph, by its looks: flat areas of \d+ (gray|col)"
    ):
        decoding.check_photograph(image)


def complaint(image: np.ndarray) -> str | None:
    try:
        decoding.check_photograph(image)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("size_px", [48, 256])
@pytest.mark.parametrize("colors", [256, 64, 16])
@pytest.mark.parametrize("dither", [0, 3])
def test_photographs_with_a_palette_stay(colors: int, dither: int, size_px: int) -> None:
    rng = np.random.default_rng(0)
    drawn = faces.draw_face(0, 3, size_px).image
    # Drawn skin is smoother than any camera's.
    photograph = Image.fromarray(np.clip(drawn + rng.normal(0, 6, drawn.shape), 0, 255).astype(np.uint8))
    for image in (photograph, photograph.convert("L").convert("RGB"), photograph.point(lambda level: level // 8)):
        few = image.quantize(palette=image.quantize(colors), dither=Image.Dither(dither))
        assert complaint(decode(encoded(few, "GIF"), at_least_px=size_px)) is None
        assert complaint(np.asarray(image)) is None
    assert complaint(drawn) is None


def test_resize_keeps_an_image_of_the_right_size() -> None:
    image = np.asarray(halves())
    assert decoding.resize(image, 64) is image
    assert decoding.resize(image, 32).shape == (32, 32, 3)
    small = decoding.resize(image, 2)
    assert is_red(small[0, 0]) and is_blue(small[1, 1])
    assert decoding.resize(image, 130).shape == (130, 130, 3)
