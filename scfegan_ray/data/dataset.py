"""The prepared dataset: its files, its columns, writing and reading them.

| path | holds |
| --- | --- |
| `data/part-NNNNN.parquet` | one row an image, columns below; metadata says what the file was made from |
| `index.parquet` | where each image's row is, sorted by key; older datasets lack it |
| `rejected.parquet` | key and reason of each image that was left out |
| `preview.png` | 16 rows of what was made, with a sample hole, and how large holes are |
| `report.html` | counts, statistics, the preview and the settings, for people |
| `dataset.json` | `DatasetInfo`; written last, so a folder without one is no dataset yet |

| column | type | meaning |
| --- | --- | --- |
| key | string | the image's path relative to the source, unique; #1, #2 follow where a photograph has several faces |
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
| square | struct or null | where in its photograph the face was found: center_x, center_y, side_px and angle, each \
float64, as `align.Square` has them; null where the central square was taken; older datasets lack it |

| column of the index | type | meaning |
| --- | --- | --- |
| key | string | the image's |
| shard | int32 | number of the shard's file |
| row | int32 | the row within that file |
| held_back | bool | whether training never sees it |

Anything that reads Parquet reads it; this package reads it through a memory-mapped copy on each machine.

A shard's file says itself what it was made from: its rows, the images of the shard that were refused, and the settings
(as metadata of the Parquet schema). So what a killed preparation leaves behind is either whole or not there, and needs
no other record.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scfegan_ray import storage
from scfegan_ray.config import DataConfig
from scfegan_ray.data import columns
from scfegan_ray.data.codecs import decode_row
from scfegan_ray.errors import DataError

ResultT = TypeVar("ResultT")

SCHEMA_VERSION = 2
"""To be raised whenever files or columns that are read are others, or other contents come from the same photographs'
pixels; `decoding.VERSION` says which pixels come from a file, `align.VERSION` which faces from those."""

SQUARE = pa.struct([(name, pa.float64()) for name in ("center_x", "center_y", "side_px", "angle")])
"""Type of the column that says where a face was found."""

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
        ("square", SQUARE),
    ]
)

NUMBERED_PEOPLE = r"(?:^|/)([0-9]+)_[0-9]+\.[^./]+$"
"""What finds the person in names such as those of CelebA, IDENTITY_IMAGE.jpg."""

_FEWEST_PEOPLE = 100

STATISTICS = ("sketch_area", "num_colors", "color_error", "hair_area")
"""Columns with a number per image."""

OTHER_FILES = ("dataset.json", "index.parquet", "preview.png", "rejected.parquet", "report.html")
"""What lies beside the shards."""

DIGEST = pa.binary(32)
"""Of sha256 in memory, where the hex digits of the files would take twice the room."""

SUMMARY = pa.schema([("key", pa.string()), ("sha256", DIGEST), *(SCHEMA.field(name) for name in STATISTICS)])
"""What is kept of each image of a shard."""

INDEX_SCHEMA = pa.schema([("key", pa.string()), ("shard", pa.int32()), ("row", pa.int32()), ("held_back", pa.bool_())])
"""Columns of the index."""

_METADATA = b"scfegan_ray"
_READING_THREADS = 8
_MOST_BYTES_PER_PIXEL = 2
_LARGE_BYTES = 200_000_000_000
_WINDOW_IMAGES = 4096
_INDEX_ROWS = 1 << 20  # in memory at a time
_READING_AHEAD = 32
_ROW_GROUP_BYTES = 16 << 20
_LINES_AT_A_TIME = 1 << 16


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
        identity_pattern: what finds in a key who the image shows, see `is_test_key`; None: each stands for itself.
        fingerprint: hex digest over all keys and contents.
        license: of the photographs.
        source: where they came from.
        sketch_detector: what found the edges: "hed" or "opencv".
        sketch_precision: in which it computed: "float32" or "bfloat16".
        color_segments: what the color map's segments are: "labels" of people, of a "parser", or "superpixels".
        eyes: where eye positions come from: "labels", "parser", or "canonical" for those of aligned faces.
        hair: where the hair region comes from: "labels", "parser" or "none".
        align: what was taken of photographs: each face as "celeba_hq" has it, or, "none", the central square.
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
    identity_pattern: str | None = None
    align: Literal["celeba_hq", "none"] = "none"

    @property
    def is_large(self) -> bool:
        """Whether a machine is not to copy all of it, unless it is told to."""
        return self.window_images > 0

    @property
    def most_bytes(self) -> int:
        """What its pictures take at most; two thirds of that are usual."""
        return most_bytes(self.num_images, self.size_px)

    @property
    def window_images(self) -> int:
        """Images within which a run on it shuffles, unless it is told otherwise; see `TrainConfig.window_images`."""
        return window_images(self.num_images, self.size_px)

    @property
    def copy_name(self) -> str:
        """What this machine's copies are named by: contents, and what else says which row is where and held back."""
        shaped_by = [self.preparation, self.test_fraction, self.identity_pattern, self.num_shards, self.num_rejected]
        digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.fingerprint}-{digest}"

    def holds_back(self, key: str) -> bool:
        """Tell whether an image is held back."""
        return is_test_key(key, self.test_fraction, self.identity_pattern)

    def named_in(self, data: DataConfig, uri: str) -> DataConfig:
        """Return settings that name this dataset, and say what it was made of and what it holds back, as it says.

        Args:
            data: settings that it was found by, which may have left that open.
            uri: of it.
        """
        return replace(
            data,
            prepared=uri,
            source=self.source,
            test_fraction=self.test_fraction,
            identity_pattern=self.identity_pattern,
            align=self.align,
        )

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


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard's file says, without its pixels.

    Attributes:
        settings: everything that shaped it, as it was asked for.
        settled: what was decided where `data.sketch` and `data.align` left it open.
        rows: one per image, of `SUMMARY`.
        refused: (key, reason) of the shard's images that cannot be used.
        notes: (key, note) of its images whose files needed a guess.
        num_bytes: size of the file.
    """

    settings: dict[str, Any]
    settled: dict[str, Any]
    rows: pa.Table = field(repr=False)
    refused: list[tuple[str, str]]
    num_bytes: int
    notes: list[tuple[str, str]] = field(default_factory=list)


def most_bytes(num_images: int, size_px: int) -> int:
    """Return what the pictures of a dataset take at most."""
    return num_images * size_px**2 * _MOST_BYTES_PER_PIXEL


def window_images(num_images: int, size_px: int) -> int:
    """Return within how many images a run shuffles that is told nothing else: 0, all, unless they are too many."""
    return _WINDOW_IMAGES if most_bytes(num_images, size_px) > _LARGE_BYTES else 0


def photograph_of(key: str) -> str:
    """Return the key of the photograph that an image comes from: without the number that tells its faces apart.

    No source lists a key that ends with such a number: they are names of images or numbers of rows.
    """
    return re.sub(r"#[0-9]+$", "", key)


def is_test_key(key: str, test_fraction: float, identity_pattern: str | None = None) -> bool:
    """Tell whether an image is held back: a pure function of its photograph's key, so that its faces stay together.

    Args:
        key: of the image.
        test_fraction: share of images, or of people, to hold back.
        identity_pattern: regular expression; its first group, or all of what it matches in the key, is the person that
            the image shows, all of whose images are held back, or none. An image where it finds nothing stands for
            itself.
    """
    key = photograph_of(key)
    found = re.search(identity_pattern, key) if identity_pattern else None
    if found is not None:
        key = (found[1] if found.re.groups else found[0]) or key
    return key_number(key) / 2**64 < test_fraction


def settle_identity_pattern(given: str | None, keys: Iterable[str]) -> str | None:
    """Return what finds in keys who an image shows: as given, or as the keys themselves say; see `DataConfig`."""
    if given is not None:
        return given or None
    people: set[str] = set()
    for key in keys:
        found = re.search(NUMBERED_PEOPLE, key)
        if found is None:
            return None
        if len(people) < _FEWEST_PEOPLE:
            people.add(found[1])
    return NUMBERED_PEOPLE if len(people) >= _FEWEST_PEOPLE else None


def key_number(key: str) -> int:
    """Return a number from 0 to 2^64 that an image keeps wherever it lies: all that is random about it starts there."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def fingerprint(rows: pa.Table) -> str:
    """Return the hex digest over key and sha256 of rows, whatever their order.

    It is that of the lines "key sha256", sorted and joined by newlines.

    Args:
        rows: columns key: string, and sha256: `DIGEST`.
    """
    rows = rows.select(["key", "sha256"])
    keys = rows.column("key")
    order = columns.sorted_order(keys)
    digest, start = hashlib.sha256(), 0
    while start < len(order):
        end = min(start + _LINES_AT_A_TIME, len(order))
        while end < len(order) and not _may_cut(keys, order, end):
            end += 1
        piece = columns.take(rows, order[start:end])
        hexadecimal = _to_hex(piece.column("sha256").combine_chunks())
        lines = pc.binary_join_element_wise(piece.column("key"), hexadecimal, " ").combine_chunks()
        text = "\n".join(lines.take(pc.sort_indices(lines)).to_pylist())
        digest.update(f"\n{text}".encode() if start else text.encode())
        start = end
    return digest.hexdigest()


