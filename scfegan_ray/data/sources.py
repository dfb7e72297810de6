"""Raw faces: folders of images, the official CelebAMask-HQ layout, zips, Parquet, or portraits drawn by this package.

A source is small and is sent to every worker; a worker asks it for one key after the other.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scfegan_ray import faces, storage
from scfegan_ray.config import DataConfig
from scfegan_ray.data import align, columns, decoding, layouts, parsing, trees
from scfegan_ray.errors import DataError

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""Name of the source that needs no files."""

CELEBAMASK_HQ_LICENSE = "CelebAMask-HQ: non-commercial research only"

_PART_MASKS = layouts.PART_MASKS
_NUMBER = "[0-9]{1,18}"
# \d and isdigit() take digits of other scripts, too, not all of which int() can read, nor as many as there may be.
_READ_ROWS = 16


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds.

    Attributes:
        keys: of all faces, strings, unique, always in the same order.
        refused: (key, reason) of entries that cannot even be tried.
        identity: what tells these photographs from others, wherever they lie; see `identify`.
    """

    keys: pa.ChunkedArray
    refused: list[tuple[str, str]]
    identity: dict[str, str | None] = field(default_factory=dict, compare=False)


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
        square: where in the photograph it was found; None where that was taken as it is.
    """

    image: NDArray[np.uint8]
    photograph: NDArray[np.uint8]
    labels: NDArray[np.uint8] | None = None
    eyes: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()
    square: align.Square | None = None


class FaceSource(Protocol):
    """Where raw faces come from."""

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Take note of what will be loaded next, in this order, so that reading may begin before it is asked for."""
        ...

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


@runtime_checkable
class RawPhotographs(FaceSource, Protocol):
    """Photographs of which nothing says where their faces are."""

    @property
    def max_megapixels(self) -> float:
        """Larger ones are refused."""
        ...

    def read(self, key: str) -> bytes:
        """Read the file of one photograph.

        Raises:
            DataError: there is none, others may be fine; the text is the reason, without the key.
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
    def list_keys(count: int, seed: int) -> pa.ChunkedArray:
        """Return one key per portrait."""
        return columns.to_column(f"embedded/{seed}/{index:07d}" for index in range(count))

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Do nothing: there is nothing to read."""

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

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Begin to read photographs; see `FaceSource`."""
        self.tree.read_ahead(keys)

    def load(self, key: str, size_px: int, detail_px: int) -> Face:
        """Read, crop and resize one photograph; see `FaceSource`."""
        return _face(self.read(key), self.max_megapixels, size_px, detail_px)

    def read(self, key: str) -> bytes:
        """Read one file; see `RawPhotographs`."""
        return self.tree.read(key)


@dataclass(frozen=True, slots=True)
class CelebAMaskHQ:
    """The official layout: `CelebA-HQ-img/N.jpg` and `CelebAMask-HQ-mask-anno/K/NNNNN_part.png`.

    Attributes:
        tree: where the files lie.
        root: path of the layout within the tree: empty, or ending with a slash.
        max_megapixels: larger photographs are refused.
        parts: image number -> start of the paths of its part masks, and one bit per class of `parsing.LABELS` that it
            has: all of the official set's 400,000 names would be much to send around.
        mask_suffix: how the names of the part masks end.
    """

    tree: trees.FileTree
    root: str
    max_megapixels: float
    parts: dict[int, tuple[str, int]] = field(repr=False)
    mask_suffix: str = ".png"
    name: str = "celebamask-hq"
    license: str = CELEBAMASK_HQ_LICENSE
    has_labels: bool = True

    @classmethod
    def open(
        cls, tree: trees.FileTree, root: str, masks: Sequence[layouts.PartMask], max_megapixels: float
    ) -> CelebAMaskHQ:
        """Note which part masks of a layout there are once, so that loading a face asks only for what exists."""
        suffix = Counter(mask.suffix for mask in masks).most_common(1)[0][0]
        parts: dict[int, tuple[str, int]] = {}
        for mask in masks:
            if mask.suffix == suffix:
                start, bits = parts.get(mask.number, (mask.start, 0))
                parts[mask.number] = start, bits | 1 << parsing.LABELS.index(mask.part)
        return cls(tree, root, max_megapixels, parts, suffix)

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Begin to read photographs and part masks; see `FaceSource`."""
        self.tree.read_ahead(
            self.root + name for key in keys for name in (*(mask for _, mask in self._part_masks(key)), key)
        )

    def _part_masks(self, key: str) -> list[tuple[str, str]]:
        """Return part and path within the layout of each part mask of a face."""
        number = PurePosixPath(key).stem
        start, bits = self.parts.get(int(number), ("", 0)) if re.fullmatch(_NUMBER, number) else ("", 0)
        return [(part, f"{start}_{part}{self.mask_suffix}") for at, part in enumerate(parsing.LABELS) if bits >> at & 1]

    def load(self, key: str, size_px: int, detail_px: int) -> Face:
        """Read one photograph with its labels; see `FaceSource`."""
        part_masks = self._part_masks(key)
        if not part_masks:
            raise DataError(f"no part masks NNNNN_part.png under {_PART_MASKS}")
        masks = {}
        for part, name in part_masks:
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

    def list_keys(self) -> pa.ChunkedArray:
        """Return one key per row: the file's path and the row's number.

        Raises:
            DataError: a file is no Parquet, or has no such column of images.
            StorageError: a file cannot be read.
        """
        return columns.to_column(
            f"{name}/{row:08d}" for name, uri in self.uris.items() for row in range(self._num_rows(uri))
        )

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

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Do nothing: rows that follow each other lie together, and are read together."""

    def load(self, key: str, size_px: int, detail_px: int) -> Face:
        """Read, crop and resize one photograph; see `FaceSource`."""
        return _face(self.read(key), self.max_megapixels, size_px, detail_px)

    def read(self, key: str) -> bytes:
        """Read one row; rows that are asked for in their order are read in one go. See `RawPhotographs`."""
        name, _, row = key.rpartition("/")
        data = self._cursor.read(self.uris[name], int(row))
        if data is None:
            raise DataError("the row holds no image")
        return data

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


