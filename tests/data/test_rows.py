"""Rows that come shard by shard are those of the whole copy; what is no longer needed goes."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prepared_set import NUM, copy_name, write_dataset
from running import run_code, wait_until

from scfegan_ray import cache, storage
from scfegan_ray.config import MaskConfig
from scfegan_ray.data import dataset as dataset_module
from scfegan_ray.data import rows as rows_module
from scfegan_ray.data.dataset import DatasetInfo, read_index, write_index
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import DataError, StorageError

WINDOW = 5
MASKS = MaskConfig()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_dataset(tmp_path / "set")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prepared"


def shards_in(folder: Path) -> set[int]:
    return {int(path.name.split(".")[1]) for path in folder.glob("abc-*.0*.arrow")}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_rows_read_alone_are_those_of_the_copy(uri: str, folder: Path) -> None:
    whole, alone = PreparedDataset.open(uri, whole=True), PreparedDataset.open(uri, whole=False)
    assert all(same(whole.row(at), alone.row(at)) for at in range(NUM))
    assert alone.row(3)["key"] == alone.key(3) == "face-03"
    assert whole.said("key", [7, 0, 3]) == alone.said("key", [7, 0, 3]) == ["face-07", "face-00", "face-03"]
    assert shards_in(folder) == set()


def test_training_rows_are_numbered_by_shards(uri: str) -> None:
    whole, alone = PreparedDataset.open(uri, whole=True), PreparedDataset.open(uri, whole=False)
    count = len(whole.train_rows)
    assert whole.train_sizes.tolist() == alone.train_sizes.tolist() and whole.train_sizes.sum() == count
    rows = [alone.train_row(at) for at in range(count)]
    assert all(same(row, whole.train_row(at)) for at, row in enumerate(rows))
    assert sorted(row["key"] for row in rows) == [whole.key(int(at)) for at in whole.train_rows]


@pytest.mark.parametrize("is_whole", [False, True])
def test_examples_of_windows_are_the_same_from_either_copy(uri: str, is_whole: bool, folder: Path) -> None:
    made = TrainingExamples(PreparedDataset.open(uri, whole=is_whole), MASKS, 3, WINDOW)
    wanted = TrainingExamples(PreparedDataset.open(uri, whole=True), MASKS, 3, WINDOW)
    assert all(same(made.at(position), wanted.at(position)) for position in range(4 * NUM))


def test_only_the_shards_of_two_windows_are_here(uri: str, folder: Path) -> None:
    dataset = PreparedDataset.open(uri, whole=False)
    made = TrainingExamples(dataset, MASKS, 3, 3)
    for position in range(3 * NUM):
        made.at(position)
        window = made.order.window(position)
        allowed = {*made.order.shards(window), *made.order.shards(window + 1)}
        assert shards_in(folder) <= allowed, position
        wait_until(lambda wanted=allowed: shards_in(folder) == wanted, 20)
    del dataset, made
    gc.collect()
    wait_until(lambda: not any(cache.in_use(path) for path in folder.glob("*.arrow")), 20)


def test_what_another_process_holds_stays_until_it_lets_go(uri: str, folder: Path) -> None:
    one, other = (PreparedDataset.open(uri, whole=False) for _ in range(2))
    for dataset in (one, other):
        dataset.expect([0, 1], [])
        wait_until(lambda dataset=dataset: set(dataset._copies._open) == {0, 1}, 20)
    one.expect([1], [2])
    assert shards_in(folder) >= {0, 1}
    other.expect([1], [2])
    wait_until(lambda: shards_in(folder) == {1, 2}, 20)


def test_what_a_killed_process_left_goes(uri: str, folder: Path) -> None:
    dataset = PreparedDataset.open(uri, whole=False)
    dataset.expect([0, 1, 2, 3], [])
    wait_until(lambda: shards_in(folder) == {0, 1, 2, 3}, 20)
    (folder / "other.00000.arrow").write_bytes(b"another dataset's")
    del dataset
    gc.collect()
    again = PreparedDataset.open(uri, whole=False)
    again.expect([2], [3])
    wait_until(lambda: shards_in(folder) == {2, 3}, 20)
    assert (folder / "other.00000.arrow").exists()


def test_storage_that_fails_is_tried_again(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PreparedDataset.open(uri, whole=False, retry_seconds=30.0)
    wanted = PreparedDataset.open(uri, whole=True).train_row(0)
    read, failed = storage.read_bytes, list[str]()

    def shaky(place: str, **how: Any) -> bytes:
        if len(failed) < 2:
            failed.append(place)
            raise StorageError(f"cannot read {place}: gone for a moment")
        return read(place, **how)

    monkeypatch.setattr(storage, "read_bytes", shaky)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    assert same(dataset.train_row(0), wanted)
    assert len(failed) == 2


def test_trouble_ahead_is_told_when_it_matters(uri: str) -> None:
    dataset = PreparedDataset.open(uri, whole=False)
    Path(uri, "data", "part-00002.parquet").unlink()
    dataset.expect([0], [2])
    numbers = np.cumsum(dataset.train_sizes) - dataset.train_sizes
    assert dataset.train_row(int(numbers[0]))["key"]
    with pytest.raises(StorageError, match=r"cannot .*part-00002\.parquet"):
        dataset.train_row(int(numbers[2]))


def test_damaged_shard_is_fetched_anew(uri: str, folder: Path) -> None:
    dataset = PreparedDataset.open(uri, whole=False)
    row = dataset.train_row(0)
    [shard] = shards_in(folder)
    path = folder / f"{copy_name(uri)}.{shard:05d}.arrow"
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"\0\0\0\0"))
    with pytest.raises(DataError, match="is damaged here: this machine's copy"):
        PreparedDataset.open(uri, whole=False).train_row(0)
    assert same(PreparedDataset.open(uri, whole=False).train_row(0), row)


def test_a_written_index_is_the_one_of_the_shards(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = DatasetInfo.read(uri)
    assert info is not None
    [by_shards] = read_index(uri, info)
    assert by_shards.column("key").to_pylist() == [f"face-{at:02d}" for at in range(NUM)]
    shuffled = by_shards.take(np.random.default_rng(0).permutation(NUM))
    write_index(uri, shuffled)
    monkeypatch.setattr(dataset_module, "_INDEX_ROWS", 7)
    parts = list(read_index(uri, info))
    assert [part.num_rows for part in parts] == [7, 7, 6]
    assert pa.concat_tables(parts).equals(by_shards)
    monkeypatch.setattr(dataset_module, "_read_keys", lambda uri: pytest.fail("no shard is read for it"))
    dataset = PreparedDataset.open(uri, tmp_path / "other")
    assert [dataset.row(at)["key"] for at in range(NUM)] == [f"face-{at:02d}" for at in range(NUM)]


def test_an_index_of_other_shards_is_noticed(uri: str) -> None:
    info = DatasetInfo.read(uri)
    assert info is not None
    [index] = read_index(uri, info)
    turned = pa.concat_tables([index.slice(1), index.slice(0, 1)]).column("key")
    write_index(uri, index.set_column(0, "key", turned))
    with pytest.raises(DataError, match=r"holds face-\d\d where its index says face-\d\d; delete the dataset"):
        PreparedDataset.open(uri).row(0)


def test_threads_that_fetch_end_with_the_dataset(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, with no search for cycles, and where one of them is the last to hold what it fetches for."""
    reading, go_on = threading.Event(), threading.Event()
    read = rows_module.read_parquet
    monkeypatch.setattr(rows_module, "read_parquet", lambda *a, **k: (reading.set(), go_on.wait(60), read(*a, **k))[-1])
    before = set(threading.enumerate())  # those of datasets that have just ended among them
    gc.disable()
    try:
        dataset = PreparedDataset.open(uri, whole=False)
        dataset.expect([0], [1])
        fetching = [thread for thread in set(threading.enumerate()) - before if thread.name == "shards"]
        assert fetching and reading.wait(60)
        del dataset
        go_on.set()
        wait_until(lambda: not any(thread.is_alive() for thread in fetching), 20)
    finally:
        gc.enable()