def _may_cut(keys: pa.ChunkedArray, order: NDArray[np.int64], at: int) -> bool:
    """Tell whether all lines of keys before a place come before those from there on, when lines are sorted as such.

    They do not where one key goes on as another does, with a blank or less: "a b" may come before "a", as lines.
    """
    key = keys[order[at]].as_py()
    for length, letter in enumerate(key):
        if letter <= " ":
            shorter = bisect.bisect_left(order, key[:length], hi=at, key=lambda row: keys[row].as_py())
            if shorter < at and keys[order[shorter]].as_py() == key[:length]:
                return False
    return True


def _to_hex(digests: pa.FixedSizeBinaryArray) -> pa.StringArray:
    width = DIGEST.byte_width
    data = digests.buffers()[1].slice(digests.offset * width, len(digests) * width).to_pybytes().hex().encode()
    ends = np.arange(len(digests) + 1, dtype=np.int32) * np.int32(2 * width)
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(ends), pa.py_buffer(data))


def _from_hex(digits: pa.ChunkedArray) -> pa.FixedSizeBinaryArray:
    data = bytes.fromhex("".join(digits.to_pylist()))
    if len(data) != DIGEST.byte_width * len(digits):
        raise ValueError("a digest of another length than SHA-256's")
    return pa.Array.from_buffers(DIGEST, len(digits), [None, pa.py_buffer(data)])


