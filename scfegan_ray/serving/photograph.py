"""A photograph that is edited: faces go to a model as squares of sRGB, what was filled comes back into the original.

What lies outside the holes is never converted: color model, ICC profile, transparency, resolution and metadata stay.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from scfegan_ray.data import align, decoding
from scfegan_ray.serving.edits import Square

FileFormat = Literal["png", "jpeg"]

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""What IPTC calls a photograph into which a model has painted; written into each file."""

_JPEG_QUALITY = 95
_PNG_COMPRESSION = 3

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_META = "adobe:ns:meta/"
_PACKET = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{}<?xpacket end="w"?>'
_PREFIXES = {
    "rdf": _RDF,
    "Iptc4xmpExt": _IPTC,
    "x": _META,
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
}
_XMP_NAMES = ("xmp", "XML:com.adobe.xmp")
_MOST_XMP_BYTES = 60_000
# A JPEG's segment has 65,533.
_SOURCE = f"{{{_IPTC}}}DigitalSourceType"
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Filling:
    """What a model made of a face.

    Attributes:
        square: where it lies.
        picture: (S, S, 3) uint8 sRGB.
        mask: (S, S) uint8 in {0, 1}; 1 marks the hole, which alone is taken.
    """

    square: Square
    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph that was opened.

    Attributes:
        original: upright, of the model RGB or RGBA, or L with a profile of its own; with its profile and metadata.
        pixels: (H, W, 3) uint8 sRGB, transparency laid on white.
        notes: what could not be kept, or was guessed, in a few words each.
    """

    original: Image.Image
    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]

    @classmethod
    def decode(cls, data: bytes, *, max_megapixels: float) -> Photograph:
        """Open a photograph.

        Args:
            data: an encoded image, from whomever.
            max_megapixels: more than this is refused from the header.

        Raises:
            DataError: it cannot be used; the text is the reason, without a name.
        """
        notes: list[str] = []
        image = decoding.open_photograph(data, max_megapixels=max_megapixels, note=notes.append)
        pixels = decoding.to_rgb(image)
        original = _editable(image)
        if original is None:
            original = Image.fromarray(pixels)
            original.info = {name: image.info[name] for name in ("exif", *_XMP_NAMES) if name in image.info}
            notes.append(f"colors of the model {image.mode} become sRGB")
        return cls(original, pixels, tuple(notes))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def square_px(self, square: Square) -> align.Square:
        """Return a document's square in pixels."""
        width = self.size[0]
        return align.Square(square.x * width, square.y * width, square.side * width, square.angle)

    def relative(self, square: align.Square) -> Square:
        """Return a square as documents have it."""
        width = self.size[0]
        return Square(square.center_x / width, square.center_y / width, square.side_px / width, square.angle)

    def middle(self) -> Square:
        """Return the largest square in the middle."""
        return self.relative(align.own_square(*self.size))

    def crop(self, square: Square, size_px: int) -> NDArray[np.uint8]:
        """Return what a square shows, at a model's size: (S, S, 3) uint8 sRGB."""
        return align.crop(self.pixels, self.square_px(square), size_px)

    def preview(self, side_px: int) -> NDArray[np.uint8]:
        """Return a copy whose longer side is at most so long: (H, W, 3) uint8 sRGB."""
        scale = side_px / max(self.size)
        if scale >= 1:
            return self.pixels
        size = [max(1, round(side * scale)) for side in self.size]
        return np.asarray(cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA), np.uint8)

    def encode(self, fillings: Sequence[Filling], file_format: FileFormat) -> bytes:
        """Put what a model made of holes back where they came from, and write the photograph as a file.

        The file says that a model has painted into it (IPTC's digital source type), keeps profile and metadata, and has
        no preview of what was there before. Of the photograph, pixels whose centers lie in pixels of a hole change,
        and no others. Where a square is larger than its filling, the outermost half pixel of the hole fades into the
        photograph, so that no staircase is seen.

        Args:
            fillings: later ones lie above earlier ones.
            file_format: png keeps each pixel outside the holes; jpeg, of high quality, comes near, and has no
                transparency.
        """
        image = self.original.copy()
        for filling in fillings:
            _fill(image, self.square_px(filling.square), filling)
        more = dict[str, Any]()
        if _space(image):
            more["icc_profile"] = image.info["icc_profile"]
        exif = image.getexif()
        if len(exif):
            more["exif"] = exif.tobytes()
        packet = _packet(next((image.info[name] for name in _XMP_NAMES if name in image.info), b""))
        stream = io.BytesIO()
        if file_format == "png":
            text = PngInfo()
            text.add_itxt(_XMP_NAMES[1], packet.decode())
            image.info = {}
            image.save(stream, "PNG", compress_level=_PNG_COMPRESSION, pnginfo=text, **more)
        else:
            if image.mode == "RGBA":
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image).convert("RGB")
            image.info = {}
            image.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0, xmp=packet, **more)
        return stream.getvalue()