def load_faces(
    source: RawPhotographs, key: str, finder: align.FaceFinder, size_px: int, detail_px: int
) -> tuple[list[tuple[str, Face]], list[tuple[str, str]]]:
    """Read one photograph, and cut out its faces as CelebA-HQ was; one that is aligned already is taken as it is.

    Their eyes are left to the alignment: where the finder sees them is hardly nearer to the labels' (2.7 px at 512 px
    against 3.1, medians of 196 faces of CelebAMask-HQ).

    Args:
        source: of the photograph.
        key: of the photograph.
        finder: finds the faces.
        size_px: side of the images that are wanted.
        detail_px: side from which what is cut out need not be larger.

    Returns:
        (key, face) of each face that can be used, and (key, reason) of each other one. Where there are several, their
        keys are numbered; see `dataset.photograph_of`.

    Raises:
        DataError: the photograph cannot be used, others may; the text is the reason, without the key.
        StorageError: the storage fails.
    """
    notes: list[str] = []
    photograph = decoding.decode_whole(source.read(key), max_megapixels=source.max_megapixels, note=notes.append)
    height, width = photograph.shape[:2]
    left, top, right, bottom = decoding.central_square(width, height)
    decoding.check_photograph(photograph[top:bottom, left:right])
    found = finder.find(photograph)
    if not found:
        raise DataError("no face found")
    enough_px = max(size_px, detail_px)
    if align.is_aligned(found, width, height):
        return [(key, _sized(photograph, size_px, enough_px, notes))], []
    faces: list[tuple[str, Face]] = []
    refused: list[tuple[str, str]] = []
    for number, one in enumerate(found, 1):
        name = key if len(found) == 1 else f"{key}#{number}"
        if one.problem is not None:
            refused.append((name, one.problem))
            continue
        image = align.crop(photograph, one.square, size_px)
        seen_px = min(enough_px, max(size_px, round(one.square.side_px)))
        seen = image if seen_px == size_px else align.crop(photograph, one.square, seen_px)
        faces.append((name, Face(image, seen, notes=tuple(notes), square=one.square)))
    return faces, refused


