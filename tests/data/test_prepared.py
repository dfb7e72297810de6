"""This machine's copy of a prepared dataset: shared, checked, made once."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import run_code
from test_examples import NUM, write_dataset

from scfegan_ray import cache, storage
from scfegan_ray.data import prepared, shards
from scfegan_ray.data.prepared import PreparedDataset
from scfegan_ray.errors import DataError, StorageError


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_dataset(tmp_path / "set")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prepared" / "abc.arrow"


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
    assert len(PreparedDataset.open(uri).keys) == NUM
    assert copy.read_bytes() == whole
    assert sorted(path.name for path in copy.parent.iterdir()) == ["abc.arrow", "abc.arrow.lock"]


def test_copy_of_fewer_rows_is_made_again(uri: str, copy: Path) -> None:
    PreparedDataset.open(uri)
    whole = copy.read_bytes()
    with prepared.pa.ipc.new_file(str(copy), prepared.SCHEMA):
        pass
    assert len(PreparedDataset.open(uri).keys) == NUM and copy.read_bytes() == whole


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
from scfegan_ray.data import prepared
from scfegan_ray.errors import ScFeganError
os.setgid(65534); os.setuid(65534)
try:
    print(len(prepared.PreparedDataset.open({uri!r}).keys))
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
    info = prepared.DatasetInfo.read(uri)
    assert info is not None
    info = prepared.DatasetInfo(**{**prepared.asdict(info), "test_fraction": test_fraction})
    row = shards.first_held_back(uri, info)
    assert not copy.exists()
    expected = prepared.is_test_key(row["key"], 0.25) if test_fraction else True
    assert expected and row["image"].shape == (32, 32, 3)