def _editable(image: Image.Image) -> Image.Image | None:
    """Return an image whose pixels can be changed by themselves, of the same colors; None where there is none."""
    alpha = image.has_transparency_data
    if image.mode in ("RGB", "RGBA"):
        kept = image.convert("RGBA") if alpha else image
    elif image.mode in ("P", "PA"):
        kept = image.convert("RGBA" if alpha else "RGB")
    elif image.mode in ("1", "L", "LA"):
        if not decoding.is_srgb(image):
            return None if alpha else image.convert("L")
        kept = image.convert("RGBA" if alpha else "RGB")
        kept.info.pop("icc_profile", None)
    else:
        return None
    kept.info.pop("transparency", None)
    return kept


def _space(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """Return the profile of an image, where it has one of its own color model."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    except (KeyError, OSError, TypeError, ImageCms.PyCMSError):
        return None
    wanted = "GRAY" if image.mode == "L" else "RGB "
    return profile if profile.profile.xcolor_space == wanted else None


def _fill(image: Image.Image, square: align.Square, filling: Filling) -> None:
    rows, columns = np.nonzero(filling.mask)
    if not len(rows):
        return
    size_px = len(filling.mask)
    unit = square.side_px / size_px
    side = np.array([math.cos(square.angle), math.sin(square.angle)])
    down = np.array([-side[1], side[0]])
    # Around the hole, in pixels of the photograph.
    ends = [
        np.array([square.center_x, square.center_y]) + unit * ((x - size_px / 2) * side + (y - size_px / 2) * down)
        for x in (columns.min(), columns.max() + 1)
        for y in (rows.min(), rows.max() + 1)
    ]
    left, top = np.maximum(np.floor(np.min(ends, axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(np.max(ends, axis=0)), image.size).astype(int)
    picture = filling.picture
    if unit < 1:  # smaller in the photograph: averaged first
        picture = decoding.resize(picture, max(1, round(square.side_px)))
    to_native = _to_native(image)
    for start in range(top, bottom, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, bottom)
        if left >= right:
            return
        x = np.arange(left, right)[None, :] + 0.5 - square.center_x
        y = np.arange(start, stop)[:, None] + 0.5 - square.center_y
        # Fractions of the side, from the square's corner.
        u = (x * side[0] + y * side[1]) / square.side_px + 0.5
        v = (x * down[0] + y * down[1]) / square.side_px + 0.5
        inside = (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
        at = [np.clip(np.floor(part * size_px), 0, size_px - 1).astype(int) for part in (v, u)]
        share = (inside & (filling.mask[at[0], at[1]] != 0)).astype(np.float32)
        if unit > 1:
            near = _sampled(filling.mask.astype(np.float32), u, v, cv2.INTER_LINEAR)
            share *= np.clip(2 * near - 1, 0, 1)
        colors = _sampled(picture, u, v, cv2.INTER_CUBIC)
        window = (int(left), start, int(right), stop)
        before = np.asarray(image.crop(window)).astype(np.float32).reshape(*share.shape, -1)
        after = np.asarray(to_native(Image.fromarray(colors))).astype(np.float32).reshape(*share.shape, -1)
        if before.shape[2] == 4:  # what was filled is opaque
            after = np.concatenate([after, np.full_like(after[..., :1], 255)], axis=2)
        mixed = np.rint(before + (after - before) * share[..., None]).astype(np.uint8)
        image.paste(Image.fromarray(mixed[..., 0] if image.mode == "L" else mixed), window)


def _sampled(picture: NDArray[Any], u: NDArray[Any], v: NDArray[Any], method: int) -> NDArray[Any]:
    """Return a square picture's values at fractions of its side."""
    side = len(picture)
    x, y = ((part * side - 0.5).astype(np.float32) for part in (u, v))
    return np.asarray(cv2.remap(picture, x, y, method, borderMode=cv2.BORDER_REPLICATE))


def _to_native(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what brings sRGB to an image's own colors, without transparency."""
    mode = "L" if image.mode == "L" else "RGB"
    profile = None if decoding.is_srgb(image) else _space(image)
    if profile is None:
        return lambda colors: colors.convert(mode)
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), profile, "RGB", mode)
    return transform.apply


def _packet(there: str | bytes) -> bytes:
    """Return an XMP packet that says that a model has painted, with whatever else was said before."""
    for name, uri in _PREFIXES.items():
        ElementTree.register_namespace(name, uri)
    root = _parsed(there)
    descriptions = [] if root is None else root.findall(f".//{{{_RDF}}}Description")
    if root is None or not descriptions:
        root = ElementTree.Element(f"{{{_META}}}xmpmeta")
        about = ElementTree.SubElement(root, f"{{{_RDF}}}RDF")
        descriptions = [ElementTree.SubElement(about, f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})]
    for one in descriptions:
        one.attrib.pop(_SOURCE, None)
        for child in one.findall(_SOURCE):
            one.remove(child)
    descriptions[0].set(_SOURCE, SOURCE_TYPE)
    return _PACKET.format(ElementTree.tostring(root, encoding="unicode")).encode()


def _parsed(packet: str | bytes) -> ElementTree.Element | None:
    """Return the root of a packet that a stranger wrote; None where it is of no use."""
    data = packet.encode() if isinstance(packet, str) else packet
    if not data or len(data) > _MOST_XMP_BYTES or b"<!" in data:  # no document type, whose entities may be huge
        return None
    try:
        return ElementTree.fromstring(data.strip(b"\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError):
        return None
