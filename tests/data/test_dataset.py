"""A prepared dataset and what its files say; this machine's copy of it: shared, checked, made once."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_set import NUM, copy_name, write_dataset
from running import run_code
from tiny import DATASET

from scfegan_ray import cache, storage
from scfegan_ray.config import DataConfig
from scfegan_ray.data import dataset
from scfegan_ray.data.dataset import (
    DIGEST,
    INDEX_SCHEMA,
    NUMBERED_PEOPLE,
    SCHEMA,
    DatasetInfo,
    fingerprint,
    first_held_back,
    is_test_key,
    photograph_of,
    read_shard,
    settle_identity_pattern,
    trains_on,
    write_index,
)
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import DataError, StorageError


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_dataset(tmp_path / "set")


@pytest.fixture
def copy(uri: str, tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prepared" / f"{copy_name(uri)}.arrow"


def test_copy_has_the_permissions_of_any_other_file(uri: str, copy: Path) -> None:
    before = os.umask(0o022)
    try:
        PreparedDataset.open(uri)
    finally:
        os.umask(before)
    assert copy.stat().st_mode & 0o777 == 0o644


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", _cut, lambda data: data[:-3], lambda data: data + b"x", lambda data: b"no" * 999]
)
def test_damaged_copy_is_made_again(uri: str, copy: Path, damage: Any) -> None:
    PreparedDataset.open(uri)
    whole = copy.read_bytes()
    copy.write_bytes(damage(whole))
    assert len(PreparedDataset.open(uri)) == NUM
    assert copy.read_bytes() == whole
    names = [f"{copy.stem}.{name}" for name in ("arrow", "arrow.lock", "index.arrow", "index.arrow.lock")]
    assert sorted(path.name for path in copy.parent.iterdir()) == names


def test_copy_of_fewer_rows_is_made_again(uri: str, copy: Path) -> None:
    PreparedDataset.open(uri)
    whole = copy.read_bytes()
    with pa.ipc.new_file(str(copy), SCHEMA):
        pass
    assert len(PreparedDataset.open(uri)) == NUM and copy.read_bytes() == whole


def test_damaged_picture_in_the_copy_is_healed_by_the_next_run(uri: str, copy: Path) -> None:
    row = PreparedDataset.open(uri).row(3)
    data = copy.read_bytes()
    copy.write_bytes(data.replace(b"\x89PNG", b"\0\0\0\0"))
    with pytest.raises(DataError, match=r"face-03 of .* is damaged here: .* run it again"):
        PreparedDataset.open(uri).row(3)
    assert np.array_equal(PreparedDataset.open(uri).row(3)["image"], row["image"])


def test_one_copy_at_a_time(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = storage.read_bytes

    def counted(place: str, **how: Any) -> bytes:
        reads.append(place.rpartition("/")[2])
        return read(place, **how)

    monkeypatch.setattr(storage, "read_bytes", counted)
    threads = [threading.Thread(target=PreparedDataset.open, args=(uri,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name in reads if name.startswith("part-")) == [f"part-0000{at}.parquet" for at in range(4)]


def test_copy_is_held_as_long_as_it_is_open(uri: str, copy: Path) -> None:
    dataset = PreparedDataset.open(uri)
    assert cache.in_use(copy)
    del dataset
    assert not cache.in_use(copy)


def test_file_in_the_way_of_the_cache(uri: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match=r"cannot bring .* into the local cache .*; set SCFEGAN_CACHE to a folder"):
        PreparedDataset.open(uri)


_AS_NOBODY = """
import os
import pyarrow.dataset  # the others of this Python's modules may be closed to that user
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import ScFeganError
os.setgid(65534); os.setuid(65534)
try:
    print(len(PreparedDataset.open({uri!r})))