def open_source(config: DataConfig, seed: int, *, outputs: Sequence[str] = ()) -> tuple[FaceSource, Listing]:
    """Find out what a source URI holds.

    Args:
        config: `source` says where to look; what lies at `prepared` is passed over.
        seed: of the embedded faces.
        outputs: URIs of further places that this package writes to, which hold no photographs.

    Raises:
        DataError: there is nothing, nothing of a known kind, or label files whose layout is not known.
        StorageError: it cannot be listed.
    """
    if config.source == EMBEDDED:
        keys = EmbeddedFaces.list_keys(config.num_embedded, seed)[: config.max_images]
        return EmbeddedFaces(), Listing(keys, [], identify(columns.values_of(keys)))
    root = storage.absolute(config.source).rstrip("/") or "/"
    if not storage.exists(root):
        raise DataError(f"no faces at {root}; check --data.source")
    refused: list[tuple[str, str]] = []
    tree, files = _list(root, lambda name, reason: refused.append((name, reason)))
    _check_not_ours(root, tree, files)
    files = _leave_out_outputs(root, files, [place for place in (config.prepared, *outputs) if place])
    photographs = files.where(lambda name: _suffix(name) in decoding.IMAGE_SUFFIXES)
    layout = _find_layout(root, photographs, files)
    if layout is not None:
        return _open_layout(config, tree, layout, photographs, files, refused)
    tables = files.where(lambda name: _suffix(name) == ".parquet")
    if tables and not photographs and isinstance(tree, trees.Folder):
        uris = {file.name: storage.join(tree.root, file.name) for file in tables}
        rows = ParquetImages(uris, config.image_column, config.max_megapixels)
        keys = rows.list_keys()[: config.max_images]
        names = {key.rpartition("/")[0] for key in columns.values_of(keys)}
        identity = identify(columns.values_of(keys), [file for file in tables if file.name in names])
        return rows, Listing(keys, refused, identity)
    _check_no_label_files(root, tree, photographs, has_parser=config.parser.model is not None)
    others = Counter(_suffix(name) or "without a suffix" for name in columns.values_of(files.names))
    for suffix in decoding.IMAGE_SUFFIXES:
        del others[suffix]
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        logger.info("passed over %d files that are no images by their names: %s", others.total(), kinds)
    taken = photographs[: config.max_images]
    identity = identify(columns.values_of(taken.names), taken)
    return ImageFolder(tree, config.max_megapixels), Listing(taken.names, refused, identity)


def identify(keys: Iterable[str], files: Iterable[storage.File] | None = None) -> dict[str, str | None]:
    """Return what tells a set of photographs from any other, as far as a listing tells; where it lies does not matter.

    Args:
        keys: of the photographs.
        files: that the photographs come from, with paths within the source, in a fixed order; None where there are
            none.

    Returns:
        keys_sha256: of the keys. sizes_sha256: of the files' names and sizes. tags_sha256: of their ETags or checksums,
        after a word that says of which kind those are; None where the listing has none. The last two are missing where
        there are no files.
    """
    of_keys = hashlib.sha256()
    for at, key in enumerate(keys):
        of_keys.update(f"\n{key}".encode() if at else key.encode())
    identity: dict[str, str | None] = {"keys_sha256": of_keys.hexdigest()}
    if files is not None:
        of_sizes, of_tags, length = hashlib.sha256(), hashlib.sha256(), 0
        for file in files:
            of_sizes.update(f"{file.name}\0{file.size}\n".encode())
            of_tags.update(f"{file.tag}\n".encode())
            length = len(file.tag)
        kind = {0: None, 8: "crc32"}.get(length, "etag")
        identity["sizes_sha256"] = of_sizes.hexdigest()
        identity["tags_sha256"] = f"{kind}:{of_tags.hexdigest()}" if kind else None
    return identity


def _list(root: str, refuse: Callable[[str, str], None]) -> tuple[trees.FileTree, columns.Files]:
    if not storage.is_file(root):
        folder = trees.Folder(root)
        return folder, folder.files(refuse)
    parent, _, name = root.rpartition("/")
    if name.lower().endswith(".parquet"):
        return trees.Folder(parent), columns.Files.sort([storage.describe_file(root)])
    if name.lower().endswith(".zip"):
        archive = trees.ZipArchive(root)
        return archive, archive.files(refuse)
    raise DataError(f"{root} is one file; give a folder of images, a .zip of one, or .parquet as --data.source")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _check_not_ours(root: str, tree: trees.FileTree, files: columns.Files) -> None:
    """Refuse a source that is a dataset or run of this package; a `dataset.json` of somebody else's proves nothing.

    Raises:
        DataError: it is one.
    """
    records = {
        "dataset.json": ("schema_version", "a prepared dataset, not raw photographs; give it as --data.prepared"),
        "run.json": ("run_id", "the folder of a run, not of photographs; check --data.source"),
    }
    for name in columns.values_of(files.where(lambda name: name in records).names):
        try:
            values = json.loads(tree.read(name))
        except (DataError, ValueError):
            continue
        sign, what = records[name]
        if isinstance(values, dict) and sign in values:
            raise DataError(f"{root} is {what}")


def _leave_out_outputs(root: str, files: columns.Files, outputs: Sequence[str]) -> columns.Files:
    places = []
    for output in outputs:
        place = storage.absolute(output)
        places += [place, storage.join(place, "prepared")]
    kept, left_out = layouts.leave_out_outputs(files, {inside for at in places for inside in _paths_within(root, at)})
    if left_out:
        folders = ", ".join(f"{folder} ({count} files)" for folder, count in sorted(left_out.items())[:5])
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        logger.info("left out what this package or MLflow wrote under %s: %s%s", root, folders, more)
    return kept


