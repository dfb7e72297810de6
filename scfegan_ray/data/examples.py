"""From prepared rows to training examples: order, masks, brushes and noise as pure functions of seed and position.

Nothing here depends on the number of workers, on shuffling, or on what was drawn before: position p of the global
order is image `p % n` of epoch `p // n`'s permutation, and its randomness comes from (seed, epoch, image key).
So a resume needs only the number of images seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scfegan_ray import storage
from scfegan_ray.config import MaskConfig
from scfegan_ray.data import masks
from scfegan_ray.errors import DataError, StorageError

SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.binary()),
        ("sketch", pa.binary()),
        ("color", pa.binary()),
        ("hair", pa.binary()),
        ("eyes", pa.list_(pa.float32(), 4)),
        ("sha256", pa.string()),
    ]
)

Example = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What `dataset.json` says; it is written last, so a folder without one is no dataset."""

    schema_version: int
    size_px: int
    num_images: int
    num_rejected: int
    test_fraction: float
    fingerprint: str
    license: str
    source: str
    sketch_detector: str
    color_segments: str
    eyes: str
    has_hair: bool
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
            if version != SCHEMA_VERSION:
                raise DataError(
                    f"{place} has schema version {version}, this package reads {SCHEMA_VERSION}; prepare anew"
                )
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{place} is damaged ({error}); delete the folder and prepare anew") from error


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
        self._row_of = order
        self.keys: list[str] = [keys[i] for i in order]
        is_test = [is_test_key(key, info.test_fraction) for key in self.keys]
        self.train_rows = np.flatnonzero(~np.asarray(is_test, bool))
        self.test_rows = np.flatnonzero(np.asarray(is_test, bool))

    @classmethod
    def open(cls, uri: str) -> PreparedDataset:
        """Open a prepared dataset.

        Raises:
            DataError: there is no finished dataset at the URI, or it does not hold what it says.
            StorageError: it cannot be read, or the local cache cannot be written.
        """
        info = DatasetInfo.read(uri)
        if info is None:
            raise DataError(f"no prepared dataset at {uri}; make one with jobs/prepare_data.py")
        path = storage.cache_dir() / "prepared" / f"{info.fingerprint}.arrow"
        if not path.exists():
            _fill_cache(uri, info, path)
        return cls(uri, info, pa.ipc.open_file(pa.memory_map(str(path))).read_all())

    def row(self, index: int) -> dict[str, Any]:
        """Decode one row.

        Args:
            index: position among the sorted keys.

        Returns:
            As `decode_row`.
        """
        at = self._row_of[index]
        return decode_row({name: self._table.column(name)[at].as_py() for name in self._table.column_names})

    def held_back(self, count: int) -> list[int]:
        """Return rows for evaluation: of the test split, or of the whole where that is empty."""
        rows = self.test_rows if len(self.test_rows) else np.arange(len(self.keys))
        return [int(row) for row in rows[:count]]


def decode_row(value: dict[str, Any]) -> dict[str, Any]:
    """Decode the columns of one stored row.

    Returns:
        key: str; image: (S, S, 3) uint8 RGB; sketch: (S, S) uint8 {0, 1}; color: (S, S, 3) uint8 RGB;
        hair: (S, S) uint8 {0, 1} or None; eyes: (4,) float32 pixels.
    """
    return {
        "key": value["key"],
        "image": decode_png(value["image"]),
        "sketch": decode_png(value["sketch"]) // 255,
        "color": decode_png(value["color"]),
        "hair": None if value["hair"] is None else decode_png(value["hair"]) // 255,
        "eyes": np.asarray(value["eyes"], np.float32),
    }


def is_test_key(key: str, test_fraction: float) -> bool:
    """Tell whether an image is held back: a pure function of its key."""
    return _key_number(key) / 2**64 < test_fraction


def row_at(position: int, seed: int, num_rows: int) -> tuple[int, int]:
    """Return (epoch, index among the training rows) of a position in the global order."""
    epoch, at = divmod(position, num_rows)
    return epoch, int(_permutation(seed, epoch, num_rows)[at])


