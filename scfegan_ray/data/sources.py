"""Raw faces: folders of images, the official CelebAMask-HQ layout, zips, Parquet, or portraits drawn by this package.

A source is small and is sent to every worker; a worker asks it for one key after the other.
"""

from __future__ import annotations

import bisect
import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scfegan_ray import storage
from scfegan_ray.config import DataConfig
from scfegan_ray.data import decoding, faces, parsing, trees
from scfegan_ray.errors import DataError

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""Name of the source that needs no files."""

_PHOTOGRAPHS = "CelebA-HQ-img"
_PART_MASKS = "CelebAMask-HQ-mask-anno"
_LAYOUT = re.compile(rf"((?:[^/]+/)?){_PHOTOGRAPHS}/")
_NUMBER = "[0-9]{1,18}"
# \d and isdigit() take digits of other scripts, too, not all of which int() can read, nor as many as there may be.
_READ_ROWS = 16


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds.

    Attributes:
        keys: of all faces, unique, always in the same order.
        refused: (key, reason) of entries that cannot even be tried.
    """

    keys: list[str]
    refused: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Face:
    """One square face.

    Attributes:
        image: (S, S, 3) uint8 RGB, at the size that was asked for.
        photograph: (W, W, 3) uint8 RGB, the same square with the detail that was asked for, as far as it has it.
        labels: (S, S) uint8, index into `parsing.LABELS`, or None where nobody labelled the photograph.
        eyes: (4,) float32: x, y of the eye at the image's left, then of the one at its right, in pixels; or None
            where they follow from the labels, or from the alignment of the photographs.
        notes: what was guessed about the file.
    """

    image: NDArray[np.uint8]
    photograph: NDArray[np.uint8]
    labels: NDArray[np.uint8] | None = None
    eyes: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()


class FaceSource(Protocol):
    """Where raw faces come from."""

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

    def load(self, key: str, size_px: int, detail_px: int) -> Face:
        """Read one face.

        Args:
            key: one that was listed.
            size_px: side of the image that is wanted.
            detail_px: side from which the photograph need not be larger.

        Raises:
            DataError: this image cannot be used, others may; the text is the reason, without the key.
            StorageError: the storage fails.
        """
        ...


