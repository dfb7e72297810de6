"""The rows of a prepared dataset as this machine reads them: by copies in its cache, memory-mapped by all processes.

| copy | holds |
| --- | --- |
| `NAME.index.arrow` | the dataset's `index.parquet`: which rows there are, where, and which are held back |
| `NAME.arrow` | all shards, one after the other: of a dataset that is read as a whole |
| `NAME.NNNNN.arrow` | one shard: of a dataset that is read shard by shard, as long as training needs it |

NAME is `DatasetInfo.copy_name`: the same contents cut into other shards, or split otherwise, have copies of their own.
What is known of each row lies in columns of the index: a row costs a process 9 bytes of its own, and no Python object.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scfegan_ray import cache, storage
from scfegan_ray.data.codecs import decode_row
from scfegan_ray.data.dataset import (
    INDEX_SCHEMA,
    SCHEMA,
    DatasetInfo,
    open_parquet,
    read_index,
    read_parquet,
    shard_place,
)
from scfegan_ray.errors import DataError, StorageError

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

_PICTURES = ("image", "sketch", "color", "hair")
_READ = ("key", *_PICTURES, "eyes")
_THREADS = 4
"""That fetch shards ahead of need, in each process."""
_LONE_ROWS = 256
"""Encoded rows in memory that were read alone, such as those of an evaluation, which asks for the same each time."""


class PreparedDataset:
    """A prepared dataset on this machine: any row at once, in the order of their keys, whatever the shards hold.

    Args:
        uri: of the dataset.
        info: its description.
        index: table of `INDEX_SCHEMA`.
        bounds: see `bounds_of`.
        copies: how its rows are brought here.
    """

    def __init__(self, uri: str, info: DatasetInfo, index: pa.Table, bounds: NDArray[np.int32], copies: Copies) -> None:
        self.uri = uri
        self.info = info
        self._keys = index.column("key")
        self._copies = copies
        self._bounds = bounds
        # Where each row is among those of all shards in turn: its place.
        shards, rows = index.column("shard").to_numpy(), index.column("row").to_numpy()
        self._places: NDArray[np.int32] = bounds[shards] + rows
        self._is_held_back: NDArray[np.bool_] = index.column("held_back").to_numpy()

    @classmethod
    def open(
        cls,
        uri: str,
        cache_dir: Path | None = None,
        info: DatasetInfo | None = None,
        *,
        whole: bool | None = None,
        retry_seconds: float = 0.0,
    ) -> PreparedDataset:
        """Open a prepared dataset.

        Args:
            uri: of the dataset.
            cache_dir: where this machine keeps its copies. Default: `cache.cache_dir()`.
            info: what its description says, for one who knows it already: then only what is missing is fetched.
            whole: copy all of it; otherwise shards come and go as they are needed, and other rows are read alone.
                Default: whether it is small enough, see `DatasetInfo.is_large`.
            retry_seconds: how long storage that fails is tried again.

        Raises:
            DataError: there is no finished dataset at the URI, or it does not hold what it says.
            StorageError: it cannot be read, or the local cache cannot be written.
        """
        info = info or storage.retrying(lambda: DatasetInfo.read(uri), retry_seconds, logger.warning)
        if info is None:
            raise DataError(f"no prepared dataset at {uri}; make one with jobs/prepare_data.py")
        folder = (cache_dir or cache.cache_dir()) / "prepared"
        origin = _Origin(uri, info, folder, retry_seconds)
        index, held = origin.index()
        bounds = bounds_of(index, info.num_shards)
        whole = not info.is_large if whole is None else whole
        dataset = cls(uri, info, index, bounds, WholeCopy(origin) if whole else ShardCopies(origin, bounds))
        weakref.finalize(dataset, os.close, held)
        return dataset

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._places)

    @property
    def cache_dir(self) -> Path:
        """Where this machine keeps its copies."""
        return self._copies.folder.parent

    @cached_property
    def train_rows(self) -> NDArray[np.int64]:
        """Positions, among the sorted keys, of the images to train on."""
        return np.flatnonzero(~self._is_held_back)

    @cached_property
    def test_rows(self) -> NDArray[np.int64]:
        """Positions, among the sorted keys, of the images that are held back."""
        return np.flatnonzero(self._is_held_back)

    def key(self, index: int) -> str:
        """Return the key of a row by its position among the sorted keys."""
        return str(self._keys[index].as_py())

    def row(self, index: int) -> dict[str, Any]:
        """Decode one row.

        Args:
            index: position among the sorted keys.

        Returns:
            As `codecs.decode_row`.

        Raises:
            DataError: a picture is damaged.
            StorageError: it cannot be read.
        """
        place = int(self._places[index])
        row = self._decode(place, self._copies.lone(place))
        if row["key"] != self.key(index):
            raise DataError(
                f"{self.uri} holds {row['key']} where its index says {self.key(index)}; delete the dataset and prepare "
                "it anew"
            )
        return row

    def said(self, name: str, rows: Sequence[int]) -> list[Any]:
        """Return a column that is no picture, such as sha256 or hair_area, of some rows.

        Args:
            name: of the column.
            rows: positions among the sorted keys.
        """
        return self._copies.said(name, [int(self._places[row]) for row in rows])

    def held_back(self, count: int) -> list[int]:
        """Return rows for evaluation, of the test split only: none where that is empty."""
        return [int(row) for row in self.test_rows[:count]]

    @cached_property
    def _train_places(self) -> NDArray[np.int32]:
        return np.sort(self._places[~self._is_held_back])

    @cached_property
    def train_sizes(self) -> NDArray[np.int64]:
        """Images to train on in each shard."""
        return np.diff(np.searchsorted(self._train_places, self._bounds))

    def train_row(self, number: int) -> dict[str, Any]:
        """Decode one row to train on, as `row`, by its number among those of all shards in turn."""
        place = int(self._train_places[number])
        return self._decode(place, self._copies.shared(place))

    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Say which shards `train_row` is about to be asked for, and which ones after them; others may go."""
        self._copies.expect(now, later)

    def _decode(self, place: int, values: Mapping[str, pa.Scalar]) -> dict[str, Any]:
        # Encoded pictures are decoded where they lie in the mapped file: hundreds of kilobytes that need no copy.
        try:
            return decode_row(
                {name: value.as_buffer() if name in _PICTURES else value.as_py() for name, value in values.items()}
            )
        except DataError as error:
            self._copies.discard(place)
            raise DataError(
                f"{values['key'].as_py()} of {self.uri} is damaged here: this machine's copy of the dataset is deleted "
                "now, run it again; where it says so again, delete the dataset and prepare it anew"
            ) from error


