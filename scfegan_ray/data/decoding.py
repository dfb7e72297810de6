"""Bytes that claim to be an image to pixels, or one reason why not: photographs come from strangers.

Size and format are read from the header before any pixel is decoded. Only formats that photographs are kept in are
tried, whatever the file is called.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from scfegan_ray.errors import DataError

VERSION = 2
"""To be raised whenever other pixels come from the same file. Recorded in what is prepared from files, so that no
unfinished dataset goes on with other pixels; one without a record was made by version 1."""

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Endings of the names of files that are taken for photographs."""

MIN_SIDE_PX = 16
"""Narrowest side of a photograph."""

MAX_ASPECT = 3.0
"""Longest side over shortest; the central square of anything longer shows no face."""

MAX_FILE_BYTES = 1 << 28
"""Largest encoded image."""

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_BITS_IN_USE = (8, 10, 12, 14, 16)
# Of cameras, scanners and microscopes.

_BITS_PER_SAMPLE = 258
# Number of the TIFF tag.

_ORIENTATION = 0x0112
# Number of the EXIF tag.

_DESCRIPTIVE_TAGS = frozenset((0x010E, 0x010F, 0x0110, 0x0112, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825))
# Description, maker, model, orientation, software, date, artist, copyright, camera, place; the others lay out the file.

_SRGB_TOLERANCE = 2
# Levels by which profiles that all mean sRGB differ among each other.

_SAMPLED_SIDE_PX = 64
_NOISE = 0.02
# Of the range of an image's levels: what JPEG adds to flat areas.
_MAX_BORDER_SHARE, _MAX_BORDER_SIDES = 0.5, 16.5
_MAX_CLASSES, _CLASSES_SHARE, _MIN_CLASS_SHARE = 20, 0.9, 0.005
_MAX_DRAWN_COLORS, _BLACK, _GRAY_TOLERANCE = 4, 16, 8

_STEPS = np.arange(0, 256, 15, dtype=np.uint8)


def decode_photograph(
    data: bytes, *, max_megapixels: float, at_least_px: int, note: Callable[[str], None] | None = None
) -> NDArray[np.uint8]:
    """Decode the central square of a photograph.

    The camera's orientation (EXIF) is applied, colors are brought from the embedded ICC profile to sRGB (one that is
    broken, or of another color model than the pixels, means none), transparency is laid on white, 16 bits become 8 by
    the 8, 10, 12, 14 or 16 of them that the file uses, other color models become RGB, and of an animation the first
    frame is taken.

    Args:
        data: an encoded image.
        max_megapixels: more than this is refused from the header, before memory is taken.
        at_least_px: size that is enough for the caller: a larger JPEG may be decoded at a half, a quarter or an
            eighth of its size, but no smaller than this.
        note: told what was guessed about the file, in a few words, without a name.

    Returns:
        (W, W, 3) uint8 RGB.

    Raises:
        DataError: it cannot be used; the text is the reason, without a name.
    """
    image = _open(data, max_megapixels, at_least_px, MAX_ASPECT, note)
    return np.asarray(_to_rgb(image.crop(central_square(*image.size))), np.uint8)


def open_photograph(data: bytes, *, max_megapixels: float, note: Callable[[str], None] | None = None) -> Image.Image:
    """Open a whole photograph of any aspect, for who wants to keep what it holds besides sRGB.

    Args:
        data: an encoded image.
        max_megapixels: more than this is refused from the header, before memory is taken.
        note: told what was guessed about the file, in a few words, without a name.

    Returns:
        It, upright, with 8 bits per channel, in its own color model, with its profile and other metadata.

    Raises:
        DataError: it cannot be used; the text is the reason, without a name.
    """
    return _open(data, max_megapixels, None, None, note)


def decode_whole(data: bytes, *, max_megapixels: float, note: Callable[[str], None] | None = None) -> NDArray[np.uint8]:
    """Decode all of a photograph, at its own size and however long it is; else as `decode_photograph`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: it cannot be used; the text is the reason, without a name.
    """
    return np.asarray(_to_rgb(open_photograph(data, max_megapixels=max_megapixels, note=note)), np.uint8)


