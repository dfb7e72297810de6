"""Face parsing: the label map of CelebAMask-HQ, a network that draws it, and what masks need from it (hair, eyes).

Differs from the paper: its GFC parser was never available to others. CelebAMask-HQ gives human labels for every
photograph of CelebA-HQ. For a source without labels `FaceParser` runs a network that the user names; without one,
such photographs get canonical eyes and no hair.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray import storage
from scfegan_ray.config import CELEBA_HQ_EYES, ParserConfig
from scfegan_ray.errors import DataError, ModelError, StorageError

logger = logging.getLogger(__name__)

LABELS = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
"""Classes of CelebAMask-HQ; the index is the class id. `l_` is the subject's left: the image's right, but for the about
one photograph in 14 of CelebAMask-HQ that was labeled the other way round."""

HAIR = LABELS.index("hair")
"""Class id of hair."""

PAINT_ORDER = (
    "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r",
    "nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip
"""Order in which the parts are laid over each other: a later one hides an earlier one (the dataset's own order)."""

_CLASS_ORDERS = {"celebamask": LABELS, "bisenet": ("background", *PAINT_ORDER)}
# The BiSeNet parsers number the parts in the order in which their authors laid the masks over each other.

_EXTERNAL_WEIGHTS = b"\n\x08location\x12"
# How ONNX writes the key under which a tensor names the file that it lies in.

_MIN_SKIN = 0.02
# Of 300 human label maps the one with the least skin has 0.10 of it.


class FaceParser:
    """Labels photographs with a network of the user's, run by OpenCV.

    To build one reads the network and runs it once, so that one that does not fit is refused before any photograph.

    Args:
        model: content of an ONNX file. Its one input is (1, 3, P, P) float32; its first output is either (1, C, h, w)
            scores of any size, or whole class ids (1, h, w) or (1, 1, h, w).
        config: what the input looks like and what the C classes are; `model` only names the file in messages.

    Attributes:
        digest: SHA-256 of the ONNX file, in hex.

    Raises:
        ModelError: the file is no ONNX network that OpenCV can run, takes another input or gives another output than
            the config says, or a class name is unknown.
    """

    def __init__(self, model: bytes, config: ParserConfig) -> None:
        self.digest = hashlib.sha256(model).hexdigest()
        self._config = config
        self._name = config.model or "the face parser"
        self._label_of_class = _read_classes(config.classes)
        if _EXTERNAL_WEIGHTS in model:
            # OpenCV would look for them in the working directory, and the digest would not cover them.
            raise ModelError(f"{self._name} keeps its weights in another file; export it as one file, weights inside")
        try:
            # The classic engine, to which OpenCV would fall back by itself, crashes on some damaged files.
            self._net = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8), cv2.dnn.ENGINE_NEW)
        except cv2.error as error:
            raise ModelError(
                f"{self._name} cannot be read as an ONNX network ({_reason(error)}); check --data.parser.model"
            ) from error
        if self._net.empty():
            raise ModelError(
                f"{self._name} has operators that OpenCV {cv2.__version__} cannot run; export it with opset 11 to 17"
            )
        self._check_input()
        self._output = self._net.getUnconnectedOutLayersNames()[0]
        self(np.full((config.size_px, config.size_px, 3), 128, np.uint8))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Label one photograph.

        Args:
            image: (S, S, 3) uint8 RGB, a face cropped and aligned about as in CelebA-HQ.

        Returns:
            (S, S) uint8 class ids, indices of `LABELS`. The same image gives the same ids.

        Raises:
            ModelError: the network gives a class that has no name, or a score that is no number.
        """
        side = image.shape[0]
        output = self._run(image)
        if output.ndim == 2:
            return resize_labels(self._labels(self._checked_ids(output)), side)
        scores: NDArray[Any] = np.ascontiguousarray(output.transpose(1, 2, 0), np.float32)
        if not np.isfinite(scores).all():
            raise ModelError(f"{self._name} gives scores that are no numbers; export it in float32")
        if scores.shape[:2] != (side, side):
            # Scores blend where class ids would not, so a border keeps its place.
            scores = np.asarray(cv2.resize(scores, (side, side), interpolation=_interpolation(scores.shape[0], side)))
        return self._labels(scores.argmax(2))

    def _labels(self, classes: NDArray[np.intp]) -> NDArray[np.uint8]:
        labels: NDArray[np.uint8] = self._label_of_class[classes]
        return labels

    def _run(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Return (C, h, w) scores or (h, w) class ids."""
        side = self._config.size_px
        pixels = np.asarray(cv2.resize(image, (side, side), interpolation=_interpolation(image.shape[0], side)))
        if self._config.channel_order == "bgr":
            pixels = pixels[..., ::-1]
        mean, std = (np.asarray(values, np.float32) for values in (self._config.mean, self._config.std))
        normalized = (pixels.astype(np.float32) / 255 - mean) / std
        try:
            self._net.setInput(np.ascontiguousarray(normalized.transpose(2, 0, 1)[None]))
            output: NDArray[Any] = np.asarray(self._net.forward(self._output))
        except cv2.error as error:
            raise ModelError(
                f"{self._name} cannot be run at {side} pixels ({_reason(error)}); give --data.parser.size-px the size "
                "that it was exported for"
            ) from error
        num_classes = len(self._label_of_class)
        if output.ndim == 4 and output.shape[:2] == (1, num_classes):
            return output.reshape(output.shape[1:])
        if output.ndim in (3, 4) and output.size == output.shape[-2] * output.shape[-1]:
            return output.reshape(output.shape[-2:])
        raise ModelError(
            f"{self._name} gives {output.shape}; with the {num_classes} classes of --data.parser.classes it must "
            f"give scores (1, {num_classes}, h, w) or class ids (1, h, w): name each of its classes, in its order, or "
            "export it channels first"
        )

    def _checked_ids(self, output: NDArray[Any]) -> NDArray[np.intp]:
        ids = output.astype(np.intp) if np.isfinite(output).all() else np.full(output.shape, -1)
        if (ids != output).any() or ids.min() < 0 or ids.max() >= len(self._label_of_class):
            raise ModelError(
                f"{self._name} gives values from {output.min()} to {output.max()} in one channel, which are no ids of "
                f"the {len(self._label_of_class)} classes of --data.parser.classes; name each of its classes, in its "
                "order, or export the scores"
            )
        return ids

    def _check_input(self) -> None:
        # OpenCV does not compare an input with the shape that the network declares: some networks then give nonsense
        # instead of an error. Its description of the network is the only place that tells this shape; a dimension
        # that is free has a name there.
        wanted = (1, 3, self._config.size_px, self._config.size_px)
        declared = re.findall(r"<Input> \w+ \[([^\]]*)\]", self._net.dump().split("layers: [")[0])
        shapes = [
            tuple(int(length) if re.fullmatch("[0-9]+", length) else None for length in text.split(" x "))
            for text in declared
        ]
        fits = [
            len(shape) == 4 and all(length in (None, want) for length, want in zip(shape, wanted, strict=True))
            for shape in shapes
        ]
        if len(fits) > 1 or not all(fits):
            raise ModelError(
                f"{self._name} takes {' and '.join(f'({text})' for text in declared)}, not one input of "
                f"({' x '.join(map(str, wanted))}); set --data.parser.size-px, or export it channels first, for one "
                "image at a time"
            )


