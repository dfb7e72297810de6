"""Color profiles for tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms


def icc(name: str) -> bytes:
    """Return a profile: Display-P3, sRGB, or one made here, for Pillow makes none.

    That is a gray one of gamma 1, or one of a press whose four inks are gray, each halving lightness, all black.
    """
    if name == "sRGB":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if name == "Display-P3":
        with Image.open(Path(__file__).parent / "data" / "files" / "Display-P3.png") as image:
            profile: bytes = image.info["icc_profile"]
        return profile
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    if name == "gray":
        kinds, tag, how = (b"mntr", b"GRAY", b"XYZ "), b"kTRC", struct.pack(">4s4xI", b"curv", 0)
    else:
        kinds, tag = (b"prtr", b"CMYK", b"Lab "), b"A2B0"
        identity = np.eye(3, dtype=np.int32).ravel() * 65536
        colors = [((255, 128, 64, 32, 0)[inks.bit_count()], 128, 128) for inks in range(2**4)]
        how = struct.pack(">4s4x4B9i", b"mft1", 4, 3, 2, 0, *identity)
        how += bytes(range(256)) * 4 + bytes(np.ravel(colors).tolist()) + bytes(range(256)) * 3
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), tag, 156 + len(white), len(how))
    rest = tags + white + how
    head = struct.pack(">I4sI4s4s4s12x4s", 128 + len(rest), b"lcms", 0x02400000, *kinds, b"acsp")
    return head.ljust(68, b"\0") + white[8:] + bytes(128 - 80) + rest
