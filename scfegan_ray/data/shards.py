"""One shard of keys to one Parquet file: all the work of preparation, without Ray."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from scfegan_ray import storage
from scfegan_ray.config import DataConfig
from scfegan_ray.data import colors, parsing, sketches, sources
from scfegan_ray.data.codecs import encode_png
from scfegan_ray.data.dataset import write_shard
from scfegan_ray.errors import DataError

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

CHUNK_IMAGES = 8
"""Decoded photographs in memory at a time."""


class ShardMaker:
    """Prepares faces, one shard after the other, in one process."""

    def __init__(
        self,
        config: DataConfig,
        source: sources.FaceSource,
        uri: str,
        settings: dict[str, Any],
        retry_seconds: float = 0.0,
    ) -> None:
        """Take the work's description.

        Args:
            config: with `sketch` settled, so that no two workers choose differently.
            source: where the keys are read from.
            uri: of the dataset.
            settings: everything that shapes the shards; written into each.
            retry_seconds: how long storage that fails is tried again.
        """
        self._config = config
        self._source = source
        self._uri = uri
        self._settings = settings
        self._retry_seconds = retry_seconds
        self._device = torch.device("cpu")
        self._is_set_up = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave weights behind; who works with them loads them."""
        return ShardMaker, (self._config, self._source, self._uri, self._settings, self._retry_seconds)

    @functools.cached_property
    def detector(self) -> sketches.EdgeDetector:
        """What finds the edges of all sketches."""
        return sketches.make_detector(self._config.sketch, self._device)

    @functools.cached_property
    def parser(self) -> parsing.FaceParser | None:
        """What labels photographs that nobody labelled, if anything."""
        return parsing.load_parser(self._config.parser) if self._config.parser.model else None

    def set_up(self, device: torch.device | None = None) -> None:
        """Make this process ready: load weights and libraries, and keep to one core, for every core has a process.

        Args:
            device: where edges are detected. Default: the CPU.

        Raises:
            ModelError: weights cannot be had.
        """
        if self._is_set_up:
            return
        self._device = device or self._device
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        blank = np.full((self._config.size_px, self._config.size_px, 3), 128, np.uint8)
        face = sources.Face(blank, blank, None, parsing.canonical_eyes(self._config.size_px))
        # The first face through takes a second longer: libraries load parts of themselves when they are first used.
        self.encode("", face, self.sketch([face] * CHUNK_IMAGES)[0], self.color(face))
        if self.parser is not None:
            self.parser(blank)
        self._is_set_up = True

    def make(self, number: int, keys: Sequence[str]) -> tuple[int, int]:
        """Prepare the images of one shard and write its file.

        Args:
            number: of the shard.
            keys: of its images.

        Returns:
            How many images were prepared, and how many were refused.

        Raises:
            StorageError: the source or the dataset's place fails.
            ModelError: weights cannot be had.
        """
        rows: list[dict[str, Any]] = []
        refused: list[tuple[str, str]] = []
        notes: list[tuple[str, str]] = []
        for start in range(0, len(keys), CHUNK_IMAGES):
            loaded: list[tuple[str, sources.Face]] = []
            for key in keys[start : start + CHUNK_IMAGES]:
                try:
                    loaded.append((key, self._patiently(functools.partial(self.load, key))))
                except DataError as error:
                    refused.append((key, " ".join(str(error).split())))
            notes += [(key, note) for key, face in loaded for note in face.notes]
            drawn = self.sketch([face for _, face in loaded])
            rows += [
                self.encode(key, face, sketch, self.color(face))
                for (key, face), sketch in zip(loaded, drawn, strict=True)
            ]
        self._patiently(lambda: self.write(number, rows, refused, notes))
        return len(rows), len(refused)

    def _patiently(self, work: Callable[[], ResultT]) -> ResultT:
        return storage.retrying(work, self._retry_seconds, logger.warning)

    def load(self, key: str) -> sources.Face:
        """Read one face, with labels of the parser where nobody labelled it, and with eyes.

        Raises:
            DataError: this image cannot be used; the text is the reason, without the key.
        """
        size_px = self._config.size_px
        face = self._source.load(key, size_px, sketches.working_size_px(self._config.sketch, size_px))
        labels = face.labels
        if labels is None and self.parser is not None:
            found = self.parser(face.photograph)
            if parsing.has_face(found):
                labels = parsing.resize_labels(found, size_px)
        eyes = face.eyes
        if eyes is None and labels is not None:
            eyes = parsing.eye_positions(labels, self._config.eyes)
        if eyes is None:
            eyes = parsing.canonical_eyes(size_px, self._config.eyes)
        return replace(face, labels=labels, eyes=eyes)

    def sketch(self, faces: Sequence[sources.Face]) -> NDArray[np.uint8]:
        """Draw the lines of some faces: (N, S, S) uint8 in {0, 1}."""
        photographs = [face.photograph for face in faces]
        return sketches.make_sketches(photographs, self.detector, self._config.sketch, self._config.size_px)

    def color(self, face: sources.Face) -> NDArray[np.uint8]:
        """Paint the segments of one face: (S, S, 3) uint8 RGB."""
        return colors.make_color_map(face.image, face.labels, self._config.color)

    def encode(
        self, key: str, face: sources.Face, sketch: NDArray[np.uint8], color: NDArray[np.uint8]
    ) -> dict[str, Any]:
        """Make one face's row; its columns are documented in `dataset`."""
        hair = None if face.labels is None else parsing.hair_region(face.labels)
        assert face.eyes is not None, "load gives every face eyes"
        row: dict[str, Any] = {
            "key": key,
            "image": encode_png(face.image),
            "sketch": encode_png(sketch * np.uint8(255)),
            "color": encode_png(color),
            "hair": None if hair is None else encode_png(hair * np.uint8(255)),
            "eyes": face.eyes.astype(np.float32),
        }
        digest = hashlib.sha256()
        for value in row.values():
            data = value.encode() if isinstance(value, str) else b"" if value is None else bytes(value)
            digest.update(len(data).to_bytes(8, "big") + data)
        packed = color.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        return row | {
            "sha256": digest.hexdigest(),
            "sketch_area": cv2.countNonZero(sketch) / sketch.size,
            "num_colors": pc.count_distinct(pa.array(packed.reshape(-1))).as_py(),
            "color_error": float(cv2.norm(face.image, color, cv2.NORM_L1)) / color.size,
            "hair_area": None if hair is None else cv2.countNonZero(hair) / hair.size,
        }

    def write(
        self,
        number: int,
        rows: list[dict[str, Any]],
        refused: list[tuple[str, str]],
        notes: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Write one shard's file, so that readers see all of it or nothing.

        Raises:
            StorageError: the dataset's place fails.
        """
        write_shard(
            self._uri,
            number,
            rows,
            settings=self._settings,
            settled={"detector": self._config.sketch.detector, "precision": self._config.sketch.precision},
            refused=refused,
            notes=notes,
        )