def test_process_does_not_wait_for_what_is_ahead(uri: str, tmp_path: Path) -> None:
    """A process that ends while storage hangs must not wait for it."""
    code = (
        "from scfegan_ray import storage\n"
        "from scfegan_ray.data.rows import PreparedDataset\n"
        f"dataset = PreparedDataset.open({uri!r}, whole=False)\n"
        "import time\n"
        "storage.read_bytes = lambda *a, **k: time.sleep(60)\n"
        "dataset.expect([0], [1])\n"
    )
    began = time.monotonic()
    run_code(code, tmp_path)
    assert time.monotonic() - began < 40


def test_another_split_and_other_shards_have_copies_of_their_own(uri: str, tmp_path: Path) -> None:
    """Contents are the same, and so is the fingerprint."""
    first = PreparedDataset.open(uri, whole=True)
    described = Path(uri, "dataset.json")
    values = json.loads(described.read_text())
    described.write_text(json.dumps(values | {"test_fraction": 1.0, "num_train": 0, "num_test": NUM}))
    assert len(PreparedDataset.open(uri, whole=True).test_rows) == NUM > len(first.test_rows)
    shutil.move(Path(uri, "data", "part-00000.parquet"), Path(uri, "data", "part-00004.parquet"))
    shutil.move(Path(uri, "data", "part-00003.parquet"), Path(uri, "data", "part-00000.parquet"))
    shutil.move(Path(uri, "data", "part-00004.parquet"), Path(uri, "data", "part-00003.parquet"))
    described.write_text(json.dumps(values | {"preparation": {"data.shard_images": 5}}))
    other = PreparedDataset.open(uri, whole=True)
    assert all(same(other.row(at), first.row(at)) for at in range(NUM))