def _paths_within(root: str, place: str) -> set[str]:
    """Return the paths, relative to a folder, of a place that lies in it by its name or where links lead."""
    pairs = [(root, place)]
    if storage.is_local(root) and storage.is_local(place):
        pairs.append((os.path.realpath(root), os.path.realpath(place)))
    return {
        inner[len(prefix) :]
        for outer, inner in pairs
        if inner.startswith(prefix := f"{outer.rstrip('/')}/") and inner != prefix
    }


def _find_layout(root: str, photographs: columns.Files, files: columns.Files) -> str | None:
    """Return the path of the official layout within a source: empty, or ending with a slash; None where there is none.

    Raises:
        DataError: there are several.
    """
    roots = layouts.roots_of_photographs(columns.values_of(photographs.names))
    if not roots:
        return None
    masks = filter(None, map(layouts.part_mask, columns.values_of(files.names)))
    annotated = sorted(roots.keys() & {mask.root for mask in masks})
    if len(annotated) > 1:
        found = ", ".join(f"{layout or './'}" for layout in annotated[:5])
        raise DataError(f"{root} holds {len(annotated)} layouts of CelebAMask-HQ ({found}); give one as --data.source")
    return annotated[0] if annotated else None


def _open_layout(
    config: DataConfig,
    tree: trees.FileTree,
    layout: str,
    photographs: columns.Files,
    files: columns.Files,
    refused: list[tuple[str, str]],
) -> tuple[FaceSource, Listing]:
    inside = layout + layouts.roots_of_photographs(columns.values_of(photographs.names))[layout]
    official = photographs.where(lambda name: name.startswith(inside))
    found = [(file, mask) for file in files if (mask := layouts.part_mask(file.name)) and mask.root == layout]
    rest = len(photographs) - len(official) - sum(_suffix(file.name) == ".png" for file, _ in found)
    if rest:
        logger.warning("passed over %d images beside the photographs of %s", rest, inside)
    source = CelebAMaskHQ.open(tree, layout, [mask for _, mask in found], config.max_megapixels)
    taken = official[: config.max_images]
    numbers = {PurePosixPath(file.name).stem.lstrip("0") for file in taken}
    masks = [file for file, mask in found if str(mask.number).lstrip("0") in numbers]
    within = [file._replace(name=file.name.removeprefix(layout)) for file in (*taken, *masks)]
    keys = [file.name for file in within[: len(taken)]]
    return source, Listing(columns.to_column(keys), refused, identify(keys, within))


def _check_no_label_files(root: str, tree: trees.FileTree, photographs: columns.Files, *, has_parser: bool) -> None:
    """Refuse a folder of photographs among which label files would be taken for faces.

    Raises:
        DataError: there are some, or it is the official layout without them and nothing else labels photographs.
    """
    labels = layouts.find_label_files(photographs)
    if labels is not None:
        cure = (
            f"give the photographs alone as {_as_source(root, tree, labels.photographs)}"
            if labels.photographs
            else "give a folder of the photographs alone as --data.source"
        )
        raise DataError(
            f"{root} holds {labels.count} label files beside photographs, such as {labels.example}, in a layout that "
            f"is not known; {cure} (--data.parser.model labels them), or lay them out as CelebAMask-HQ: "
            f"{layouts.PHOTOGRAPHS}/N.jpg, {_PART_MASKS}/K/NNNNN_part.png"
        )
    if has_parser:
        return
    for layout, folder in sorted(layouts.roots_of_photographs(columns.values_of(photographs.names)).items()):
        raise DataError(
            f"{root} is laid out as CelebAMask-HQ, without part masks under {layout}{_PART_MASKS}; give "
            f"{_as_source(root, tree, f'{layout}{folder}'.rstrip('/'))} for the photographs without labels, or let a "
            "parser label them: --data.parser.model"
        )


def _as_source(root: str, tree: trees.FileTree, folder: str) -> str:
    if isinstance(tree, trees.Folder):
        return f"--data.source {storage.join(root, folder)}"
    return f"--data.source its folder {folder}, unpacked"


def _face(data: bytes, max_megapixels: float, size_px: int, detail_px: int) -> Face:
    enough_px = max(size_px, detail_px)
    notes: list[str] = []
    photograph = decoding.decode_photograph(
        data, max_megapixels=max_megapixels, at_least_px=enough_px, note=notes.append
    )
    decoding.check_photograph(photograph)
    return _sized(photograph, size_px, enough_px, notes)


def _sized(photograph: NDArray[np.uint8], size_px: int, enough_px: int, notes: Sequence[str]) -> Face:
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
