"""Folders and zip archives, and what is wrong with single files in them."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scfegan_ray import storage
from scfegan_ray.data import trees
from scfegan_ray.errors import DataError, StorageError

FILES = {"a.jpg": b"first", "b/ünï code.png": b"second", "b/c/d.txt": b"third"}


def never(name: str, reason: str) -> None:
    raise AssertionError(f"{name}: {reason}")


@pytest.fixture(params=["folder", "zip"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> trees.FileTree:
    hidden = {".hidden/x.jpg": b"", "b/.DS_Store": b""}
    if request.param == "folder":
        for name, data in (FILES | hidden).items():
            path = tmp_path / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return trees.Folder(str(tmp_path / "files"))
    with zipfile.ZipFile(tmp_path / "files.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("b")
        for name, data in (FILES | hidden | {"__MACOSX/a.jpg": b""}).items():
            archive.writestr(name, data)
    return trees.ZipArchive(str(tmp_path / "files.zip"))


def test_lists_and_reads(tree: trees.FileTree) -> None:
    assert [(file.name, file.size) for file in tree.files(never)] == sorted((n, len(d)) for n, d in FILES.items())
    assert {name: tree.read(name) for name in FILES} == FILES


def test_goes_to_workers_even_when_open(tree: trees.FileTree) -> None:
    tree.read("a.jpg")
    assert pickle.loads(pickle.dumps(tree)).read("b/c/d.txt") == b"third"


def test_file_over_the_limit_is_refused(tree: trees.FileTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 5)
    assert tree.read("a.jpg") == b"first"
    with pytest.raises(DataError, match="more than 0 MiB"):
        tree.read("b/ünï code.png")


def test_vanished_file_costs_one_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        trees.Folder(str(tmp_path)).read("gone.jpg")


def test_failing_storage_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(uri: str, *, limit: int | None = None) -> bytes:
        raise StorageError(f"cannot read {uri}") from OSError("AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(StorageError):
        trees.Folder("s3://bucket/faces").read("a.jpg")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "good.jpg")
    (tmp_path / "round").symlink_to(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/no\xff\xfeutf.jpg")).write_bytes(b"x")
    refused: list[tuple[str, str]] = []
    files = trees.Folder(str(tmp_path)).files(lambda name, reason: refused.append((name, reason)))
    assert [file.name for file in files] == ["good.jpg", "link.jpg"]
    assert sorted(refused) == [
        ("broken.jpg", "a link to nowhere"),
        ("no\\udcff\\udcfeutf.jpg", "the file's name is not valid UTF-8"),
        ("pipe.jpg", "not a regular file"),
    ]


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Read files as somebody whom modes stop, which root is not."""
    before = os.geteuid()
    os.seteuid(before or 65_534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # pytest's own folders are closed to others
        yield Path(folder)


def test_folder_that_cannot_be_listed(open_folder: Path) -> None:
    for name in ("open/a.jpg", "locked/b.jpg", "locked/deeper/c.jpg"):
        (open_folder / name).parent.mkdir()
        (open_folder / name).write_bytes(b"x")
    (open_folder / "locked").chmod(0)
    refused: list[tuple[str, str]] = []
    with ordinary_user():
        files = trees.Folder(str(open_folder)).files(lambda name, reason: refused.append((name, reason)))
        with pytest.raises(StorageError, match="cannot list .*Permission denied"):
            storage.list_files(str(open_folder))
    assert [file.name for file in files] == ["open/a.jpg"]
    assert refused == [("locked", "the folder cannot be listed: Permission denied")]
    (open_folder / "locked").chmod(0o755)


def test_file_without_permission(open_folder: Path) -> None:
    (open_folder / "secret.jpg").write_bytes(b"x")
    (open_folder / "secret.jpg").chmod(0)
    with ordinary_user(), pytest.raises(DataError, match="Permission denied"):
        trees.Folder(str(open_folder)).read("secret.jpg")


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damaged_file_of_an_archive(tmp_path: Path, method: int) -> None:
    path = tmp_path / "files.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("bad.jpg", bytes(range(256)) * 20)
        archive.writestr("good.jpg", b"good")
    damage(path, 30 + len("bad.jpg") + 60)
    archive_tree = trees.ZipArchive(str(path))
    with pytest.raises(DataError, match="damaged in the archive"):
        archive_tree.read("bad.jpg")
    assert archive_tree.read("good.jpg") == b"good"


def test_encrypted_file_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "files.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"x")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the file's own header, and the one in the directory
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        trees.ZipArchive(str(path)).read("a.jpg")


def test_archive_bomb_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(50_000_000))
    with pytest.raises(DataError, match="more than"):
        trees.ZipArchive(str(tmp_path / "bomb.zip")).read("bomb.jpg")


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"<html>sign in first</html>")
    with pytest.raises(DataError, match=r"x\.zip is no readable zip archive, copy it again: "):
        trees.ZipArchive(str(tmp_path / "x.zip")).files(never)


class Slow:
    """Reads files that take a while, and notes how many it reads at a time."""

    def __init__(self, folder: trees.Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.at_once = self.most_at_once = 0
        self.broken: set[str] = set()
        lock, plain = threading.Lock(), storage.read_bytes

        def read_bytes(uri: str, *, limit: int | None = None) -> bytes:
            name = uri.rpartition("/")[2]
            with lock:
                self.names.append(name)
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
            time.sleep(0.01)
            with lock:
                self.at_once -= 1
                if name in self.broken:
                    self.broken.remove(name)
                    raise StorageError(f"cannot read {uri}: the server is away") from TimeoutError(errno.ETIMEDOUT, "")
            return plain(uri, limit=limit)

        monkeypatch.setattr(storage, "read_bytes", read_bytes)


@pytest.fixture
def many(tmp_path: Path) -> trees.Folder:
    for number in range(60):
        (tmp_path / f"{number:02d}").write_bytes(bytes([number]))
    return trees.Folder(str(tmp_path))


def test_files_are_read_ahead_but_not_all_at_once(many: trees.Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(many, monkeypatch)
    names = [f"{number:02d}" for number in range(60)]
    many.read_ahead(names)
    for number, name in enumerate(names):
        assert many.read(name) == bytes([number])
        assert len(slow.names) <= number + 1 + trees.READ_AHEAD_FILES
    assert sorted(slow.names) == names, "each is read once"
    assert 1 < slow.most_at_once <= trees.READ_AHEAD_FILES
    assert many.read("07") == bytes([7]), "what nobody announced is read when it is asked for"


def test_what_is_passed_over_makes_room(many: trees.Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(many, monkeypatch)
    many.read_ahead(f"{number:02d}" for number in range(60))
    assert many.read("10") == bytes([10])
    assert many.read("11") == bytes([11])
    many.read_ahead(["40", "41"])
    assert many.read("41") == bytes([41])
    assert slow.names.count("41") == 1


def test_trouble_belongs_to_the_file_that_has_it(many: trees.Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(many, monkeypatch)
    slow.broken = {"03", "05"}
    many.read_ahead(["01", "gone", "03", "04", "05"])
    assert many.read("01") == bytes([1])
    with pytest.raises(DataError, match="cannot be read: No such file"):
        many.read("gone")
    assert many.read("03") == bytes([3]), "what storage did not give ahead of time is read again"
    assert many.read("04") == bytes([4])
    time.sleep(0.1)
    slow.broken = {"05"}
    with pytest.raises(StorageError, match="the server is away"):
        many.read("05")
