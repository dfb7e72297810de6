"""A photograph that is edited: what goes to the model, what comes back, and what is kept."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from profiles import icc

from scfegan_ray import faces
from scfegan_ray.data import align
from scfegan_ray.errors import DataError
from scfegan_ray.serving.edits import Square
from scfegan_ray.serving.photograph import SOURCE_TYPE, Filling, Photograph

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (120, 200, 3), np.uint8)
MIDDLE = Square(0.5, 0.3, 0.5, 0.0)  # 100 px, from (50, 10)


def encoded(image: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **more)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def decode(image: Image.Image, form: str = "PNG", **more: Any) -> Photograph:
    return Photograph.decode(encoded(image, form, **more), max_megapixels=1)


def filling(square: Square, size_px: int, color: Any = (10, 200, 30)) -> Filling:
    """Fill the middle quarter with one color."""
    mask = np.zeros((size_px, size_px), np.uint8)
    mask[size_px // 4 : 3 * size_px // 4, size_px // 4 : 3 * size_px // 4] = 1
    picture = RNG.integers(0, 256, (size_px, size_px, 3), np.uint8)
    picture[mask > 0] = color
    return Filling(square, picture, mask)


def changed(result: NDArray[np.uint8], before: NDArray[np.uint8] = PIXELS) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (result != before).any(axis=2)
    return found


def test_square_of_the_models_size_goes_and_comes_back_exactly() -> None:
    photograph = decode(Image.fromarray(PIXELS))
    crop = photograph.crop(MIDDLE, 100)
    assert np.array_equal(crop, PIXELS[10:110, 50:150])
    mask = RNG.integers(0, 2, (100, 100)).astype(np.uint8)
    picture = RNG.integers(0, 256, (100, 100, 3), np.uint8)
    result = np.asarray(opened(photograph.encode([Filling(MIDDLE, picture, mask)], "png")))
    expected = PIXELS.copy()
    expected[10:110, 50:150][mask > 0] = picture[mask > 0]
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("square", [MIDDLE, Square(0.52, 0.31, 0.47, 0.4), Square(0.1, 0.05, 0.6, -2.0)])
@pytest.mark.parametrize("size_px", [16, 64, 256])
def test_nothing_changes_outside_the_hole(square: Square, size_px: int) -> None:
    photograph = decode(Image.fromarray(PIXELS))
    one = filling(square, size_px)
    result = np.asarray(opened(photograph.encode([one], "png")))
    # Each pixel's center, where the square has it, by complex numbers.
    centers = (np.arange(200) + 0.5)[None] + 1j * (np.arange(120) + 0.5)[:, None]
    at = (centers - (square.x + 1j * square.y) * 200) * np.exp(-1j * square.angle) / (square.side * 200) + 0.5 + 0.5j
    hole = (np.abs(at.real - 0.5) < 0.25) & (np.abs(at.imag - 0.5) < 0.25)
    edge = np.minimum(np.abs(np.abs(at.real - 0.5) - 0.25), np.abs(np.abs(at.imag - 0.5) - 0.25)) < 1e-6
    assert not (changed(result) & ~hole & ~edge).any()
    reach = max(2 / size_px, 3 / (200 * square.side))  # of what is interpolated
    deep = (np.abs(at.real - 0.5) < 0.25 - reach) & (np.abs(at.imag - 0.5) < 0.25 - reach)
    assert deep.any()
    assert np.abs(result[deep].astype(int) - (10, 200, 30)).max() <= 1


def test_fillings_beyond_the_photograph_and_without_a_hole_change_nothing() -> None:
    photograph = decode(Image.fromarray(PIXELS))
    nothing = Filling(MIDDLE, np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))
    for one in (nothing, filling(Square(5.0, 5.0, 0.1, 0.0), 8), filling(Square(-5.0, 0.1, 0.1, 0.0), 8)):
        assert not changed(np.asarray(opened(photograph.encode([one], "png")))).any()


def test_later_faces_lie_above_earlier_ones() -> None:
    photograph = decode(Image.fromarray(PIXELS))
    result = np.asarray(
        opened(photograph.encode([filling(MIDDLE, 100, (1, 1, 1)), filling(MIDDLE, 100, (2, 2, 2))], "png"))
    )
    assert (result[35:85, 75:125] == 2).all()


def test_orientation_is_applied_and_other_metadata_stays() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif[0x8825] = {1: "N"}
    turned = Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_90)
    photograph = decode(turned, "TIFF", exif=exif.tobytes())
    assert photograph.size == (200, 120)
    assert np.array_equal(photograph.pixels, PIXELS)
    for form in ("png", "jpeg"):
        result = opened(photograph.encode([filling(MIDDLE, 100)], form))  # type: ignore[arg-type]
        assert result.size == (200, 120)
        assert 0x0112 not in result.getexif()
        assert result.getexif()[0x010F] == "Maker"
        assert result.getexif().get_ifd(0x8825)[1] == "N"


def test_preview_of_what_was_there_before_goes() -> None:
    head = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\x06\0\0\0\x1a\0\0\0"
    preview = encoded(Image.new("RGB", (16, 16), "red"), "JPEG")
    second = b"\x02\0\x01\x02\x04\0\x01\0\0\0\x3e\0\0\0\x02\x02\x04\0\x01\0\0\0" + len(preview).to_bytes(4, "little")
    exif = head + (0x20).to_bytes(4, "little") + b"Maker\0" + second + bytes(4) + preview
    data = encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)
    assert preview in data
    result = Photograph.decode(data, max_megapixels=1).encode([], "jpeg")
    assert opened(result).getexif()[0x010F] == "Maker"
    assert preview not in result


def test_only_the_hole_is_converted_to_the_profile_of_the_photograph() -> None:
    profile = icc("Display-P3")
    photograph = decode(Image.fromarray(PIXELS), icc_profile=profile)
    assert changed(photograph.pixels).mean() > 0.5  # the model sees sRGB
    result = opened(photograph.encode([filling(MIDDLE, 100, (200, 40, 60))], "png"))
    assert result.info["icc_profile"] == profile
    native = np.asarray(result)
    hole = np.zeros((120, 200), bool)
    hole[35:85, 75:125] = True
    assert np.array_equal(native[~hole], PIXELS[~hole])
    seen = ImageCms.profileToProfile(result, io.BytesIO(profile), ImageCms.createProfile("sRGB"))
    assert np.abs(np.asarray(seen)[hole].astype(int) - (200, 40, 60)).max() <= 2
    assert (native[hole] != (200, 40, 60)).any()


def test_gray_with_a_profile_of_its_own_stays_gray() -> None:
    gray = PIXELS[..., 0]
    photograph = decode(Image.fromarray(gray), icc_profile=icc("gray"))
    result = opened(photograph.encode([filling(MIDDLE, 100, (128, 128, 128))], "png"))
    assert (result.mode, result.info["icc_profile"]) == ("L", icc("gray"))
    levels = np.asarray(result)
    assert np.array_equal(levels[:10], gray[:10])
    assert abs(int(levels[60, 100]) - 55) <= 1  # of gamma 1: (128 / 255) ** 2.2 of 255


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_other_models_become_rgb_of_the_same_colors(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    result = opened(decode(image).encode([filling(MIDDLE, 100)], "png"))
    assert result.mode == "RGB"
    assert np.array_equal(np.asarray(result)[:10], np.asarray(image.convert("RGB"))[:10])
    assert tuple(np.asarray(result)[60, 100]) == (10, 200, 30)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_stays_but_in_the_hole(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("RGBA")
    image.putalpha(Image.fromarray(PIXELS[..., 1]))
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "PA":
        image = image.quantize(16)
    photograph = decode(image)
    result = opened(photograph.encode([filling(MIDDLE, 100)], "png"))
    assert result.mode == "RGBA"
    assert np.array_equal(np.asarray(result)[:10], np.asarray(image.convert("RGBA"))[:10])
    assert tuple(np.asarray(result)[60, 100]) == (10, 200, 30, 255)
    flat = np.asarray(opened(photograph.encode([filling(MIDDLE, 100)], "jpeg"))).astype(int)
    assert np.abs(flat[:10] - photograph.pixels[:10]).mean() < 12  # on white, as JPEG has it


def test_inks_become_srgb_and_that_is_said() -> None:
    photograph = decode(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG")
    assert photograph.notes == ("colors of the model CMYK become sRGB",)
    assert opened(photograph.encode([], "png")).mode == "RGB"


PACKET = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture">'
    '<dc:rights>mine</dc:rights></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


@pytest.mark.parametrize("form", ["png", "jpeg"])
@pytest.mark.parametrize(
    ("packet", "kept"),
    [
        (PACKET, "mine"),
        ("", ""),
        ("<broken", ""),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', ""),
        (PACKET.replace("mine", "m" * 70_000), ""),
    ],
)
def test_file_says_that_a_model_has_painted(form: Any, packet: str, kept: str) -> None:
    more = {"xmp": packet.encode()} if packet and len(packet) < 65_000 else {}
    data = encoded(Image.fromarray(PIXELS), "JPEG" if len(packet) < 65_000 else "WEBP", **more)
    result = opened(Photograph.decode(data, max_megapixels=1).encode([filling(MIDDLE, 100)], form))
    written = result.info["xmp"].decode()
    assert f'DigitalSourceType="{SOURCE_TYPE}"' in written
    assert "digitalCapture" not in written
    assert kept in written


def test_any_aspect_and_a_face_at_the_border() -> None:
    wide = Image.fromarray(np.tile(PIXELS, (1, 5, 1)))
    photograph = decode(wide)
    assert photograph.size == (1000, 120)
    assert photograph.square_px(photograph.middle()) == align.Square(500.0, 60.0, 120.0, 0.0)
    assert photograph.crop(Square(0.0, 0.0, 0.1, 0.3), 64).shape == (64, 64, 3)
    assert photograph.preview(500).shape == (60, 500, 3)
    assert photograph.preview(5000) is photograph.pixels


def test_squares_of_documents_are_relative_to_the_width() -> None:
    photograph = decode(Image.fromarray(PIXELS))
    square = align.Square(70.0, 30.0, 50.0, 0.25)
    assert photograph.square_px(photograph.relative(square)) == square
    twice = decode(Image.fromarray(PIXELS).resize((400, 240)))
    assert twice.square_px(photograph.relative(square)) == align.Square(140.0, 60.0, 100.0, 0.25)


@pytest.mark.parametrize("data", [b"", b"text", encoded(Image.new("RGB", (1100, 1100)))])
def test_what_is_no_photograph_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        Photograph.decode(data, max_megapixels=1)


def test_a_large_filling_is_smooth() -> None:
    face = faces.draw_face(0, 3, 256).image
    photograph = decode(Image.fromarray(face))
    small = photograph.crop(Square(), 64)
    one = Filling(Square(), small, np.ones((64, 64), np.uint8))
    result = np.asarray(opened(photograph.encode([one], "png"))).astype(int)
    assert np.abs(result - face).mean() < 6