except ScFeganError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("copy_mode", "folder_mode", "said"),
    [(0o644, 0o755, "20"), (0o600, 0o777, "20"), (0o600, 0o755, "StorageError cannot bring "), (0o644, 0, "StorageE")],
)
def test_another_user_shares_the_cache(
    uri: str, copy: Path, tmp_path: Path, copy_mode: int, folder_mode: int, said: str
) -> None:
    PreparedDataset.open(uri)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    copy.chmod(copy_mode)
    copy.parent.chmod(folder_mode)
    answer = run_code(_AS_NOBODY.format(uri=uri), Path("/"))
    assert answer.startswith(said)
    assert ("set SCFEGAN_CACHE" in answer) == (said != "20")


@pytest.mark.parametrize("test_fraction", [0.25, 0.0])
def test_one_row_without_a_copy(uri: str, test_fraction: float, copy: Path) -> None:
    info = DatasetInfo.read(uri)
    assert info is not None
    info = DatasetInfo(**{**asdict(info), "test_fraction": test_fraction})
    row = first_held_back(uri, info)
    assert not copy.exists()
    expected = is_test_key(row["key"], 0.25) if test_fraction else True
    assert expected and row["image"].shape == (32, 32, 3)


def test_unfinished_dataset_is_none(tmp_path: Path) -> None:
    root = Path(write_dataset(tmp_path / "set"))
    (root / "dataset.json").unlink()
    assert DatasetInfo.read(str(root)) is None
    with pytest.raises(DataError, match="no prepared dataset at"):
        PreparedDataset.open(str(root))


def test_lost_rows_are_noticed_and_not_cached(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path / "set", num_images=NUM + 1)
    with pytest.raises(DataError, match=r"holds 20 images, its dataset\.json says 21"):
        PreparedDataset.open(uri)
    # The same content prepared anew has the same fingerprint, and must not meet what was cached before.
    assert len(PreparedDataset.open(write_dataset(tmp_path / "anew"))) == NUM


@pytest.mark.parametrize(
    ("change", "named"),
    [({"schema_version": 99}, "has schema version 99, this package reads 2; prepare it anew"), ({"x": 1}, "damaged")],
)
def test_foreign_description_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    root = Path(write_dataset(tmp_path / "set"))
    values = json.loads((root / "dataset.json").read_text()) | change
    (root / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=named):
        PreparedDataset.open(str(root))


def test_what_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"x\.parquet is no shard of a prepared dataset"):
        read_shard(str(tmp_path / "x.parquet"))
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"y\.parquet is no shard of a prepared dataset"):
        read_shard(str(tmp_path / "y.parquet"))


def test_people_fall_on_one_side_of_the_split() -> None:
    keys = [f"sub/{person}_{number:06d}.jpg" for person in range(200) for number in range(3)]
    pattern = settle_identity_pattern(None, keys)
    assert pattern == NUMBERED_PEOPLE
    sides = [{is_test_key(key, 0.25, pattern) for key in keys[at : at + 3]} for at in range(0, len(keys), 3)]
    assert all(len(side) == 1 for side in sides)
    assert sum(side == {True} for side in sides) == pytest.approx(50, abs=20)
    alone = [{is_test_key(key, 0.25) for key in keys[at : at + 3]} for at in range(0, len(keys), 3)]
    assert any(len(side) == 2 for side in alone), "without the pattern they do not"


def test_people_are_told_by_names_only_where_all_names_tell_them() -> None:
    numbered = [f"{person}_1.jpg" for person in range(100)]
    assert settle_identity_pattern(None, numbered) == NUMBERED_PEOPLE
    assert settle_identity_pattern(None, [*numbered, "portrait.jpg"]) is None
    assert settle_identity_pattern(None, [f"2026_{number}.jpg" for number in range(500)]) is None, "a year is nobody"
    assert settle_identity_pattern("", numbered) is None
    assert settle_identity_pattern("^[a-z]+", numbered) == "^[a-z]+"


def test_image_whose_name_tells_nobody_stands_for_itself() -> None:
    keys = [f"face {number}.jpg" for number in range(200)]
    assert [is_test_key(key, 0.5, "^([a-z]+)_") for key in keys] == [is_test_key(key, 0.5) for key in keys]
    # Without a group all of the match is the person; an empty one is nobody.
    assert len({is_test_key(key, 0.5, "^face") for key in keys}) == 1
    assert [is_test_key(key, 0.5, "x*") for key in keys] == [is_test_key(key, 0.5) for key in keys]


