"""Columns of millions of texts, here of a few."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from scfegan_ray.data import columns


def test_texts_go_in_and_out_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_PIECE", 2)
    column = columns.to_column(iter(["b", "ü", "a", "", "c"]))
    assert column.type == pa.string() and [len(chunk) for chunk in column.chunks] == [2, 2, 1]
    assert list(columns.values_of(column.slice(1, 3))) == ["ü", "a", ""]
    assert len(columns.to_column([])) == 0 and list(columns.values_of(columns.to_column([]))) == []


def test_tables_are_put_together_in_few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK_ROWS", 4)
    schema = pa.schema([("at", pa.int32())])
    small = [pa.table({"at": [number]}, schema) for number in range(6)]
    large = pa.table({"at": range(10, 15)}, schema)
    gathered = columns.gather([large, *small], schema)
    assert gathered.column("at").to_pylist() == [10, 11, 12, 13, 14, 0, 1, 2, 3, 4, 5]
    assert [len(chunk) for chunk in gathered.column("at").chunks if len(chunk)] == [5, 4, 2]
    assert columns.gather([], schema).num_rows == 0


@pytest.mark.parametrize("texts", [["a", "b", "ü", "z"], ["b", "a", "z", "ü"], ["a", "a b", "a", "B"]])
def test_order_is_that_of_the_texts(texts: list[str]) -> None:
    column = pa.chunked_array([texts[:2], [], texts[2:]], pa.string())
    order = columns.sorted_order(column)
    assert [texts[row] for row in order] == sorted(texts)


def test_rows_are_taken_in_any_order() -> None:
    chunks = [pa.table({"at": range(start, start + 4), "text": list("abcd")}) for start in (0, 4, 8)]
    table = pa.concat_tables(chunks)
    rows = np.array([9, 0, 11, 9, 5])
    taken = columns.take(table, rows)
    assert taken.to_pylist() == table.take(pa.array(rows)).to_pylist()
    assert columns.take(table, rows[:0]).num_rows == 0