class Copies(Protocol):
    """How rows are brought to this machine; a row is named by its place among those of all shards in turn."""

    folder: Path

    def lone(self, place: int) -> Mapping[str, pa.Scalar]:
        """Return the encoded columns of one row."""

    def shared(self, place: int) -> Mapping[str, pa.Scalar]:
        """Return the encoded columns of one row of a shard of which others are asked for, too."""

    def said(self, name: str, places: Sequence[int]) -> list[Any]:
        """Return one column of some rows."""

    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Bring shards here ahead of need, and let others go."""

    def discard(self, place: int) -> None:
        """Delete the copy that holds a row, for it is damaged."""


def bounds_of(index: pa.Table, num_shards: int) -> NDArray[np.int32]:
    """Return where each shard's rows begin among those of all shards in turn, and where the last one's end."""
    sizes = np.bincount(index.column("shard").to_numpy(), minlength=num_shards)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


class _Origin:
    """Makes and opens this machine's copies of one dataset."""

    def __init__(self, uri: str, info: DatasetInfo, folder: Path, retry_seconds: float) -> None:
        self.uri, self.info, self.folder = uri, info, folder
        self._retry_seconds = retry_seconds

    def path(self, name: str) -> Path:
        """Return where a copy lies."""
        return self.folder / f"{self.info.copy_name}.{name}"

    def patiently(self, work: Callable[[], ResultT]) -> ResultT:
        """Do something with the dataset's storage, again while it fails."""
        return storage.retrying(work, self._retry_seconds, logger.warning)

    def open(
        self, name: str, schema: pa.Schema, num_rows: int, batches: Callable[[], Iterator[pa.Table]]
    ) -> tuple[pa.Table, int]:
        """Map a copy, made first where there is none or a damaged one.

        Args:
            name: of the copy.
            schema: of its table.
            num_rows: that it must have.
            batches: read what it is made of.

        Returns:
            The rows, and the handle that keeps the copy from being deleted until it is closed.
        """
        path = self.path(name)
        try:
            found = _map_if_whole(path, schema, num_rows)
            if found is None:
                # Processes of one machine may get here together; the first makes the copy, the others find it.
                with cache.making(path):
                    found = _map_if_whole(path, schema, num_rows)
                    if found is None:
                        self.patiently(lambda: self._fill(path, schema, num_rows, batches))
                        found = _map_if_whole(path, schema, num_rows)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot bring {self.uri} into the local cache {path}: {error}; {cache.CURE}") from error
        if found is None:
            raise StorageError(
                f"the copy of {self.uri} in the local cache, {path}, changes while it is read; {cache.CURE}"
            )
        return found

    def _fill(self, path: Path, schema: pa.Schema, num_rows: int, batches: Callable[[], Iterator[pa.Table]]) -> None:
        with cache.new_file(path) as partial:
            written = 0
            with pa.ipc.new_file(str(partial), schema) as writer:
                for table in batches():
                    writer.write_table(table)
                    written += table.num_rows
            # Checked before anybody sees the file, which would stand in the way of the same dataset prepared anew.
            if written != num_rows:
                says = "dataset.json" if num_rows == self.info.num_images else "index"
                raise DataError(f"{self.uri} holds {written} images, its {says} says {num_rows}; prepare anew")

    def index(self) -> tuple[pa.Table, int]:
        """Open the copy of its index."""
        return self.open("index.arrow", INDEX_SCHEMA, self.info.num_images, lambda: read_index(self.uri, self.info))

    def shard(self, number: int) -> pa.Table:
        """Read one shard from the dataset."""
        place = shard_place(self.uri, number)
        try:
            return read_parquet(place, schema=SCHEMA)
        except pa.ArrowInvalid as error:
            raise DataError(f"{place} is damaged ({error}); delete the dataset and prepare anew") from error