def shard_name(number: int) -> str:
    """Return the name of a shard's file within the folder `data` of its dataset."""
    return f"part-{number:05d}.parquet"


def shard_place(uri: str, number: int) -> str:
    """Return the URI of a shard's file in the dataset at a URI."""
    return storage.join(uri, "data", shard_name(number))


@contextlib.contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """Open one of a dataset's Parquet files, to read parts of it.

    Raises:
        StorageError: it cannot be read, now or within the context.
    """
    stream = storage.open_seekable(uri)
    with stream, storage.errors_of_reading(uri), pq.ParquetFile(stream) as file:
        yield file


def read_shard(uri: str) -> Shard:
    """Read what a shard's file says of itself.

    Raises:
        DataError: it is no such file.
        StorageError: it cannot be read.
    """
    stream = storage.open_seekable(uri)
    with stream, storage.errors_of_reading(uri):
        try:
            with pq.ParquetFile(stream) as file:
                said = json.loads((file.schema_arrow.metadata or {})[_METADATA])
                stored = file.read(columns=SUMMARY.names)
            kept = {name: stored.column(name) for name in SUMMARY.names}
            rows = pa.table(kept | {"sha256": _from_hex(kept["sha256"])}, SUMMARY)
            refused = [(key, reason) for key, reason in said["refused"]]
            notes = [(key, note) for key, note in said.get("notes", ())]
            return Shard(said["settings"], said["settled"], rows, refused, stream.seek(0, io.SEEK_END), notes)
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise DataError(f"{uri} is no shard of a prepared dataset ({error}); delete the dataset") from error