@dataclass(frozen=True, slots=True)
class EmbeddedFaces:
    """Portraits drawn by `faces.draw_face`, with exact labels: no download, the same on every machine."""

    name: str = EMBEDDED
    license: str = "CC0-1.0"
    has_labels: bool = True

    @staticmethod
    def list_keys(count: int, seed: int) -> list[str]:
        """Return one key per portrait."""
        return [f"embedded/{seed}/{index:07d}" for index in range(count)]

    def load(self, key: str, size_px: int, detail_px: int) -> Face:
        """Draw one portrait."""
        _, seed, index = key.split("/")
        drawn = faces.draw_face(int(seed), int(index), size_px)
        return Face(drawn.image, drawn.image, drawn.labels, np.asarray(drawn.eyes, np.float32))


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Every image of a tree, at any depth; keys are paths within it.

    Attributes:
        tree: where the files lie.
        max_megapixels: larger photographs are refused.
    """

    tree: trees.FileTree
    max_megapixels: float
    name: str = "folder"
    license: str = "unknown"
    has_labels: bool = False

    def load(self, key: str, size_px: int, detail_px: int) -> Face:
        """Read, crop and resize one photograph; see `FaceSource`."""
        return _face(self.tree.read(key), self.max_megapixels, size_px, detail_px)


@dataclass(frozen=True, slots=True)
class CelebAMaskHQ:
    """The official layout: `CelebA-HQ-img/N.jpg` and `CelebAMask-HQ-mask-anno/K/NNNNN_part.png`.

    Attributes:
        tree: where the files lie.
        root: path of the layout within the tree: empty, or ending with a slash.
        max_megapixels: larger photographs are refused.
        parts: image number -> start of the paths of its part masks, and one bit per class of `parsing.LABELS` that it
            has: all of the official set's 400,000 names would be much to send around.
    """

    tree: trees.FileTree
    root: str
    max_megapixels: float
    parts: dict[int, tuple[str, int]] = field(repr=False)
    name: str = "celebamask-hq"
    license: str = "CelebAMask-HQ: non-commercial research only"
    has_labels: bool = True

    @classmethod
    def open(cls, tree: trees.FileTree, root: str, names: list[str], max_megapixels: float) -> CelebAMaskHQ:
        """Find the part masks among the names of a tree once, so that loading a face asks only for what exists."""
        parts: dict[int, tuple[str, int]] = {}
        for name in names:
            found = re.fullmatch(rf"({_PART_MASKS}/(?:.*/)?({_NUMBER}))_(\w+)\.png", name.removeprefix(root))
            if found and found[3] in parsing.LABELS:
                start, bits = parts.get(int(found[2]), (found[1], 0))
                parts[int(found[2])] = start, bits | 1 << parsing.LABELS.index(found[3])
        return cls(tree, root, max_megapixels, parts)

    def load(self, key: str, size_px: int, detail_px: int) -> Face:
        """Read one photograph with its labels; see `FaceSource`."""
        number = PurePosixPath(key).stem
        start, bits = self.parts.get(int(number), ("", 0)) if re.fullmatch(_NUMBER, number) else ("", 0)
        if not bits:
            raise DataError(f"no part masks NNNNN_part.png under {_PART_MASKS}")
        masks = {}
        for at, part in enumerate(parsing.LABELS):
            if bits >> at & 1:
                name = f"{start}_{part}.png"
                try:
                    data = self.tree.read(self.root + name)
                    masks[part] = _central_square(decoding.decode_mask(data, max_megapixels=self.max_megapixels))
                except DataError as error:
                    raise DataError(f"{name}: {error}") from error
        face = _face(self.tree.read(self.root + key), self.max_megapixels, size_px, detail_px)
        labels = parsing.merge_parts(masks, size_px)
        if not labels.any():
            raise DataError("masks are empty: all of its labels are background")
        return replace(face, labels=labels)


@dataclass(frozen=True)
class ParquetImages:
    """Parquet files with a column of encoded images: binary of any of Arrow's kinds, or a struct with such a `bytes`.

    Attributes:
        uris: of the files, by their paths under the source.
        column: holds the images.
        max_megapixels: larger photographs are refused.
    """

    uris: dict[str, str] = field(repr=False)
    column: str
    max_megapixels: float
    name: str = "parquet"
    license: str = "unknown"
    has_labels: bool = False

    def list_keys(self) -> list[str]:
        """Return one key per row: the file's path and the row's number.

        Raises:
            DataError: a file is no Parquet, or has no such column of images.
            StorageError: a file cannot be read.
        """
        return [f"{name}/{row:08d}" for name, uri in self.uris.items() for row in range(self._num_rows(uri))]

    def _num_rows(self, uri: str) -> int:
        with _open_parquet(uri) as file:
            schema = file.schema_arrow
            kind = schema.field(self.column).type if self.column in schema.names else None
            if kind is not None and pa.types.is_struct(kind):
                kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
            if kind is None or not _is_binary(kind):
                raise DataError(
                    f"{uri} has no column {self.column!r} of encoded images, but {', '.join(schema.names)}; name it "
                    "with --data.image-column"
                )
            count: int = file.metadata.num_rows
        return count

    def load(self, key: str, size_px: int, detail_px: int) -> Face:
        """Read one row; rows that are asked for in their order are read in one go. See `FaceSource`."""
        name, _, row = key.rpartition("/")
        data = self._cursor.read(self.uris[name], int(row))
        if data is None:
            raise DataError("the row holds no image")
        return _face(data, self.max_megapixels, size_px, detail_px)

    @functools.cached_property
    def _cursor(self) -> _ParquetCursor:
        return _ParquetCursor(self.column)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind."""
        return {name: value for name, value in self.__dict__.items() if name != "_cursor"}