def check_photograph(image: NDArray[np.uint8]) -> None:
    """Refuse label maps and masks, which lie beside the photographs of many datasets.

    Their few flat areas have short borders; photographs have texture, even where a palette, darkness or a strong JPEG
    leaves them few colors. (On human label maps of CelebAMask-HQ, resized and as JPEG, and on photographs of CelebA
    with palettes of 16 colors and up, the borders were up to 16 and from 18 times as long as the side.) A drawing of
    up to four colors without black, the background of most palettes of classes, is let through.

    Args:
        image: (W, W, 3) uint8 RGB, as it was decoded: to resize it blends the areas at their borders.

    Raises:
        DataError: it is no photograph by its looks; the text is the reason, without a name.
    """
    if (image == image[0, 0]).all():
        return  # blank, which says nothing of what it is
    step = max(1, image.shape[0] // _SAMPLED_SIDE_PX)
    sample = image[step // 2 :: step, step // 2 :: step].astype(np.int16)
    corner, right, below = sample[:-1, :-1], sample[:-1, 1:], sample[1:, :-1]
    noise = int(_NOISE * (sample.max() - sample.min()))
    flat = np.maximum(np.abs(right - corner), np.abs(below - corner)).max(2) <= noise
    border = (~flat).mean()
    if border > _MAX_BORDER_SHARE or border * sample.shape[0] > _MAX_BORDER_SIDES:
        return
    colors, counts = np.unique(corner[flat], axis=0, return_counts=True)
    often = np.argsort(counts)[::-1]
    if counts[often[:_MAX_CLASSES]].sum() < _CLASSES_SHARE * counts.sum():
        return
    main = colors[counts >= _MIN_CLASS_SHARE * counts.sum()]
    num_colors = max(len(main), 2)  # a second one may be too small for the sample
    gray = (sample.max(2) - sample.min(2)).max() <= _GRAY_TOLERANCE
    if gray or num_colors > _MAX_DRAWN_COLORS or (main.max(1) <= _BLACK).any():
        kind = "gray levels" if gray else "colors"
        raise DataError(f"a label map or mask, no photograph, by its looks: flat areas of {num_colors} {kind}")


def decode_mask(data: bytes, *, max_megapixels: float) -> NDArray[np.bool_]:
    """Decode a mask: of two values the brighter one belongs to it, whichever they are; of more, what is nearer to it.

    Colors count by their brightness; where all have the same, opaque belongs to it, or else the higher index of a
    palette. Of a single color all belongs to it, but nothing where that is black.

    Args:
        data: an encoded image.
        max_megapixels: more than this is refused from the header, before memory is taken.

    Returns:
        (H, W) bool.

    Raises:
        DataError: it cannot be used; the text is the reason, without a name.
    """
    image = _upright(_decode(data, max_megapixels, None, MAX_ASPECT))
    try:
        candidates = _mask_values(image)
    except ValueError as error:
        raise DataError(f"pixels of the model {image.mode} cannot be read as a mask; save it in gray") from error
    for values in candidates:
        least, most = values.min(), values.max()
        if least < most:
            varied: NDArray[np.bool_] = values > (least + most) / 2
            return varied
    brightness = candidates[0]
    return np.full(brightness.shape, bool(brightness.any()))


def central_square(width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the largest square in the middle of an image, in pixels."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Bring an opened image to pixels as `decode_photograph` does, but for 16 bits and without cutting it.

    Args:
        image: of at most 8 bits per channel.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: it cannot be used; the text is the reason, without a name.
    """
    return np.asarray(_to_rgb(_upright(image)), np.uint8)


def resize(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Bring a square image to another size: averaging on the way down, cubic on the way up.

    Args:
        image: (W, W, 3) uint8.
        size_px: side of the result.

    Returns:
        (size_px, size_px, 3) uint8; the image itself where it has that size.
    """
    if image.shape[0] == size_px:
        return image
    method = cv2.INTER_AREA if image.shape[0] > size_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=method), np.uint8)


def _open(
    data: bytes,
    max_megapixels: float,
    at_least_px: int | None,
    max_aspect: float | None,
    note: Callable[[str], None] | None,
) -> Image.Image:
    image = _decode(data, max_megapixels, at_least_px, max_aspect)
    if _has_wide_colors(image, data):
        _narrow_colors(image, data, note)
    _keep_exif(image)
    image = _upright(image)
    return _narrowed(image, note) if image.mode in _SIXTEEN_BIT_MODES else image


def _decode(data: bytes, max_megapixels: float, at_least_px: int | None, max_aspect: float | None) -> Image.Image:
    if not data:
        raise DataError("empty file")
    with warnings.catch_warnings():
        # What Pillow warns of (odd EXIF, many pixels) is either harmless or refused below.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(image, max_megapixels, max_aspect)
            if at_least_px is not None:
                image.draft("RGB", (at_least_px, at_least_px))
            image.load()
            return image
        except DataError:
            raise
        except UnidentifiedImageError:
            raise DataError("not a readable image") from None
        except Image.DecompressionBombError:
            raise DataError(f"more than {max_megapixels:g} megapixels") from None
        except Exception as error:  # broken files make Pillow's decoders raise nearly anything
            raise DataError(f"not a readable image: {' '.join(str(error).split()) or type(error).__name__}") from None


def _check_size(image: Image.Image, max_megapixels: float, max_aspect: float | None) -> None:
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise DataError(f"{width}x{height} pixels, more than {max_megapixels:g} megapixels")
    if min(width, height) < MIN_SIDE_PX:
        raise DataError(f"{width}x{height} pixels, a side smaller than {MIN_SIDE_PX}")
    if max_aspect is not None and max(width, height) > max_aspect * min(width, height):
        raise DataError(f"{width}x{height} pixels, longer than {max_aspect:g} times its width")


def _keep_exif(image: Image.Image) -> None:
    """Put what a TIFF says of its origin where other formats have it; as it stands only the opened file knows it."""
    if image.format != "TIFF":
        return
    try:
        exif = image.getexif()
        for tag in set(exif) - _DESCRIPTIVE_TAGS:
            del exif[tag]
        image.info["exif"] = exif.tobytes()
    except Exception:  # unreadable, so nothing is known of it
        return


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image  # which Pillow would copy
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about orientation; the picture itself was decoded
        return image


def _mask_values(image: Image.Image) -> list[NDArray[Any]]:
    """Return (H, W) arrays by which pixels may differ: brightness first."""
    if image.mode in (*_SIXTEEN_BIT_MODES, "F", "1", "L"):
        return [np.asarray(image).astype(np.float64)]
    pixels = np.asarray(image.convert("RGBA")).astype(np.int32)
    values = [pixels[..., :3] @ np.array([299, 587, 114], np.int32), pixels[..., 3]]
    return [*values, np.asarray(image)] if image.mode == "P" else values


def _narrowed(image: Image.Image, note: Callable[[str], None] | None) -> Image.Image:
    """Bring one channel of 16 bits to 8."""
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise DataError("more than 16 bits per pixel; save it with 8")
    narrow = Image.fromarray(_by_bits_in_use(levels, note))
    narrow.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return narrow


def _has_wide_colors(image: Image.Image, data: bytes) -> bool:
    """Tell whether several channels have 16 bits, of which Pillow keeps the upper 8 without a word."""
    if image.format == "PNG":
        # Bit depth and color type: gray with alpha, RGB, RGB with alpha.
        return data[24] == 16 and data[25] in (2, 4, 6)
    return image.format == "TIFF" and image.mode in ("RGB", "RGBA", "RGBX") and 16 in _bits_per_sample(image)


def _bits_per_sample(image: Image.Image) -> tuple[int, ...]:
    bits: tuple[int, ...] = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return bits


def _narrow_colors(image: Image.Image, data: bytes, note: Callable[[str], None] | None) -> None:
    """Paint an image over whose channels use fewer than 16 bits, so that it keeps its metadata."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[1::-1] != image.size:
        return
    colors = found[..., 2::-1]
    if int(colors.max()) >> _BITS_IN_USE[-2]:
        return  # Pillow is right: all 16 are in use
    pixels = Image.fromarray(np.ascontiguousarray(_by_bits_in_use(colors, note))).convert(image.mode)
    if image.mode in ("LA", "RGBA") and found.shape[2] == 4:
        pixels.putalpha(Image.fromarray(np.ascontiguousarray(_by_bits_in_use(found[..., 3], None))))
    image.paste(pixels)


def _by_bits_in_use(levels: NDArray[Any], note: Callable[[str], None] | None) -> NDArray[np.uint8]:
    bits = next(bits for bits in _BITS_IN_USE if not int(levels.max()) >> bits)
    if bits < _BITS_IN_USE[-1] and note is not None:
        note(f"a 16-bit file that uses {bits} bits; taken for {bits} bits")
    narrow: NDArray[np.uint8] = (levels >> (bits - 8)).astype(np.uint8)
    return narrow


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("pixels are fractions, of unknown range; save it with 8 bits")
    alpha = None
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        alpha = clear.getchannel("A")
        image = clear if image.mode in ("P", "PA") else image  # a palette's transparency is not for RGB
    try:
        colors = _to_srgb(image)
    except (ValueError, ImageCms.PyCMSError) as error:
        raise DataError(f"colors of the model {image.mode} cannot be read; save it in RGB") from error
    if alpha is None:
        return colors
    return Image.composite(colors, Image.new("RGB", colors.size, "white"), alpha)


def is_srgb(image: Image.Image) -> bool:
    """Tell whether an opened image's colors are sRGB as they stand: no profile, or one that says nothing new."""
    profile, mode = image.info.get("icc_profile"), _profile_mode(image.mode)
    return not (profile and mode and _transform(profile, mode))


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    mode = _profile_mode(image.mode)
    transform = _transform(profile, mode) if profile and mode else None
    if transform is None or mode is None:
        return image.convert("RGB")
    return transform.apply(image.convert(mode))


def _profile_mode(mode: str) -> str | None:
    """Return the model in which the colors of an image are given to its profile; None where no profile fits."""
    if mode in ("1", "L", "LA"):
        return "L"
    if mode == "CMYK":
        return "CMYK"
    return "RGB" if mode in ("RGB", "RGBA", "RGBX", "P", "PA", "YCbCr") else None


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what brings colors of a profile to sRGB; None where it says nothing, or nothing new.

    Photographs of one camera share their profile, so it is read once.
    """
    space = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}[mode]
    try:
        read = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if read.profile.xcolor_space != space:
            return None
        transform = ImageCms.buildTransform(read, ImageCms.createProfile("sRGB"), mode, "RGB")
        grid = np.stack(np.meshgrid(*[_STEPS] * Image.getmodebands(mode), indexing="ij"), -1)
        known = Image.frombytes(mode, (grid[..., 0].size, 1), grid.tobytes())
        changes = np.asarray(transform.apply(known)).astype(np.int32) - np.asarray(known.convert("RGB"))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if np.abs(changes).max() <= _SRGB_TOLERANCE else transform
