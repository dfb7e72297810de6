"""Bytes that claim to be an image to pixels, or one reason why not: photographs come from strangers.

Size and format are read from the header before any pixel is decoded. Only formats that photographs are kept in are
tried, whatever the file is called.
"""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from scfegan_ray.errors import DataError

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


def decode_photograph(data: bytes, *, max_megapixels: float, at_least_px: int) -> NDArray[np.uint8]:
    """Decode the central square of a photograph.

    The camera's orientation (EXIF) is applied, transparency is laid on white, 16 bits become 8, other color models
    become RGB, and of an animation the first frame is taken.

    Args:
        data: an encoded image.
        max_megapixels: more than this is refused from the header, before memory is taken.
        at_least_px: size that is enough for the caller: a larger JPEG may be decoded at a half, a quarter or an
            eighth of its size, but no smaller than this.

    Returns:
        (W, W, 3) uint8 RGB.

    Raises:
        DataError: it cannot be used; the text is the reason, without a name.
    """
    image = _decode(data, max_megapixels, at_least_px)
    return np.asarray(_to_rgb(image.crop(central_square(*image.size))), np.uint8)


def decode_mask(data: bytes, *, max_megapixels: float) -> NDArray[np.bool_]:
    """Decode a mask: white or anything brighter than middle gray belongs to it.

    Args:
        data: an encoded image.
        max_megapixels: more than this is refused from the header, before memory is taken.

    Returns:
        (H, W) bool.

    Raises:
        DataError: it cannot be used; the text is the reason, without a name.
    """
    image = _decode(data, max_megapixels, None)
    gray: NDArray[np.bool_] = np.asarray(image.convert("L")) > 127
    return gray


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


def _decode(data: bytes, max_megapixels: float, at_least_px: int | None) -> Image.Image:
    if not data:
        raise DataError("empty file")
    with warnings.catch_warnings():
        # What Pillow warns of (odd EXIF, many pixels) is either harmless or refused below.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(image, max_megapixels)
            if at_least_px is not None:
                image.draft("RGB", (at_least_px, at_least_px))
            image.load()
            return _upright(image)
        except DataError:
            raise
        except UnidentifiedImageError:
            raise DataError("not a readable image") from None
        except Image.DecompressionBombError:
            raise DataError(f"more than {max_megapixels:g} megapixels") from None
        except Exception as error:  # broken files make Pillow's decoders raise nearly anything
            raise DataError(f"not a readable image: {' '.join(str(error).split()) or type(error).__name__}") from None


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise DataError(f"{width}x{height} pixels, more than {max_megapixels:g} megapixels")
    if min(width, height) < MIN_SIDE_PX:
        raise DataError(f"{width}x{height} pixels, a side smaller than {MIN_SIDE_PX}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{width}x{height} pixels, longer than {MAX_ASPECT:g} times its width")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about orientation; the picture itself was decoded
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise DataError("more than 16 bits per pixel; save it with 8")
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    if image.mode == "F":
        raise DataError("pixels are fractions, of unknown range; save it with 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