class _ParquetCursor:
    """Reads rows of one column, fast where each lies a little behind the one before, with few of them in memory."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._uri = ""
        self._file: pq.ParquetFile | None = None
        self._starts: list[int] = []
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: list[Any] = []
        self._first = 0

    def read(self, uri: str, row: int) -> bytes | None:
        if uri != self._uri:
            self._open(uri)
        group = bisect.bisect_right(self._starts, row) - 1
        with trees.errors_of_content(uri, "damaged in its Parquet file"):
            if group != self._group or row < self._first:
                assert self._file is not None
                self._batches = self._file.iter_batches(_READ_ROWS, row_groups=[group], columns=[self._column])
                self._first, self._batch = self._starts[group], []
            self._group = -1  # until the row is there
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                column = next(self._batches).column(0)
                if pa.types.is_struct(column.type):
                    # Flattened, for a field that is taken alone does not know which structs are null.
                    column = column.flatten()[column.type.get_field_index("bytes")]
                self._batch = column.to_pylist()
            self._group = group
        data: bytes | None = self._batch[row - self._first]
        return data

    def _open(self, uri: str) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._uri, self._group = _open_parquet(uri), uri, -1
        meta = self._file.metadata
        self._starts = np.cumsum([0, *(meta.row_group(at).num_rows for at in range(meta.num_row_groups))]).tolist()


def open_source(config: DataConfig, seed: int) -> tuple[FaceSource, Listing]:
    """Find out what a source URI holds.

    Args:
        config: `source` says where to look.
        seed: of the embedded faces.

    Raises:
        DataError: there is nothing, or nothing of a known kind.
        StorageError: it cannot be listed.
    """
    source, listing = _open(config, seed)
    return source, Listing(listing.keys[: config.max_images], listing.refused)


def _open(config: DataConfig, seed: int) -> tuple[FaceSource, Listing]:
    if config.source == EMBEDDED:
        return EmbeddedFaces(), Listing(EmbeddedFaces.list_keys(config.num_embedded, seed), [])
    root = storage.absolute(config.source)
    if not storage.exists(root):
        raise DataError(f"no faces at {root}; check --data.source")
    refused: list[tuple[str, str]] = []
    tree, names = _list(root, lambda name, reason: refused.append((name, reason)))
    photographs = [name for name in names if PurePosixPath(name).suffix.lower() in decoding.IMAGE_SUFFIXES]
    # The official archive has the layout in a folder of its own.
    layout = next((found[1] for name in photographs if (found := _LAYOUT.match(name))), None)
    if layout is not None:
        keys = [name.removeprefix(layout) for name in photographs if name.startswith(f"{layout}{_PHOTOGRAPHS}/")]
        return CelebAMaskHQ.open(tree, layout, names, config.max_megapixels), Listing(keys, refused)
    tables = [name for name in names if name.lower().endswith(".parquet")]
    if tables and not photographs and isinstance(tree, trees.Folder):
        uris = {name: storage.join(tree.root, name) for name in tables}
        rows = ParquetImages(uris, config.image_column, config.max_megapixels)
        return rows, Listing(rows.list_keys(), refused)
    others = Counter(PurePosixPath(name).suffix.lower() or "without a suffix" for name in names)
    for suffix in decoding.IMAGE_SUFFIXES:
        del others[suffix]
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        logger.info("passed over %d files that are no images by their names: %s", others.total(), kinds)
    return ImageFolder(tree, config.max_megapixels), Listing(photographs, refused)


def _list(root: str, refuse: Callable[[str, str], None]) -> tuple[trees.FileTree, list[str]]:
    if not storage.is_file(root):
        folder = trees.Folder(root)
        return folder, folder.names(refuse)
    parent, _, name = root.rpartition("/")
    if name.lower().endswith(".parquet"):
        return trees.Folder(parent), [name]
    if name.lower().endswith(".zip"):
        archive = trees.ZipArchive(root)
        return archive, archive.names(refuse)
    raise DataError(f"{root} is one file; give a folder of images, a .zip of one, or .parquet as --data.source")


def _face(data: bytes, max_megapixels: float, size_px: int, detail_px: int) -> Face:
    enough_px = max(size_px, detail_px)
    notes: list[str] = []
    photograph = decoding.decode_photograph(
        data, max_megapixels=max_megapixels, at_least_px=enough_px, note=notes.append
    )
    decoding.check_photograph(photograph)
    seen = decoding.resize(photograph, enough_px) if photograph.shape[0] > enough_px else photograph
    return Face(decoding.resize(photograph, size_px), seen, notes=tuple(notes))


def _central_square(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    left, top, right, bottom = decoding.central_square(mask.shape[1], mask.shape[0])
    return mask[top:bottom, left:right]


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _open_parquet(uri: str) -> pq.ParquetFile:
    stream = storage.open_seekable(uri)
    with trees.errors_of_content(uri, f"{uri} is no readable Parquet file, copy it again"):
        # Column chunks are read piece by piece: some writers put thousands of photographs into one.
        return pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
