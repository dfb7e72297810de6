"""Storage: whole files and folders or none, clear errors, relative paths that are not lost, patience."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from scfegan_ray import cache, storage
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
    assert storage.absolute("file:x/y") == str(tmp_path / "x" / "y")
    assert storage.absolute("file://x") == str(tmp_path / "x")
    assert storage.absolute("file:/a/b") == storage.absolute("file://localhost/a/b/") == "/a/b"
    # A submitted job runs in a copy of the code that Ray deletes.
    unpacked = tmp_path / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    assert storage.absolute("./runs") == str(Path.home() / "runs")


def test_home_folder_of_nobody_is_named() -> None:
    with pytest.raises(StorageError, match="cannot tell where ~nosuchuser/x is"):
        storage.absolute("~nosuchuser/x")


ODD = "exp#2 50%20? ü'&"


def test_paths_and_keys_are_taken_letter_by_letter_and_file_uris_by_their_syntax(tmp_path: Path) -> None:
    for name in (ODD, "feature%2Ffoo"):
        place = str(tmp_path / name)
        assert storage.absolute(place) == storage.absolute(name) == place
        assert storage.absolute(f"s3://b/{name}") == f"s3://b/{name}"
    assert storage.absolute("file:///a%20b/c%252F%23") == "/a b/c%2F#"
    assert storage.join("file:///a%20b", "c%2F") == "/a b/c%2F"
    assert storage.as_uri("/a/b-1_c.d~") == "/a/b-1_c.d~"
    assert storage.as_uri("/a b/50%/#?") == "file:///a%20b/50%25/%23%3F"
    assert storage.absolute(storage.as_uri(f"/{ODD}")) == f"/{ODD}"
    assert storage.as_uri("s3://b/50%20 x") == "s3://b/50%20 x"
    with pytest.raises(StorageError, match="choose a --storage.path without # and ?"):
        storage.as_uri("s3://b/a#1")


def test_odd_names_are_names(place: str) -> None:
    for name in (ODD, "feature%2Ffoo"):
        folder = storage.join(place, name)
        make_folder(folder, {f"{name}.bin": b"1", "z.json": b"2"})
        assert storage.list_files(folder) == sorted([f"{name}.bin", "z.json"])
        assert storage.read_bytes(storage.join(folder, f"{name}.bin")) == b"1"
        storage.check_writable(folder)
    assert {name.partition("/")[0] for name in storage.list_files(place)} == {ODD, "feature%2Ffoo"}


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:hidden@bucket/x",
        "s3://KEY:hid/den@bucket/x",
        "s3://KEY@bucket/x",
        "s3://bucket/x?access_key=KEY&secret_key=hidden",
        "ftp://KEY:hidden@host/x",
    ],
)
def test_secret_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    for use in (storage.absolute, storage.exists):
        with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
            use(uri)
        assert not any(part in str(caught.value) for part in ("KEY:", "hid", "KEY@"))
    assert storage.absolute("s3://bucket/me@home:1?token") == "s3://bucket/me@home:1?token"


def test_messages_lose_their_secrets() -> None:
    text = "no http://me:hid@h:1/x?a=1&api_token=hidden and postgresql://me:h%40@h/d; s3://b/me@x"
    assert storage.without_secrets(text) == "no http://h:1/x?a=1&api_token=*** and postgresql://h/d; s3://b/me@x"


def test_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("SCFEGAN_CACHE", "here")
    assert cache.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("SCFEGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_dir() == Path("/somewhere/scfegan_ray")


def test_local_copy_of_a_local_folder_is_itself(tmp_path: Path) -> None:
    with storage.local_copy(str(tmp_path)) as folder:
        assert folder == tmp_path


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Name a place that is not there yet, on a disk and in a real object store."""
    if request.param == "local":
        return str(tmp_path / "below" / "place")
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return f"s3://lab/{tmp_path.name}/place"


def make_folder(uri: str, files: dict[str, bytes]) -> None:
    with storage.new_folder(uri, last="z.json") as folder:
        assert list(folder.iterdir()) == []
        for name, data in files.items():
            (folder / name).write_bytes(data)


def test_new_folder_appears_at_its_end_and_replaces(place: str) -> None:
    with storage.new_folder(place, last="z.json") as folder:
        for name in ("z.json", "a.bin"):
            (folder / name).write_bytes(name.encode())
        assert storage.list_files(place) == []
        assert not storage.exists(place)
    assert storage.list_files(place) == ["a.bin", "z.json"]
    assert storage.read_bytes(storage.join(place, "a.bin")) == b"a.bin"
    assert not folder.exists()
    make_folder(place, {"a.bin": b"2", "z.json": b"2"})
    assert [storage.read_bytes(storage.join(place, name)) for name in storage.list_files(place)] == [b"2", b"2"]