def read_index(uri: str, info: DatasetInfo) -> Iterator[pa.Table]:
    """Read which rows a dataset has, sorted by their keys, some at a time: tables of `INDEX_SCHEMA`.

    A dataset of a version that wrote no `index.parquet` says it by its shards.

    Raises:
        DataError: a shard is none.
        StorageError: it cannot be read.
    """
    place = storage.join(uri, "index.parquet")
    if storage.exists(place):
        with open_parquet(place) as file:
            for batch in file.iter_batches(_INDEX_ROWS):
                yield pa.Table.from_batches([batch]).cast(INDEX_SCHEMA)
        return
    shards = _read_in_order(_read_keys, [shard_place(uri, number) for number in range(info.num_shards)])
    located = (
        pa.table({"key": keys} | locate(number, keys, info.holds_back), INDEX_SCHEMA)
        for number, keys in enumerate(shards)
    )
    yield columns.gather(located, INDEX_SCHEMA).sort_by("key")


def locate(number: int, keys: Sequence[str], holds_back: Callable[[str], bool]) -> dict[str, Sequence[Any]]:
    """Return the columns of the index, but for the keys, of one shard.

    Args:
        number: of the shard.
        keys: of its rows.
        holds_back: tells whether an image is held back, by its key.
    """
    return {
        "shard": [number] * len(keys),
        "row": range(len(keys)),
        "held_back": [holds_back(key) for key in keys],
    }


def _read_keys(uri: str) -> list[str]:
    stream = storage.open_seekable(uri)
    with stream, storage.errors_of_reading(uri):
        try:
            with pq.ParquetFile(stream) as file:
                keys: list[str] = file.read(columns=["key"]).column("key").to_pylist()
        except (pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{uri} is damaged ({error}); delete the dataset and prepare anew") from error
    return keys


def read_shards(uris: Sequence[str]) -> Iterator[Shard]:
    """Give what several shards' files say of themselves, in order, read some at a time; see `read_shard`."""
    return _read_in_order(read_shard, uris)


def _read_in_order(read: Callable[[str], ResultT], uris: Sequence[str]) -> Iterator[ResultT]:
    """Give what is read of several files, of which some are read at a time, and few wait."""
    with ThreadPoolExecutor(_READING_THREADS) as pool:
        rest = iter(uris)
        reading = deque(pool.submit(read, uri) for uri in itertools.islice(rest, _READING_AHEAD))
        while reading:
            yield reading.popleft().result()
            reading.extend(pool.submit(read, uri) for uri in itertools.islice(rest, 1))


def trains_on(uri: str, info: DatasetInfo, keys: Collection[str]) -> int:
    """Count the images that a dataset trains on, among some, by the keys of their photographs.

    Args:
        uri: of the dataset.
        info: its description.
        keys: of the images, which may be others under the same keys where they came from another source.

    Raises:
        DataError: a shard is none.
        StorageError: it cannot be read.
    """
    asked = {key for key in keys if not info.holds_back(key)}
    places = [shard_place(uri, number) for number in range(info.num_shards if asked else 0)]
    photographs = {photograph_of(key) for key in asked}
    learnt: set[str] = set()
    for shard in read_shards(places):
        learnt |= photographs.intersection(map(photograph_of, shard.rows.column("key").to_pylist()))
    return sum(photograph_of(key) in learnt for key in asked)


def read_rows(uri: str, count: int) -> list[dict[str, Any]]:
    """Read the first rows of a shard's file, with all their columns, but no more of it than its first row group.

    Raises:
        StorageError: it cannot be read.
    """
    with open_parquet(uri) as file:
        rows: list[dict[str, Any]] = file.read_row_group(0).slice(0, count).to_pylist() if file.num_row_groups else []
    return rows


def write_shard(
    uri: str,
    number: int,
    rows: list[dict[str, Any]],
    *,
    settings: dict[str, Any],
    settled: dict[str, Any],
    refused: Sequence[tuple[str, str]],
    notes: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the file of one shard, so that readers see all of it or nothing.

    Args:
        uri: of the dataset.
        number: of the shard.
        rows: a dict per image, columns as the module's docstring has them.
        settings: as in `Shard`.
        settled: as in `Shard`.
        refused: as in `Shard`.
        notes: as in `Shard`.

    Raises:
        StorageError: the dataset's place fails.
    """
    record = {"settings": settings, "settled": settled, "refused": refused, "notes": list(notes)}
    said = json.dumps(record, sort_keys=True).encode()
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({_METADATA: said}))
    per_group = max(1, _ROW_GROUP_BYTES * table.num_rows // max(table.nbytes, 1))
    content = to_parquet(table, row_group_size=per_group, compression="none")
    storage.write_bytes(shard_place(uri, number), content)


def to_parquet(table: pa.Table, **options: Any) -> bytes:
    """Return a table as the content of a Parquet file; options as of `pyarrow.parquet.write_table`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def read_parquet(uri: str, **options: Any) -> pa.Table:
    """Read a Parquet file in one piece; options as of `pyarrow.parquet.read_table`.

    Raises:
        StorageError: it cannot be read.
    """
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)), **options)


