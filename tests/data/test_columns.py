"""Columns of millions of texts, here of a few."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from scfegan_ray.data import columns
from scfegan_ray.data.columns import Files
from scfegan_ray.storage import File

FILES = [File(name, size, f"tag {size}") for size, name in enumerate(["a/ü.jpg", "b.jpg", "B.txt", "a.jpg", "a/z.jpg"])]


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


@pytest.mark.parametrize("at_a_time", [2, 1 << 16])
def test_files_are_as_a_sorted_list(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    for name in ("_PIECE", "_CHUNK_ROWS"):
        monkeypatch.setattr(columns, name, at_a_time)
    files, expected = Files.sort(iter(FILES)), sorted(FILES)
    assert list(files) == expected and len(files) == 5 and files.names.to_pylist() == [file.name for file in expected]
    assert list(Files.sort(expected)) == expected
    assert files[1] == expected[1] and files[-1] == expected[-1]
    for part in (slice(None), slice(3), slice(1, 4), slice(-2, None), slice(4, 2)):
        assert list(files[part]) == expected[part]
    with pytest.raises(IndexError):
        files[5]
    with pytest.raises(ValueError, match="order"):
        files[::-1]


@pytest.mark.parametrize("at_a_time", [2, 1 << 16])
def test_files_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(columns, "_CHUNK_ROWS", at_a_time)
    files = Files.sort(FILES)
    images = files.where(lambda name: name.endswith(".jpg"))
    assert list(images) == [file for file in sorted(FILES) if file.name.endswith(".jpg")]
    assert list(images.where(lambda name: "/" in name)) == [file for file in images if "/" in file.name]
    none = images.where(lambda name: False)
    assert not none and not list(none) and not list(none[:3])
    assert not Files.sort([])


@pytest.mark.parametrize(
    ("make", "most_bytes"),
    [
        ("columns.to_column(f'embedded/0/{at:07d}' for at in range(1_000_000))", 35),
        ("columns.Files.sort(File(f'images/{at:09d}.jpg', at, f'{at:032x}') for at in range(1_000_000))", 130),
        ("columns.Files.sort(File(f'images/{at:09d}.jpg', at, '') for at in reversed(range(1_000_000)))", 100),
    ],
)
def test_columns_take_little_room(make: str, most_bytes: int) -> None:
    """Of a text of 18 letters Python keeps 75 bytes, of a file some 170 or 260."""
    code = f"""
from pathlib import Path
from scfegan_ray.data import columns
from scfegan_ray.storage import File
def kilobytes():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1])
columns.Files.sort([File("b", 0), File("a", 0)])
before = kilobytes()
made = {make}
assert len(made) == 1_000_000
print((kilobytes() - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < most_bytes * 1_000_000, done.stdout
