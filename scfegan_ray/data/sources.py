"""Raw faces: a folder of images, the official CelebAMask-HQ layout, or portraits drawn by this package."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray import storage
from scfegan_ray.config import DataConfig
from scfegan_ray.data import faces, parsing
from scfegan_ray.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MIN_SIDE_PX = 16


@dataclass(frozen=True, slots=True)
class Face:
    """One square face, at the size that was asked for.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        labels: (S, S) uint8, index into `parsing.LABELS`, or None where nobody labelled the photograph.
        eyes: (4,) float32: x, y of the eye at the image's left, then of the one at its right, in pixels.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8] | None
    eyes: NDArray[np.float32]


class FaceSource(Protocol):
    """Where raw faces come from; small enough to be sent to every worker."""

    @property
    def name(self) -> str:
        """Kind of source, as the default place of its dataset is called."""
        ...

    @property
    def license(self) -> str:
        """License tag of the photographs."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether every face comes with a label map."""
        ...

    def keys(self) -> list[str]:
        """Return the sorted, unique keys of all faces."""
        ...

    def load(self, key: str, size_px: int) -> Face:
        """Read one face.

        Raises:
            DataError: this image cannot be used; others may.
        """
        ...


@dataclass(frozen=True, slots=True)
class EmbeddedFaces:
    """Portraits drawn by `faces.draw_face`, with exact labels: no download, the same on every machine."""

    count: int
    seed: int
    name: str = "embedded"
    license: str = "CC0-1.0"
    has_labels: bool = True

    def keys(self) -> list[str]:
        """Return one key per portrait."""
        return [f"embedded/{self.seed}/{index:07d}" for index in range(self.count)]

    def load(self, key: str, size_px: int) -> Face:
        """Draw one portrait."""
        _, seed, index = key.split("/")
        drawn = faces.draw_face(int(seed), int(index), size_px)
        return Face(drawn.image, drawn.labels, np.asarray(drawn.eyes, np.float32))


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Every image under a folder, found recursively; keys are paths relative to it."""

    root: str
    name: str = "folder"
    license: str = "unknown"
    has_labels: bool = False

    def keys(self) -> list[str]:
        """List the folder's images."""
        return [name for name in storage.list_files(self.root) if name.lower().endswith(IMAGE_SUFFIXES)]

    def load(self, key: str, size_px: int) -> Face:
        """Read, crop and resize one photograph; its eyes are where aligned faces have them.

        Raises:
            DataError: this image cannot be used.
        """
        return Face(_load_photograph(self.root, key, size_px), None, parsing.canonical_eyes(size_px))


@dataclass(frozen=True, slots=True)
class CelebAMaskHQ:
    """The official layout: `CelebA-HQ-img/N.jpg` and `CelebAMask-HQ-mask-anno/K/NNNNN_part.png`.

    Attributes:
        parts: image number -> paths of its part masks, relative to the root.
    """

    root: str
    parts: dict[int, tuple[str, ...]]
    name: str = "celebamask-hq"
    license: str = "CelebAMask-HQ: non-commercial research only"
    has_labels: bool = True

    @classmethod
    def open(cls, root: str) -> CelebAMaskHQ:
        """List the part masks once, so that loading a face asks the store only for files that exist."""
        parts: dict[int, list[str]] = defaultdict(list)
        for name in storage.list_files(storage.join(root, "CelebAMask-HQ-mask-anno")):
            found = re.fullmatch(r"(?:.*/)?(\d+)_(\w+)\.png", name)
            if found and found[2] in parsing.LABELS:
                parts[int(found[1])].append(f"CelebAMask-HQ-mask-anno/{name}")
        return cls(root, {number: tuple(names) for number, names in parts.items()})

    def keys(self) -> list[str]:
        """List the photographs."""
        names = storage.list_files(storage.join(self.root, "CelebA-HQ-img"))
        return [f"CelebA-HQ-img/{name}" for name in names if name.lower().endswith(IMAGE_SUFFIXES)]

    def load(self, key: str, size_px: int) -> Face:
        """Read one photograph with its labels.

        Raises:
            DataError: the photograph or one of its part masks cannot be used.
        """
        stem = key.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        names = self.parts.get(int(stem), ()) if stem.isdigit() else ()
        if not names:
            raise DataError(f"{key}: no part masks NNNNN_part.png under CelebAMask-HQ-mask-anno")
        masks = {}
        for name in names:
            part = name.rsplit(".", 1)[0].split("_", 1)[1]
            mask = _decode(storage.read_bytes(storage.join(self.root, name)), cv2.IMREAD_GRAYSCALE, name)
            masks[part] = _square(mask, size_px, cv2.INTER_NEAREST) > 127
        labels = parsing.merge_parts(masks, size_px)
        image = _load_photograph(self.root, key, size_px)
        return Face(image, labels, parsing.eye_positions(labels))


def open_source(config: DataConfig, seed: int) -> FaceSource:
    """Find out what a source URI holds.

    Args:
        config: `source` says where to look.
        seed: of the embedded faces.

    Raises:
        DataError: the folder is missing.
        StorageError: it cannot be listed.
    """
    if config.source == "embedded":
        return EmbeddedFaces(config.num_embedded, seed)
    root = storage.absolute(config.source)
    if not storage.exists(root):
        raise DataError(f"no folder of faces at {root}; check --data.source")
    if storage.exists(storage.join(root, "CelebA-HQ-img")):
        return CelebAMaskHQ.open(root)
    return ImageFolder(root)


def _load_photograph(root: str, key: str, size_px: int) -> NDArray[np.uint8]:
    bgr = _decode(storage.read_bytes(storage.join(root, key)), cv2.IMREAD_COLOR, key)
    return cv2.cvtColor(_square(bgr, size_px, cv2.INTER_AREA), cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _decode(data: bytes, flags: int, name: str) -> NDArray[np.uint8]:
    # OpenCV raises for an empty buffer or a header that promises too many pixels, and returns None for the rest.
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        too_large = "MAX_IMAGE" in str(error)
        raise DataError(
            f"{name}: {'more pixels than is safe to decode' if too_large else 'not a readable image'}"
        ) from None
    if image is None:
        raise DataError(f"{name}: not a readable image")
    if min(image.shape[:2]) < MIN_SIDE_PX:
        raise DataError(f"{name}: {image.shape[1]}x{image.shape[0]} pixels, smaller than {MIN_SIDE_PX}")
    return image.astype(np.uint8, copy=False)


def _square(image: NDArray[np.uint8], size_px: int, shrink: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side]
    # Area averaging only makes sense downwards; labels keep nearest either way.
    method = cv2.INTER_CUBIC if shrink == cv2.INTER_AREA and side < size_px else shrink
    return cv2.resize(crop, (size_px, size_px), interpolation=method).astype(np.uint8, copy=False)
