"""What is kept of millions of images or files, as Arrow columns: Python objects would take many times the room."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scfegan_ray.storage import File

ItemT = TypeVar("ItemT")

_PIECE = 1 << 16
_CHUNK_ROWS = 1 << 18

_POOL = pa.system_memory_pool()
"""Of what is kept. Arrow's default, mimalloc, leaves a column that grew as it was made twice the room that it needs."""


def to_column(texts: Iterable[str]) -> pa.ChunkedArray:
    """Pack texts, of which few are held as Python strings at a time."""
    return pa.chunked_array([pa.array(piece, pa.string(), memory_pool=_POOL) for piece in _pieces(texts)], pa.string())


def _pieces(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    rest = iter(items)
    while piece := list(itertools.islice(rest, _PIECE)):
        yield piece


def values_of(column: pa.ChunkedArray) -> Iterator[Any]:
    """Give a column's values in order, of which few are held as Python objects at a time."""
    for chunk in column.iterchunks():
        for start in range(0, len(chunk), _PIECE):
            yield from chunk.slice(start, _PIECE).to_pylist()


def gather(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Put tables together as they come, in chunks so large that what each costs by itself does not count.

    Args:
        tables: any number of them, of the schema.
        schema: of the result.
    """
    chunks, waiting, num_waiting = [schema.empty_table()], list[pa.Table](), 0
    for table in tables:
        if table.num_rows >= _CHUNK_ROWS:
            chunks.append(table)
            continue
        waiting.append(table)
        num_waiting += table.num_rows
        if num_waiting >= _CHUNK_ROWS:
            chunks.append(pa.concat_tables(waiting).combine_chunks(_POOL))
            waiting, num_waiting = [], 0
    if waiting:
        chunks.append(pa.concat_tables(waiting).combine_chunks(_POOL))
    return pa.concat_tables(chunks)


def sorted_order(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the rows of a column of strings in the order of their values."""
    is_sorted, last = True, pa.scalar("")
    for chunk in column.iterchunks():
        if is_sorted and len(chunk):
            is_sorted = pc.less_equal(last, chunk[0]).as_py() and pc.all(pc.less_equal(chunk[:-1], chunk[1:])).as_py()
            last = chunk[-1]
    # To sort what is sorted, as listings are, would take a fifth of the memory that the column itself does.
    if is_sorted:
        return np.arange(len(column), dtype=np.int64)
    return np.asarray(pc.sort_indices(column), np.int64)


def take(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Return some rows of a table, in one chunk; Arrow's own way would first copy all of it.

    Args:
        table: all of whose columns have the same chunks, as `gather` makes them.
        rows: their numbers.
    """
    order = np.argsort(rows, kind="stable")
    ordered, start, pieces = rows[order], 0, [table.slice(0, 0)]
    for chunk in table.column(0).iterchunks():
        first, last = np.searchsorted(ordered, (start, start + len(chunk)))
        if first < last:
            pieces.append(table.slice(start, len(chunk)).take(pa.array(ordered[first:last] - start)))
        start += len(chunk)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return pc.take(pa.concat_tables(pieces).combine_chunks(), pa.array(places), memory_pool=_POOL)


class Files(Sequence[File]):
    """What a listing says of files, which are Python objects only while somebody looks at them.

    Args:
        table: columns as `File` has fields.
    """

    _SCHEMA = pa.schema([("name", pa.string()), ("size", pa.int64()), ("tag", pa.string())])

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def sort(cls, files: Iterable[File]) -> Files:
        """Take files as they come, and put them in the order of their names."""
        tables = (
            pa.table(dict(zip(File._fields, zip(*piece, strict=True), strict=True)), cls._SCHEMA)
            for piece in _pieces(files)
        )
        table = gather(tables, cls._SCHEMA)
        order = sorted_order(table.column("name"))
        if (order[1:] < order[:-1]).any():
            starts = range(0, len(order), _CHUNK_ROWS)
            table = gather((take(table, order[start : start + _CHUNK_ROWS]) for start in starts), cls._SCHEMA)
        return cls(table)

    @property
    def names(self) -> pa.ChunkedArray:
        """Their names: a view, strings."""
        return self._table.column("name")

    def where(self, is_wanted: Callable[[str], bool]) -> Files:
        """Return those whose names are wanted; of long stretches that all are, nothing is copied."""
        kept, start = [self._table.slice(0, 0)], 0
        for chunk in self.names.iterchunks():
            part = self._table.slice(start, len(chunk))
            wanted = np.fromiter((is_wanted(name) for name in values_of(part.column("name"))), np.bool_, len(chunk))
            kept.append(part if wanted.all() else pc.filter(part, pa.array(wanted), memory_pool=_POOL))
            start += len(chunk)
        return Files(pa.concat_tables(kept))

    def __len__(self) -> int:
        """Return how many there are."""
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[File]:
        """Give one after the other."""
        return map(File, *(values_of(column) for column in self._table.columns))

    @overload
    def __getitem__(self, at: int) -> File: ...

    @overload
    def __getitem__(self, at: slice) -> Files: ...

    def __getitem__(self, at: int | slice) -> File | Files:
        """Return one, or a view of some that follow each other."""
        if isinstance(at, slice):
            chosen = range(len(self))[at]
            if chosen.step != 1:
                raise ValueError("files are taken in their order")
            return Files(self._table.slice(chosen.start, len(chosen)))
        [row] = self._table.slice(range(len(self))[at], 1).to_pylist()
        return File(**row)