def write_rejected(uri: str, rejected: list[tuple[str, str]]) -> None:
    """Write `rejected.parquet`: key and reason of each image that was left out."""
    table = pa.table(
        {
            "key": pa.array([key for key, _ in rejected], pa.string()),
            "reason": pa.array([reason for _, reason in rejected], pa.string()),
        }
    )
    storage.write_bytes(storage.join(uri, "rejected.parquet"), to_parquet(table))


def read_rejected(uri: str) -> list[tuple[str, str]]:
    """Read what `write_rejected` wrote."""
    table = read_parquet(storage.join(uri, "rejected.parquet"))
    return list(zip(table.column("key").to_pylist(), table.column("reason").to_pylist(), strict=True))


def write_index(uri: str, rows: pa.Table) -> None:
    """Write `index.parquet`, which tells without reading a shard where an image's row is.

    Args:
        uri: of the dataset.
        rows: columns of `INDEX_SCHEMA` among others, in any order.

    Raises:
        StorageError: the dataset's place fails.
    """
    rows = rows.select(INDEX_SCHEMA.names)
    order = columns.sorted_order(rows.column("key"))
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, INDEX_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(order), _INDEX_ROWS):
            writer.write_table(columns.take(rows, order[start : start + _INDEX_ROWS]))
    storage.write_bytes(storage.join(uri, "index.parquet"), buffer.getvalue())


def first_held_back(uri: str, info: DatasetInfo) -> dict[str, Any]:
    """Read one row of a dataset, for which no copy of it is made: the first that is held back, else the first of all.

    Returns:
        As `codecs.decode_row`.

    Raises:
        DataError: the dataset has no rows.
        StorageError: it cannot be read.
    """
    first: dict[str, Any] | None = None
    for name in storage.list_files(storage.join(uri, "data")):
        with open_parquet(storage.join(uri, "data", name)) as file:
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, columns=["key"]).column("key").to_pylist()
                held_back = [at for at, key in enumerate(keys) if info.holds_back(key)]
                if held_back or (first is None and keys):
                    at = min(held_back, key=keys.__getitem__, default=0)
                    row = decode_row(file.read_row_group(group).slice(at, 1).to_pylist()[0])
                    if held_back:
                        return row
                    first = row
    if first is None:
        raise DataError(f"{uri} holds no images; delete the dataset and prepare it anew")
    return first
