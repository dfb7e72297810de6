"""Where checkpoints are kept: whole or not at all, the right ones, also where storage comes and goes."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scfegan_ray import storage
from scfegan_ray.config import Config
from scfegan_ray.errors import CheckpointError, StorageError
from scfegan_ray.training import checkpoint
from scfegan_ray.training.checkpoint import Snapshot
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.store import CheckpointStore, CheckpointWriter

Take = Callable[..., Snapshot]


@pytest.fixture
def state(tiny: Config) -> TrainingState:
    return TrainingState.build(tiny)


@pytest.fixture
def take(state: TrainingState, tiny: Config) -> Take:
    """Take a snapshot at a position; no two have the same weights."""

    def snapshot(images_seen: int, objective: float | None = None) -> Snapshot:
        state.images_seen = images_seen
        with torch.no_grad():
            next(state.generator.parameters()).view(-1)[0] += 1.0
        return checkpoint.capture(state, tiny, None if objective is None else {"objective_db": objective})

    return snapshot


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "run" / "checkpoints"))


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CheckpointStore:
    if request.param == "local":
        return CheckpointStore(str(tmp_path / "checkpoints"))
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return CheckpointStore(f"s3://lab/{tmp_path.name}/checkpoints")


def entries(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in Path(store.place).iterdir())


def images(store: CheckpointStore) -> list[int]:
    return [int(name.removeprefix("checkpoint-")) for name in store.names()]


def test_what_is_written_is_found_and_read(
    any_store: CheckpointStore, take: Take, state: TrainingState, tiny: Config
) -> None:
    assert (any_store.names(), any_store.latest()) == ([], None)
    for seen in (900, 12, 1_000_000):
        any_store.write(take(seen))
    assert any_store.names() == ["checkpoint-0000000012", "checkpoint-0000000900", "checkpoint-0001000000"]
    assert any_store.latest() == "checkpoint-0001000000"
    with any_store.open("checkpoint-0001000000") as folder:
        loaded = TrainingState.build(tiny)
        checkpoint.load(loaded, folder)
        assert loaded.weights_sha256() == state.weights_sha256()
        assert checkpoint.read_meta(any_store.uri("checkpoint-0001000000")) == checkpoint.read_meta(folder)
    if storage.is_local(any_store.place):
        assert entries(any_store) == any_store.names(), "nothing else is left behind"


def test_the_same_position_again_replaces(any_store: CheckpointStore, take: Take, state: TrainingState) -> None:
    first = any_store.write(take(8, objective=1.0))
    digest = state.weights_sha256()
    assert any_store.write(take(8)) == first
    assert any_store.names() == [first]
    meta = checkpoint.read_meta(any_store.uri(first))
    assert meta["weights_sha256"] == state.weights_sha256() != digest
    assert meta["metrics"] is None


def test_what_is_not_whole_is_not_seen(any_store: CheckpointStore, take: Take) -> None:
    name = any_store.write(take(8))
    any_store.write(take(16))
    storage.delete(storage.join(any_store.uri(name), checkpoint.META))
    assert images(any_store) == [16]
    storage.write_bytes(storage.join(any_store.place, "checkpoint-notes.txt"), b"no folder")
    storage.write_bytes(storage.join(any_store.place, "other-0000000099", checkpoint.META), b"{}")
    assert images(any_store) == [16]


def test_a_folder_in_the_making_is_not_seen(
    store: CheckpointStore, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(take(8))
    seen = []
    plain = checkpoint.write

    def look(snapshot: Snapshot, directory: Path) -> dict[str, object]:
        meta = plain(snapshot, directory)
        seen.append((store.names(), directory.name))
        return meta

    monkeypatch.setattr(checkpoint, "write", look)
    store.write(take(16))
    ((names, partial),) = seen
    assert names == ["checkpoint-0000000008"]
    assert partial.startswith(".checkpoint-0000000016.")
    assert images(store) == [8, 16]


@pytest.mark.parametrize("at", [8, 16], ids=["the same name", "a new name"])
def test_failed_write_leaves_what_was_there(
    any_store: CheckpointStore, take: Take, state: TrainingState, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = any_store.write(take(8))
    digest = state.weights_sha256()
    plain = storage.write_bytes

    def full(uri: str, data: bytes) -> None:
        if uri.endswith("optimizers.safetensors"):
            raise StorageError("no space left")
        plain(uri, data)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(StorageError, match="no space left"):
        any_store.write(take(at))
    assert any_store.names() == [name]
    assert checkpoint.read_meta(any_store.uri(name))["weights_sha256"] == digest
    if storage.is_local(any_store.place):
        assert entries(any_store) == [name]


def test_prune_keeps_the_newest_and_the_best(any_store: CheckpointStore, take: Take) -> None:
    for seen, objective in ((0, 1.0), (8, 9.0), (16, None), (24, 2.0), (32, None)):
        any_store.write(take(seen, objective))
    any_store.prune(2)
    assert images(any_store) == [8, 24, 32]
    any_store.write(take(40, 10.0))
    any_store.prune(2)
    assert images(any_store) == [32, 40], "the best is among the newest now"
    files = {name.partition("/")[0] for name in storage.list_files(any_store.place)}
    assert sorted(files) == any_store.names(), "no file of the others is left"


def test_prune_knows_no_best_where_nothing_was_measured(store: CheckpointStore, take: Take) -> None:
    for seen in (0, 8, 16):
        store.write(take(seen))
    store.prune(1)
    assert images(store) == [16]
    store.prune(5)
    assert images(store) == [16]


def test_prune_takes_no_damaged_or_meaningless_score_for_the_best(store: CheckpointStore, take: Take) -> None:
    for seen, objective in ((0, float("nan")), (8, 1.0), (16, 9.0), (24, None)):
        store.write(take(seen, objective))
    Path(store.uri("checkpoint-0000000016"), "meta.json").write_text("{")
    store.prune(keep=1)
    assert images(store) == [8, 24]


def test_prune_clears_what_killed_writers_left(store: CheckpointStore, take: Take) -> None:
    name = store.write(take(8))
    long_ago = time.time() - 3600
    for number, age in (("1", long_ago), ("2", time.time())):
        partial = Path(store.place) / f".checkpoint-0000000016.{number}.part"
        partial.mkdir()
        (partial / "ema.safetensors").write_bytes(b"half")
        os.utime(partial, (age, age))
    store.prune(1)
    assert entries(store) == [".checkpoint-0000000016.2.part", name], "the second may still be written"


def test_prune_that_fails_is_logged_only(
    store: CheckpointStore, take: Take, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for seen in (0, 8):
        store.write(take(seen))

    def fail(uri: str, *, last: str) -> None:
        raise StorageError("the server is away")

    monkeypatch.setattr(storage, "delete_folder", fail)
    store.prune(1)
    assert images(store) == [0, 8]
    assert "old checkpoints stay for now: the server is away" in caplog.text


def test_missing_checkpoint_is_a_clear_error(any_store: CheckpointStore, state: TrainingState) -> None:
    gone = "checkpoint-0000000001"
    with pytest.raises((StorageError, CheckpointError), match=gone), any_store.open(gone) as folder:
        checkpoint.load(state, folder)


# The writer


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let pauses between trials take no time, but on the clock that counts them."""
    made: list[float] = []
    clock = SimpleNamespace(sleep=made.append, monotonic=lambda: sum(made), time=time.time)
    monkeypatch.setattr(storage, "time", clock)
    return made