def make_example(row: dict[str, Any], config: MaskConfig, rng: np.random.Generator) -> Example:
    """Draw one hole, its brushed color and its noise over a decoded row.

    Args:
        row: as `decode_row` gives it.
        config: how holes and brushes are drawn.
        rng: all randomness of this example.

    Returns:
        image: (S, S, 3) uint8 RGB; mask: (S, S, 1) uint8 {0, 1}, 1 marks pixels to fill; sketch, noise: (S, S, 1)
        uint8 {0, 1}, 0 outside the hole; color: (S, S, 3) uint8 RGB, black where unpainted; interpolation: ()
        float32 in [0, 1), where the gradient penalty looks between composite and ground truth.
    """
    mask = masks.draw_mask(row["image"].shape[0], row["eyes"], row["hair"], config, rng)
    brush = masks.draw_brush(mask, config, rng)
    noise = masks.draw_noise(mask, config, rng)
    return {
        "image": row["image"],
        "mask": mask[..., None],
        "sketch": (row["sketch"] * mask)[..., None],
        "color": row["color"] * brush[..., None],
        "noise": noise[..., None],
        "interpolation": np.asarray(rng.random(), np.float32),
    }


def training_example(dataset: PreparedDataset, config: MaskConfig, seed: int, position: int) -> Example:
    """Return the example at a position of the global order."""
    epoch, at = row_at(position, seed, len(dataset.train_rows))
    row = dataset.row(int(dataset.train_rows[at]))
    return make_example(row, config, np.random.default_rng([seed, epoch, _key_number(row["key"])]))


def evaluation_example(row: dict[str, Any], config: MaskConfig) -> Example:
    """Return the example of a held-back row; its hole is the same in every run, whatever the run's seed."""
    return make_example(row, config, np.random.default_rng([_key_number(row["key"])]))


def training_batches(
    dataset: PreparedDataset,
    config: MaskConfig,
    *,
    seed: int,
    start: int,
    batch_size: int,
    rank: int,
    num_workers: int,
    threads: int,
) -> Generator[Example, None, None]:
    """Yield one worker's share of each global batch, without end, decoded ahead on threads.

    Args:
        dataset: what to draw from; epochs follow each other without a gap or a short batch.
        config: how holes and brushes are drawn.
        seed: of order and randomness.
        start: images seen before the first batch.
        batch_size: images of a global batch; a multiple of `num_workers`.
        rank: which share; concatenated in rank order the shares are the global batch.
        num_workers: number of shares.
        threads: decoding threads (OpenCV and zlib release the interpreter's lock).

    Yields:
        Stacked examples: every array of `make_example` with a leading axis of `batch_size // num_workers`.
    """
    if not len(dataset.train_rows):
        raise DataError(f"{dataset.uri} has no training images; lower data.test_fraction or add images")
    share = batch_size // num_workers
    cv2.setNumThreads(1)

    def position_of(step: int, at: int) -> int:
        return start + step * batch_size + rank * share + at

    with ThreadPoolExecutor(threads, thread_name_prefix="examples") as pool:
        ahead: deque[list[Future[Example]]] = deque()
        step = 0
        try:
            while True:
                while len(ahead) < 3:
                    ahead.append(
                        [
                            pool.submit(training_example, dataset, config, seed, position_of(step, at))
                            for at in range(share)
                        ]
                    )
                    step += 1
                yield stack([future.result() for future in ahead.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)


def evaluation_batches(dataset: PreparedDataset, config: MaskConfig, count: int, batch_size: int) -> Iterator[Example]:
    """Yield held-back examples in batches, always the same."""
    rows = dataset.held_back(count)
    for at in range(0, len(rows), batch_size):
        yield stack([evaluation_example(dataset.row(row), config) for row in rows[at : at + batch_size]])


def stack(examples: list[Example]) -> Example:
    """Stack examples along a new leading axis."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W) gray or (H, W, 3) RGB uint8 without loss."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert ok, "OpenCV encodes every uint8 image as PNG"
    return data.tobytes()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """Decode what `encode_png` made."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError("an image of the prepared dataset is damaged; delete the dataset and prepare it anew")
    pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image
    return pixels.astype(np.uint8, copy=False)


def _key_number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def _fill_cache(uri: str, info: DatasetInfo, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent)
        os.close(handle)
        try:
            # Processes of one machine may race here; each writes its own file and the last rename wins.
            num_rows = 0
            with pa.ipc.new_file(aside, SCHEMA) as writer:
                for name in storage.list_files(storage.join(uri, "data")):
                    shard = storage.read_bytes(storage.join(uri, "data", name))
                    table = pq.read_table(pa.BufferReader(shard), schema=SCHEMA)
                    writer.write_table(table)
                    num_rows += table.num_rows
            # Checked before anybody sees the file, which would stand in the way of the same dataset prepared anew.
            if num_rows != info.num_images:
                raise DataError(f"{uri} holds {num_rows} images, its dataset.json says {info.num_images}; prepare anew")
            os.replace(aside, path)
        finally:
            Path(aside).unlink(missing_ok=True)
    except StorageError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot bring {uri} into the local cache {path}: {error}; free space or set SCFEGAN_CACHE"
        ) from error