def test_new_folder_that_fails_leaves_the_old_one_and_no_scrap(place: str) -> None:
    make_folder(place, {"a.bin": b"1", "z.json": b"1"})
    with pytest.raises(RuntimeError, match="half way"), storage.new_folder(place, last="z.json") as folder:
        (folder / "a.bin").write_bytes(b"2")
        raise RuntimeError("half way")
    assert not folder.exists()
    assert [storage.read_bytes(storage.join(place, name)) for name in storage.list_files(place)] == [b"1", b"1"]
    if storage.is_local(place):
        assert [path.name for path in Path(place).parent.iterdir()] == ["place"]


def test_files_of_an_object_store_appear_in_order(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    place = f"s3://lab/{tmp_path.name}/order"
    files = {"z.json": b"1", "a.bin": b"1", "zz.bin": b"1"}
    make_folder(place, files)
    seen = []
    plain = storage._upload

    def upload(file: Path, uri: str) -> None:
        plain(file, uri)
        seen.append((file.name, "z.json" in storage.list_files(place)))

    monkeypatch.setattr(storage, "_upload", upload)
    make_folder(place, files)
    # While the others are replaced, the old `last` must not tell of a whole folder.
    assert seen == [("a.bin", False), ("zz.bin", False), ("z.json", True)]


def test_new_folder_in_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write .*file/below"):
        make_folder(str(tmp_path / "file" / "below"), {})


def test_delete_folder_begins_with_what_makes_it_whole(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(place, {"a.bin": b"1", "z.json": b"1"})
    make_folder(f"{place}-other", {"z.json": b"1"})
    deleted = []
    plain = storage.delete

    def delete(uri: str) -> None:
        plain(uri)
        deleted.append(storage.list_files(place))

    monkeypatch.setattr(storage, "delete", delete)
    storage.delete_folder(place, last="z.json")
    assert deleted == [["a.bin"], []]
    assert storage.list_files(f"{place}-other") == ["z.json"]
    storage.delete_folder(place, last="z.json")  # an absent one is no error


def test_abandoned_files_and_folders_are_deleted_after_a_while(tmp_path: Path) -> None:
    long_ago = time.time() - 3600
    for name, age in ((".a.1.part", long_ago), (".b.2.part", time.time())):
        file, folder = tmp_path / name, tmp_path / f"{name[:2]}folder{name[2:]}"
        file.write_bytes(b"1")
        folder.mkdir()
        (folder / "half").write_bytes(b"1")
        for path in (file, folder):
            os.utime(path, (age, age))
    for name in (".hidden", "kept.part"):
        (tmp_path / name).write_bytes(b"1")
        os.utime(tmp_path / name, (long_ago, long_ago))
    storage.delete_abandoned(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.2.part", ".bfolder.2.part", ".hidden", "kept.part"]
    storage.delete_abandoned(str(tmp_path / "absent"))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let pauses take no time, but on the clock that counts them."""
    made: list[float] = []
    monkeypatch.setattr(storage, "time", SimpleNamespace(sleep=made.append, monotonic=lambda: sum(made)))
    return made


class Work:
    """Fails a number of times before it succeeds."""

    def __init__(self, failures: int, cause: OSError | None = None) -> None:
        self.failures, self.cause, self.calls = failures, cause, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise StorageError("the server is away") from self.cause
        return "done"


def test_retrying_waits_longer_each_time_until_it_works(pauses: list[float]) -> None:
    work, said = Work(3, OSError(errno.EIO, "input/output error")), list[str]()
    assert storage.retrying(work, 300.0, said.append) == "done"
    assert pauses == [1.0, 2.0, 4.0]
    assert said == [f"the server is away; trying again in {seconds} s" for seconds in (1, 2, 4)]


def test_retrying_gives_up_after_its_time(pauses: list[float]) -> None:
    work = Work(1000)
    with pytest.raises(StorageError, match="the server is away"):
        storage.retrying(work, 100.0, lambda line: None)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 9.0]
    assert work.calls == len(pauses) + 1, "once more at the end"


def test_retrying_for_no_time_tries_once(pauses: list[float]) -> None:
    work = Work(1)
    with pytest.raises(StorageError):
        storage.retrying(work, 0.0, lambda line: None)
    assert (work.calls, pauses) == (1, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR])
def test_what_no_repetition_mends_is_not_tried_again(pauses: list[float], number: int) -> None:
    work, said = Work(1, OSError(number, os.strerror(number))), list[str]()
    with pytest.raises(StorageError):
        storage.retrying(work, 300.0, said.append)
    assert (work.calls, pauses, said) == (1, [], [])


def test_retrying_passes_on_what_is_no_trouble_of_storage(pauses: list[float]) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.retrying(broken, 300.0, lambda line: None)
    assert pauses == []


def test_full_disk_is_known_as_such(small_place: Path, pauses: list[float]) -> None:
    with pytest.raises(StorageError, match="No space left"):
        storage.retrying(lambda: storage.write_bytes(str(small_place / "x"), bytes(500_000)), 300.0, lambda line: None)
    assert pauses == []
    assert list(small_place.iterdir()) == []