@pytest.mark.parametrize("lines_at_a_time", [1, 2, 3, 100])
def test_fingerprint_is_that_of_sorted_lines(lines_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_LINES_AT_A_TIME", lines_at_a_time)
    # Where one key goes on as another one does, with a blank or less, lines are not in the order of their keys.
    keys = ["b", "a", "a b", "a!", "a\nb", "a b c", "ü 1.png", "ü.png", "a \t"]
    for seed in range(8):
        digests = [hashlib.sha256(f"{seed}{key}".encode()) for key in keys]
        lines = sorted(f"{key} {digest.hexdigest()}" for key, digest in zip(keys, digests, strict=True))
        rows = pa.table({"key": keys, "sha256": pa.array([one.digest() for one in digests], DIGEST)})
        rows = pa.concat_tables([rows.slice(4), rows.slice(0, 4)])
        assert fingerprint(rows) == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert fingerprint(rows.slice(0, 0)) == hashlib.sha256(b"").hexdigest()


def test_index_is_sorted_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_INDEX_ROWS", 2)
    rows = [("b", 0, 0, True), ("c", 0, 1, False), ("a", 1, 0, False)]
    table = pa.Table.from_pylist([dict(zip(INDEX_SCHEMA.names, row, strict=True)) for row in rows], INDEX_SCHEMA)
    write_index(str(tmp_path), table.add_column(0, "hair_area", [[0.5] * 3]))
    file = pq.ParquetFile(tmp_path / "index.parquet")
    assert file.schema_arrow == INDEX_SCHEMA and file.num_row_groups == 2
    assert file.read().to_pylist() == [
        {"key": "a", "shard": 1, "row": 0, "held_back": False},
        {"key": "b", "shard": 0, "row": 0, "held_back": True},
        {"key": "c", "shard": 0, "row": 1, "held_back": False},
    ]


def test_faces_of_a_photograph_are_on_one_side() -> None:
    assert photograph_of("a/b#2.jpg#13") == "a/b#2.jpg"
    assert photograph_of("a/b#2.jpg") == "a/b#2.jpg"
    keys = [f"7_{at}.jpg" for at in range(50)]
    for pattern in (None, NUMBERED_PEOPLE):
        for key in keys:
            assert len({is_test_key(name, 0.5, pattern) for name in (key, f"{key}#1", f"{key}#20")}) == 1
    assert len({is_test_key(key, 0.5) for key in keys}) == 2


def test_photograph_was_trained_on_whichever_of_its_faces_was(tiny_dataset: str) -> None:
    info = DatasetInfo.read(tiny_dataset)
    assert info is not None
    keys = [f"embedded/0/{at:07d}" for at in range(12)]
    learnt = [key for key in keys if not info.holds_back(key)]
    held_back = next(key for key in keys if info.holds_back(key))
    assert trains_on(tiny_dataset, info, keys) == len(learnt)
    asked = [f"{learnt[0]}#1", f"{learnt[0]}#2", learnt[1], f"{held_back}#1", "other#1"]
    assert trains_on(tiny_dataset, info, asked) == 3


def test_rows_of_an_older_version_say_nothing_of_squares(tmp_path: Path) -> None:
    place = write_dataset(tmp_path / "old")
    for part in Path(place, "data").iterdir():
        table = pq.read_table(part)
        pq.write_table(table.drop_columns("square"), part)
    assert len(PreparedDataset.open(place)) == NUM
    assert PreparedDataset.open(place).row(3)["key"] == "face-03"


def test_what_learns_from_a_dataset_says_what_was_taken_of_photographs() -> None:
    found = replace(DATASET, align="celeba_hq").named_in(DataConfig(align="auto"), "/made")
    assert (found.prepared, found.align) == ("/made", "celeba_hq")
    assert DATASET.named_in(DataConfig(align="auto"), "/made").align == "none"
