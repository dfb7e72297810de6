"""What is kept of millions of images, as Arrow columns: a Python object each would take many times the room."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_PIECE = 1 << 16
_CHUNK_ROWS = 1 << 18

_POOL = pa.system_memory_pool()
"""Of what is kept. Arrow's default, mimalloc, leaves a column that grew as it was made twice the room that it needs."""


def to_column(texts: Iterable[str]) -> pa.ChunkedArray:
    """Pack texts, of which few are held as Python strings at a time."""
    rest, pieces = iter(texts), []
    while piece := list(itertools.islice(rest, _PIECE)):
        pieces.append(pa.array(piece, pa.string(), memory_pool=_POOL))
    return pa.chunked_array(pieces, pa.string())


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
    return pa.concat_tables(pieces).combine_chunks().take(pa.array(places))
