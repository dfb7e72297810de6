"""Local storage: whole files or none, clear errors, relative paths that are not lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scfegan_ray import storage
from scfegan_ray.errors import StorageError


def test_write_read_list_delete(tmp_path: Path) -> None:
    root = str(tmp_path / "a")
    storage.write_bytes(storage.join(root, "b", "c.txt"), b"1")
    storage.write_bytes(storage.join(root, "d.txt"), b"2")
    storage.write_bytes(storage.join(root, ".hidden", "e.txt"), b"3")
    assert storage.list_files(root) == ["b/c.txt", "d.txt"]
    assert storage.read_bytes(storage.join(root, "b/c.txt")) == b"1"
    storage.delete(root)
    storage.delete(root)
    assert not storage.exists(root)
    assert storage.list_files(root) == []


def test_failed_write_leaves_the_old_file_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.json"
    storage.write_bytes(str(target), b"old")

    def full_disk(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match=r"cannot write .*x\.json: .*No space left.*free space"):
        storage.write_bytes(str(target), b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.glob("**/*") if p.is_file()] == [("x.json", b"old")]


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="file/below"):
        storage.check_writable(str(tmp_path / "file" / "below"))


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing-here"):
        storage.read_bytes(str(tmp_path / "nothing-here"))


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="ftp://x/y"):
        storage.exists("ftp://x/y")


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.absolute("runs/../x") == str(tmp_path / "x")
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert storage.absolute("file:///a/b") == "/a/b"
    assert storage.absolute("~/x") == str(Path.home() / "x")
    # A submitted job runs in a copy of the code that Ray deletes.
    unpacked = tmp_path / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    assert storage.absolute("./runs") == str(Path.home() / "runs")


def test_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("SCFEGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert storage.cache_dir() == Path("/somewhere/scfegan_ray")


def test_local_copy_of_a_local_folder_is_itself(tmp_path: Path) -> None:
    with storage.local_copy(str(tmp_path)) as folder:
        assert folder == tmp_path
