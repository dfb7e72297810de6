"""The prepared dataset: its files, its columns, and reading it back.

| path | holds |
| --- | --- |
| `data/part-NNNNN.parquet` | one row an image, columns below; metadata says what the file was made from |
| `rejected.parquet` | key and reason of each image that was left out |
| `preview.png` | 16 rows of what was made, with a sample hole, and how large holes are |
| `report.html` | counts, statistics, the preview and the settings, for people |
| `dataset.json` | `DatasetInfo`; written last, so a folder without one is no dataset yet |

| column | type | meaning |
| --- | --- | --- |
| key | string | the image's path relative to the source, unique |
| image | PNG bytes | (S, S, 3) uint8 RGB ground truth |
| sketch | PNG bytes | (S, S) uint8, 255 on one-pixel lines, else 0 |
| color | PNG bytes | (S, S, 3) uint8 RGB, each segment in its median color, never pure black |
| hair | PNG bytes or null | (S, S) uint8, 255 where hair is; null where nobody and no parser labelled it |
| eyes | 4 float32 | x, y of the eye at the image's left, then of the one at its right, in pixels |
| sha256 | string | hex digest over the columns before it |
| sketch_area | float32 | share of pixels on a line |
| num_colors | int32 | flat colors of the color map |
| color_error | float32 | mean absolute difference of color map and image, in 8-bit levels |
| hair_area | float32 or null | share of pixels that are hair |

Anything that reads Parquet reads it; this package reads it through a memory-mapped copy on each machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scfegan_ray import cache, storage
from scfegan_ray.errors import DataError, StorageError

SCHEMA_VERSION = 2
"""To be raised whenever other files or columns are written, or other contents come from the same photographs' pixels;
`decoding.VERSION` says which pixels come from a file."""

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.binary()),
        ("sketch", pa.binary()),
        ("color", pa.binary()),
        ("hair", pa.binary()),
        ("eyes", pa.list_(pa.float32(), 4)),
        ("sha256", pa.string()),
        ("sketch_area", pa.float32()),
        ("num_colors", pa.int32()),
        ("color_error", pa.float32()),
        ("hair_area", pa.float32()),
    ]
)

_PICTURES = ("image", "sketch", "color", "hair")

STATISTICS = ("sketch_area", "num_colors", "color_error", "hair_area")
"""Columns with a number per image."""

OTHER_FILES = ("dataset.json", "preview.png", "rejected.parquet", "report.html")
"""What lies beside the shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What `dataset.json` says; it is written last, so a folder without one is no dataset.

    Attributes:
        schema_version: of files, columns and their making.
        size_px: side of all images.
        num_images: that were prepared.
        num_train: of them to train on.
        num_test: of them held back.
        num_rejected: images of the source that were left out.
        num_shards: Parquet files.
        test_fraction: share that was asked to be held back.
        fingerprint: hex digest over all keys and contents.
        license: of the photographs.
        source: where they came from.
        sketch_detector: what found the edges: "hed" or "opencv".
        sketch_precision: in which it computed: "float32" or "bfloat16".
        color_segments: what the color map's segments are: "labels" of people, of a "parser", or "superpixels".
        eyes: where eye positions come from: "labels", "parser", or "canonical" for those of aligned faces.
        hair: where the hair region comes from: "labels", "parser" or "none".
        preparation: every setting that shaped the dataset, by its dotted name.
    """

    schema_version: int
    size_px: int
    num_images: int
    num_train: int
    num_test: int
    num_rejected: int
    num_shards: int
    test_fraction: float
    fingerprint: str
    license: str
    source: str
    sketch_detector: str
    sketch_precision: str
    color_segments: str
    eyes: str
    hair: str
    preparation: dict[str, Any]

    def to_json(self) -> bytes:
        """Return the bytes of `dataset.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True).encode()

    @classmethod
    def read(cls, uri: str) -> DatasetInfo | None:
        """Read a dataset's description; None where there is no finished dataset.

        Raises:
            DataError: it was written by another version of this package.
            StorageError: the store cannot be read.
        """
        place = storage.join(uri, "dataset.json")
        if not storage.exists(place):
            return None
        try:
            values = json.loads(storage.read_bytes(place))
            version = values["schema_version"]
            if version == SCHEMA_VERSION:
                return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{place} is damaged ({error}); delete the folder and prepare anew") from error
        raise DataError(
            f"{place} has schema version {version}, this package reads {SCHEMA_VERSION}; prepare it anew at another "
            "--data.prepared, or delete that folder first"
        )


class PreparedDataset:
    """A prepared dataset, memory-mapped on this machine: any row at once, shared by all processes.

    The Parquet shards are brought once into one Arrow file of the local cache, named by the dataset's fingerprint.
    Rows are in the order of their keys, whatever the order of the shards.
    """

    def __init__(self, uri: str, info: DatasetInfo, table: pa.Table) -> None:
        self.uri = uri
        self.info = info
        keys = table.column("key").to_pylist()
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._table = table
        self._copy: Path | None = None
        self._row_of = order
        self.keys: list[str] = [keys[i] for i in order]
        is_test = [is_test_key(key, info.test_fraction) for key in self.keys]
        self.train_rows = np.flatnonzero(~np.asarray(is_test, bool))
        self.test_rows = np.flatnonzero(np.asarray(is_test, bool))

    @classmethod
    def open(cls, uri: str, cache_dir: Path | None = None, info: DatasetInfo | None = None) -> PreparedDataset:
        """Open a prepared dataset.

        Args:
            uri: of the dataset.
            cache_dir: where this machine keeps its copy. Default: `cache.cache_dir()`.
            info: what its description says, for one who knows it already: then only a missing copy is fetched.

        Raises:
            DataError: there is no finished dataset at the URI, or it does not hold what it says.
            StorageError: it cannot be read, or the local cache cannot be written.
        """
        info = info or DatasetInfo.read(uri)
        if info is None:
            raise DataError(f"no prepared dataset at {uri}; make one with jobs/prepare_data.py")
        path = (cache_dir or cache.cache_dir()) / "prepared" / f"{info.fingerprint}.arrow"
        table, handle = _open_copy(uri, info, path)
        dataset = cls(uri, info, table)
        dataset._copy = path
        weakref.finalize(dataset, os.close, handle)
        return dataset

    @property
    def cache_dir(self) -> str | None:
        """Where this machine keeps its copy; None where that is not known."""
        return str(self._copy.parent.parent) if self._copy else None

    def row(self, index: int) -> dict[str, Any]:
        """Decode one row.

        Args:
            index: position among the sorted keys.

        Returns:
            As `decode_row`.

        Raises:
            DataError: a picture is damaged.
        """
        at = self._row_of[index]
        values = {name: self._table.column(name)[at] for name in ("key", *_PICTURES, "eyes")}
        # Encoded pictures are decoded where they lie in the mapped file: hundreds of kilobytes that need no copy.
        try:
            return decode_row(
                {name: value.as_buffer() if name in _PICTURES else value.as_py() for name, value in values.items()}
            )
        except DataError as error:
            if self._copy is not None:
                self._copy.unlink(missing_ok=True)
            raise DataError(
                f"{self.keys[index]} of {self.uri} is damaged here: this machine's copy of the dataset is deleted now, "
                "run it again; where it says so again, delete the dataset and prepare it anew"
            ) from error

    def held_back(self, count: int) -> list[int]:
        """Return rows for evaluation, of the test split only: none where that is empty."""
        return [int(row) for row in self.test_rows[:count]]


def decode_row(value: dict[str, Any]) -> dict[str, Any]:
    """Decode the columns of one stored row.

    Args:
        value: columns by name; the pictures are bytes or Arrow buffers.

    Returns:
        key: str; image: (S, S, 3) uint8 RGB; sketch: (S, S) uint8 {0, 1}; color: (S, S, 3) uint8 RGB;
        hair: (S, S) uint8 {0, 1} or None; eyes: (4,) float32 pixels.
    """
    return {
        "key": value["key"],
        "image": decode_png(value["image"]),
        "sketch": decode_png(value["sketch"]) & 1,
        "color": decode_png(value["color"]),
        "hair": None if value["hair"] is None else decode_png(value["hair"]) & 1,
        "eyes": np.asarray(value["eyes"], np.float32),
    }


def is_test_key(key: str, test_fraction: float) -> bool:
    """Tell whether an image is held back: a pure function of its key."""
    return key_number(key) / 2**64 < test_fraction


def key_number(key: str) -> int:
    """Return a number from 0 to 2^64 that an image keeps wherever it lies: all that is random about it starts there."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the hex digest over key and sha256 of rows, whatever their order."""
    lines = sorted(f"{row['key']} {row['sha256']}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W) gray or (H, W, 3) RGB uint8 without loss, so that it decodes fast.

    Decoding is most of what a training image costs. Photographs are stored row by row as the difference from the row
    above: no other of PNG's filters is undone as fast, nor makes them much smaller. Flat areas are fastest unfiltered.
    """
    sample = image[::8]
    is_flat = 2 * np.count_nonzero(sample[:, 1:] == sample[:, :-1]) > sample.size
    row_filter = cv2.IMWRITE_PNG_FILTER_NONE if is_flat else cv2.IMWRITE_PNG_FILTER_UP
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, row_filter])
    assert ok, "OpenCV encodes every uint8 image as PNG"
    return data.tobytes()


def encode_webp(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) RGB uint8 for a page: smaller, and not quite the same."""
    ok, data = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 85])
    assert ok, "OpenCV encodes every uint8 image as WebP"
    return data.tobytes()


def decode_png(data: bytes | pa.Buffer) -> NDArray[np.uint8]:
    """Decode what `encode_png` made."""
    encoded = np.frombuffer(data, np.uint8)
    # The color type in a PNG's header: OpenCV decodes straight to RGB, but not before it is told to expect colors.
    is_rgb = encoded[25:26].tobytes() == b"\x02"
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB if is_rgb else cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise DataError("an image of the prepared dataset is damaged; delete the dataset and prepare it anew")
    return image.astype(np.uint8, copy=False)


def _open_copy(uri: str, info: DatasetInfo, path: Path) -> tuple[pa.Table, int]:
    """Map this machine's copy of a dataset, made first where there is none or a damaged one.

    Returns:
        The rows, and the handle that keeps the copy from being deleted until it is closed.
    """
    try:
        found = _map_if_whole(info, path)
        if found is None:
            # Processes of one machine may get here together; the first makes the copy, the others find it.
            with cache.making(path):
                found = _map_if_whole(info, path)
                if found is None:
                    _fill_cache(uri, info, path)
                    found = _map_if_whole(info, path)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot bring {uri} into the local cache {path}: {error}; {cache.CURE}") from error
    if found is None:
        raise StorageError(f"the copy of {uri} in the local cache, {path}, changes while it is read; {cache.CURE}")
    return found


def _map_if_whole(info: DatasetInfo, path: Path) -> tuple[pa.Table, int] | None:
    """Map a copy; None where there is none, or one that is closed to us, cut off, damaged or of other rows."""
    try:
        handle = cache.hold(path)
    except OSError:
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # that no row points out of the file; no picture is read for it
        if table.schema.equals(SCHEMA) and table.num_rows == info.num_images:
            return table, handle
    except (OSError, pa.ArrowException):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _fill_cache(uri: str, info: DatasetInfo, path: Path) -> None:
    with cache.new_file(path) as aside:
        num_rows = 0
        with pa.ipc.new_file(str(aside), SCHEMA) as writer:
            for name in storage.list_files(storage.join(uri, "data")):
                place = storage.join(uri, "data", name)
                try:
                    table = pq.read_table(pa.BufferReader(storage.read_bytes(place)), schema=SCHEMA)
                except pa.ArrowInvalid as error:
                    raise DataError(f"{place} is damaged ({error}); delete the dataset and prepare anew") from error
                writer.write_table(table)
                num_rows += table.num_rows
        # Checked before anybody sees the file, which would stand in the way of the same dataset prepared anew.
        if num_rows != info.num_images:
            raise DataError(f"{uri} holds {num_rows} images, its dataset.json says {info.num_images}; prepare anew")