class WholeCopy:
    """All shards in one file.

    Args:
        origin: of the rows.
    """

    def __init__(self, origin: _Origin) -> None:
        self.folder = origin.folder
        self._path = origin.path("arrow")
        numbers = range(origin.info.num_shards)
        self._table, held = origin.open("arrow", SCHEMA, origin.info.num_images, lambda: map(origin.shard, numbers))
        weakref.finalize(self, os.close, held)

    def lone(self, place: int) -> Mapping[str, pa.Scalar]:
        """Return the encoded columns of one row."""
        return {name: self._table.column(name)[place] for name in _READ}

    shared = lone

    def said(self, name: str, places: Sequence[int]) -> list[Any]:
        """Return one column of some rows."""
        column = self._table.column(name)
        return [column[place].as_py() for place in places]

    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Do nothing: all is here."""

    def discard(self, place: int) -> None:
        """Delete the copy."""
        self._path.unlink(missing_ok=True)


class ShardCopies:
    """One file for each shard that is needed now or next; processes of one machine share them.

    Args:
        origin: of the rows.
        bounds: see `bounds_of`.
    """

    def __init__(self, origin: _Origin, bounds: NDArray[np.int32]) -> None:
        self.folder = origin.folder
        self._origin, self._bounds = origin, bounds
        self._open: dict[int, tuple[pa.Table, int]] = {}
        self._locks: dict[int, Lock] = defaultdict(Lock)
        self._wanted: set[int] | None = None
        self._asked = SimpleQueue[int | None]()
        # Of no method: that would be a cycle, and threads and files would stay until one looks for cycles.
        self.lone = lru_cache(_LONE_ROWS)(partial(_read_lone, origin, bounds))
        weakref.finalize(self, _close, self._open, self._asked)

    def shared(self, place: int) -> Mapping[str, pa.Scalar]:
        """Return the encoded columns of one row; its shard is brought here first, where it is not yet."""
        shard, at = _find(self._bounds, place)
        table = self._table(shard)
        return {name: table.column(name)[at] for name in _READ}

    def said(self, name: str, places: Sequence[int]) -> list[Any]:
        """Return one column of some rows, of which only that column is read."""
        rows = [_find(self._bounds, place) for place in places]
        shards = sorted({shard for shard, _ in rows})

        def column(shard: int) -> list[Any]:
            with open_parquet(shard_place(self._origin.uri, shard)) as file:
                values: list[Any] = file.read(columns=[name]).column(name).to_pylist()
            return values

        with ThreadPoolExecutor(_THREADS) as pool:
            read = pool.map(lambda shard: self._origin.patiently(lambda: column(shard)), shards)
            columns = dict(zip(shards, read, strict=True))
        return [columns[shard][at] for shard, at in rows]

    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Bring shards here ahead of need, and delete the copies of others, unless another process holds them."""
        is_first, self._wanted = self._wanted is None, {*now, *later}
        for shard in [one for one in self._open if one not in self._wanted]:
            with self._locks[shard]:
                table, held = self._open.pop(shard)
                del table
                os.close(held)
            self._delete(self._path(shard))
        if is_first:
            for path in self.folder.glob(f"{self._origin.info.copy_name}.[0-9]*.arrow"):
                if path not in {self._path(shard) for shard in self._wanted}:
                    self._delete(path)  # a process left it that was killed
            for _ in range(_THREADS):
                # Not an executor's: those are waited for when a process ends, however long storage fails by then.
                Thread(target=_fetch, args=(weakref.ref(self), self._asked), name="shards", daemon=True).start()
        for shard in dict.fromkeys((*now, *later)):
            if shard not in self._open:
                self._asked.put(shard)

    def fetch(self, shard: int) -> None:
        """Bring a shard here that will be needed; whoever needs it then meets the same trouble, and says it."""
        if self._wanted is not None and shard in self._wanted:
            with contextlib.suppress(StorageError, DataError):
                self._table(shard)

    def discard(self, place: int) -> None:
        """Delete the copy of a row's shard."""
        self._path(_find(self._bounds, place)[0]).unlink(missing_ok=True)

    def _table(self, shard: int) -> pa.Table:
        found = self._open.get(shard)
        if found is None:
            with self._locks[shard]:
                found = self._open.get(shard)
                if found is None:
                    origin, num_rows = self._origin, int(self._bounds[shard + 1] - self._bounds[shard])
                    found = origin.open(f"{shard:05d}.arrow", SCHEMA, num_rows, lambda: iter([origin.shard(shard)]))
                    self._open[shard] = found
        return found[0]

    def _path(self, shard: int) -> Path:
        return self._origin.path(f"{shard:05d}.arrow")

    @staticmethod
    def _delete(path: Path) -> None:
        with contextlib.suppress(OSError):
            cache.delete_unused(path)