def load_parser(config: ParserConfig, retry_seconds: float = 0.0) -> FaceParser:
    """Build the face parser that a config names.

    Args:
        config: one whose `model` is set.
        retry_seconds: how long storage that fails is tried again, by those who know that the file was there.

    Raises:
        ModelError: the file cannot be read, or is refused by `FaceParser`.
    """
    place = config.model
    assert place is not None, "the caller asks for a parser only where there is one"
    try:
        model = storage.retrying(lambda: storage.read_bytes(place), retry_seconds, logger.warning)
    except StorageError as error:
        raise ModelError(f"no face parser: {error}") from error
    return FaceParser(model, config)


def has_face(labels: NDArray[np.uint8]) -> bool:
    """Tell whether a label map that a network drew shows a face: skin on at least 2 % of it.

    Where it does not, the network has failed, or the photograph shows something else; what else it labeled there
    (hair, say) is not to be trusted, and the photograph is better taken as one without labels.

    Args:
        labels: (H, W) uint8 class ids.
    """
    return bool((labels == LABELS.index("skin")).mean() >= _MIN_SKIN)


def merge_parts(parts: Mapping[str, NDArray[np.bool_] | NDArray[np.uint8]], size_px: int) -> NDArray[np.uint8]:
    """Lay the parts of one face over each other in `PAINT_ORDER` and bring the map to one size.

    Parts are merged before the map is resized, so that neighboring parts leave no gap of background between them.

    Args:
        parts: name of a part (one of `LABELS`) to its (H, W) bool or uint8 mask; nonzero belongs to the part. All
            of one shape. Names that are absent are parts that the face does not show.
        size_px: side of the square result, in pixels.

    Returns:
        (size_px, size_px) uint8 class ids, indices of `LABELS`.

    Raises:
        DataError: a name is unknown, or the shapes differ.
    """
    unknown = sorted(set(parts) - set(PAINT_ORDER))
    if unknown:
        raise DataError(f"unknown face part {unknown[0]!r}; CelebAMask-HQ has {', '.join(PAINT_ORDER)}")
    shapes = {part.shape for part in parts.values()}
    if len(shapes) > 1:
        raise DataError(f"label parts of one face have different shapes {sorted(shapes)}; export them at one size")
    if not shapes:
        return np.zeros((size_px, size_px), np.uint8)
    (shape,) = shapes
    if len(shape) != 2:
        raise DataError(f"a label part has shape {shape}; give single-channel masks")
    labels: NDArray[np.uint8] = np.zeros(shape, np.uint8)
    for name in PAINT_ORDER:
        if name in parts:
            labels[parts[name] != 0] = LABELS.index(name)
    return resize_labels(labels, size_px)