@pytest.fixture
def writer(store: CheckpointStore) -> Iterator[CheckpointWriter]:
    made = CheckpointWriter(store, keep=2, retry_seconds=60.0)
    yield made
    made.close()


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let the first writes fail as a store that is away for a while; return the positions that were tried."""
    tried: list[int] = []
    plain = CheckpointStore.write

    def write(store: CheckpointStore, snapshot: Snapshot) -> str:
        tried.append(snapshot.images_seen)
        if len(tried) <= times:
            raise StorageError("cannot write: timed out")
        return plain(store, snapshot)

    monkeypatch.setattr(CheckpointStore, "write", write)
    return tried


def test_writer_works_beside_its_caller(
    writer: CheckpointWriter, store: CheckpointStore, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, threads = threading.Event(), list[str]()
    plain = CheckpointStore.write

    def slow(store: CheckpointStore, snapshot: Snapshot) -> str:
        threads.append(threading.current_thread().name)
        assert may_go_on.wait(30)
        return plain(store, snapshot)

    monkeypatch.setattr(CheckpointStore, "write", slow)
    name = writer.save(take(8))
    assert not name.done()
    writer.check()  # does not wait
    assert (writer.last, images(store)) == (None, [])
    may_go_on.set()
    writer.wait()
    assert name.done()
    assert (writer.last, images(store)) == ("checkpoint-0000000008", [8])
    assert threads[0].startswith("checkpoints")


def test_writer_waits_for_the_one_before_and_prunes(
    writer: CheckpointWriter, store: CheckpointStore, take: Take
) -> None:
    for seen in (0, 8, 16, 24):
        writer.save(take(seen))
    writer.close()
    assert images(store) == [16, 24], "what was begun is finished"
    writer.wait()
    assert writer.last == "checkpoint-0000000024"


def test_nobody_waits_for_slow_storage(
    writer: CheckpointWriter,
    store: CheckpointStore,
    take: Take,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    may_go_on, written = threading.Event(), list[int]()
    plain = CheckpointStore.write

    def slow(store: CheckpointStore, snapshot: Snapshot) -> str:
        written.append(snapshot.images_seen)
        assert may_go_on.wait(30)
        return plain(store, snapshot)

    monkeypatch.setattr(CheckpointStore, "write", slow)
    first = writer.save(take(8), may_be_dropped=True)
    while not written:
        threading.Event().wait(0.01)
    names = [
        writer.save(take(seen), may_be_dropped=by_clock)
        for seen, by_clock in ((12, True), (16, True), (20, False), (24, True), (28, False), (32, False))
    ]
    assert [name.done() for name in names] == [True, True, False, True, False, False]
    may_go_on.set()
    writer.wait()
    assert written == [8, 20, 28, 32], "of those by the clock the one that was begun; the measured ones all"
    assert first.result() == "checkpoint-0000000008"
    assert [name.result() for name in names] == [
        None, None, "checkpoint-0000000020", None, "checkpoint-0000000028", "checkpoint-0000000032",
    ]  # fmt: skip
    assert writer.last == "checkpoint-0000000032"
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert [line.split(":")[0] for line in lines] == [f"the checkpoint at {at} is left out" for at in (12, 16, 24)]


def test_storage_that_comes_back_costs_nothing(
    writer: CheckpointWriter,
    store: CheckpointStore,
    take: Take,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = failing(monkeypatch, times=2)
    writer.save(take(8))
    writer.wait()
    assert tried == [8, 8, 8]
    assert pauses == [1.0, 2.0]
    assert (writer.last, images(store)) == ("checkpoint-0000000008", [8])
    assert caplog.text.count("cannot write: timed out; trying again") == 2


@pytest.mark.parametrize("notice", ["check", "wait", "save"])
def test_storage_that_stays_away_is_told_once(
    writer: CheckpointWriter, take: Take, pauses: list[float], monkeypatch: pytest.MonkeyPatch, notice: str
) -> None:
    failing(monkeypatch, times=99)
    name = writer.save(take(8))
    while not name.done():
        threading.Event().wait(0.01)
    with pytest.raises(StorageError, match="timed out"):
        writer.save(take(16)) if notice == "save" else getattr(writer, notice)()
    assert sum(pauses) == pytest.approx(60.0)
    assert writer.last is None
    writer.check()
    writer.wait()


def test_full_disk_is_not_tried_again_and_costs_no_checkpoint(
    small_place: Path, take: Take, state: TrainingState, pauses: list[float]
) -> None:
    store = CheckpointStore(str(small_place / "checkpoints"))
    writer = CheckpointWriter(store, keep=2, retry_seconds=60.0)
    writer.save(take(8))
    writer.wait()
    digest = state.weights_sha256()
    (small_place / "other").write_bytes(bytes(shutil.disk_usage(small_place).free - 60_000))
    for at in (8, 16):
        writer.save(take(at))
        with pytest.raises(StorageError, match="No space left"):
            writer.wait()
    writer.close()
    assert pauses == []
    assert (writer.last, images(store)) == ("checkpoint-0000000008", [8])
    assert entries(store) == store.names(), "what was half written is gone"
    meta = checkpoint.read_meta(store.uri("checkpoint-0000000008"))
    assert meta["weights_sha256"] == digest