def _find(bounds: NDArray[np.int32], place: int) -> tuple[int, int]:
    """Return the shard of a row, and its number there."""
    shard = int(np.searchsorted(bounds, place, side="right")) - 1
    return shard, place - int(bounds[shard])


def _read_lone(origin: _Origin, bounds: NDArray[np.int32], place: int) -> Mapping[str, pa.Scalar]:
    """Return the encoded columns of one row, for which no copy is made."""
    shard, at = _find(bounds, place)
    return origin.patiently(lambda: _read_group(shard_place(origin.uri, shard), at))


def _read_group(uri: str, at: int) -> Mapping[str, pa.Scalar]:
    with open_parquet(uri) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if at < count:
                row = file.read_row_group(group, columns=[*_READ]).take([at])  # a slice would keep all of it
                return {name: row.column(name)[0] for name in _READ}
            at -= count
    raise DataError(f"{uri} holds fewer images than its index says; delete the dataset and prepare it anew")


def _fetch(copies: weakref.ref[ShardCopies], asked: SimpleQueue[int | None]) -> None:
    while (shard := asked.get()) is not None:
        if (one := copies()) is None:
            return
        one.fetch(shard)
        del one


def _close(copies: dict[int, tuple[pa.Table, int]], asked: SimpleQueue[int | None]) -> None:
    for _ in range(_THREADS):
        asked.put(None)
    while copies:
        os.close(copies.popitem()[1][1])


def _map_if_whole(path: Path, schema: pa.Schema, num_rows: int) -> tuple[pa.Table, int] | None:
    """Map a copy; None where there is none, or one that is closed to us, cut off, damaged or of other rows."""
    try:
        handle = cache.hold(path)
    except OSError:
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # that no row points out of the file; no picture is read for it
        if table.schema.equals(schema) and table.num_rows == num_rows:
            return table, handle
    except (OSError, pa.ArrowException):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None