def resize_labels(labels: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Bring a label map to another size without making new classes.

    Args:
        labels: (H, W) uint8 class ids.
        size_px: side of the square result, in pixels.

    Returns:
        (size_px, size_px) uint8 class ids; the same array where it has that size.
    """
    if labels.shape == (size_px, size_px):
        return labels
    return np.asarray(cv2.resize(labels, (size_px, size_px), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def hair_region(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mark the hair.

    Args:
        labels: (H, W) uint8 class ids.

    Returns:
        (H, W) uint8 in {0, 1}; 1 is hair.
    """
    hair: NDArray[np.uint8] = (labels == HAIR).astype(np.uint8)
    return hair


def canonical_eyes(size_px: int, fractions: tuple[float, float, float, float] = CELEBA_HQ_EYES) -> NDArray[np.float32]:
    """Give the eye positions of aligned faces, for faces without labels.

    Args:
        size_px: side of the image, in pixels.
        fractions: x, y of the eye at the image's left, then of the one at its right, as fractions of the side.
            Default: the mean of CelebA-HQ.

    Returns:
        (4,) float32: x, y of the eye at the image's left, then of the eye at its right, in pixels; the center of
        the first pixel is (0, 0).
    """
    return np.array(fractions, np.float32) * size_px - np.float32(0.5)


def eye_positions(
    labels: NDArray[np.uint8], fractions: tuple[float, float, float, float] = CELEBA_HQ_EYES
) -> NDArray[np.float32]:
    """Find both eyes in a label map.

    Which eye is which follows from where they are, not from their names: about one in 14 photographs of CelebAMask-HQ
    has the parts of both sides exchanged. An eye that is not labeled is taken from the matching half of the glasses,
    or else from `canonical_eyes`.

    Args:
        labels: (S, S) uint8 class ids.
        fractions: as in `canonical_eyes`.

    Returns:
        (4,) float32: x, y of the eye at the image's left (the subject's right), then of the eye at its right, in
        pixels; the center of the first pixel is (0, 0).
    """
    eyes = canonical_eyes(labels.shape[0], fractions).reshape(2, 2)
    glasses = _points(labels, "eye_g")
    if len(glasses):
        at_left = glasses[:, 0] < glasses[:, 0].mean()
        for side, half in enumerate((at_left, ~at_left)):
            if half.any():
                eyes[side] = glasses[half].mean(0)
    found = sorted(
        tuple(points.mean(0)) for points in (_points(labels, "r_eye"), _points(labels, "l_eye")) if len(points)
    )
    if len(found) == 2:
        eyes[:] = found
    elif found:
        eyes[np.abs(eyes[:, 0] - found[0][0]).argmin()] = found[0]
    return eyes.reshape(4)


def _points(labels: NDArray[np.uint8], name: str) -> NDArray[np.int64]:
    """Return (N, 2) int64: x, y of the pixels of a part."""
    points: NDArray[np.int64] = np.argwhere(labels == LABELS.index(name))[:, ::-1]
    return points


def _read_classes(classes: str) -> NDArray[np.uint8]:
    """Return (C,) uint8: for each class of a network its index in `LABELS`; see `ParserConfig.classes`."""
    names = _CLASS_ORDERS.get(classes) or tuple(name.strip() or "background" for name in classes.split(","))
    unknown = sorted(set(names) - set(LABELS))
    if unknown:
        raise ModelError(
            f"unknown class {unknown[0]!r} in --data.parser.classes; give {', '.join(_CLASS_ORDERS)}, or names of "
            f"{', '.join(LABELS)} separated by commas"
        )
    if "skin" not in names:
        raise ModelError("no class of --data.parser.classes is skin, by which a face is known; name that class")
    return np.array([LABELS.index(name) for name in names], np.uint8)


def _interpolation(side: int, wanted: int) -> int:
    return cv2.INTER_AREA if wanted < side else cv2.INTER_LINEAR


def _reason(error: cv2.error) -> str:
    return " ".join(str(error.err).split())[:200]
