"""The feed gives what the pure functions give, in the same order, whatever its processes; and nothing outlives it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared_set import same, spoil, write_dataset
from running import is_running, kill, run_code, wait_until

from scfegan_ray import cache
from scfegan_ray.config import MaskConfig, StrokeConfig
from scfegan_ray.data import examples
from scfegan_ray.data.feed import Feed
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import DataError, FeedError

MASKS = MaskConfig(hair_probability=0.5, strokes=StrokeConfig(wobble=0.05, color_shift=9.0))
SEED = 3
END_SECONDS = 10.0


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_dataset(tmp_path / "set")


@pytest.fixture
def dataset(uri: str) -> PreparedDataset:
    return PreparedDataset.open(uri)


def training(dataset: PreparedDataset) -> examples.TrainingExamples:
    return examples.TrainingExamples(dataset, MASKS, SEED)


@contextlib.contextmanager
def feeding(dataset: PreparedDataset, num_processes: int, **changes: Any) -> Iterator[Feed]:
    settings = {"batch_size": 8, "rank": 0, "num_workers": 1, "device": torch.device("cpu")} | changes
    with contextlib.closing(Feed(training(dataset), num_processes=num_processes, **settings)) as feed:
        yield feed


def expected(dataset: PreparedDataset, first: int, count: int, reseeded_at: tuple[int, ...] = ()) -> examples.Example:
    positions = range(first, first + count)
    return examples.stack([training(dataset).at(one, reseeded_at) for one in positions])


@pytest.mark.parametrize("num_processes", [0, 1, 2])
def test_batches_are_the_examples_of_their_positions(dataset: PreparedDataset, num_processes: int) -> None:
    with feeding(dataset, num_processes) as feed:
        assert len(set(feed.process_ids)) == num_processes
        batches = feed.batches(0)
        for step in range(12):  # round the ring of slots more than twice, over several epochs
            assert same(next(batches), expected(dataset, 8 * step, 8)), step
        batches = feed.batches(16)
        assert all(same(next(batches), expected(dataset, 16 + 8 * step, 8)) for step in range(2)), "as when resumed"


@pytest.mark.parametrize("num_processes", [0, 2])
def test_going_back_with_another_order(dataset: PreparedDataset, num_processes: int) -> None:
    with feeding(dataset, num_processes) as feed:
        before = feed.batches(0)
        for _ in range(3):
            next(before)
        for reseeded_at in ((8,), (8, 8)):
            batches = feed.batches(8, reseeded_at)
            for step in range(3):
                assert same(next(batches), expected(dataset, 8 + 8 * step, 8, reseeded_at)), step
        if num_processes:
            with pytest.raises(AssertionError, match="a later call"):
                next(before)


def test_unequal_shares_are_one_global_batch(dataset: PreparedDataset) -> None:
    with contextlib.ExitStack() as feeds:
        shares = [
            feeds.enter_context(feeding(dataset, number, rank=rank, num_workers=3)).batches(8)
            for rank, number in enumerate((1, 0, 3))
        ]
        for step in range(3):
            parts = [next(share) for share in shares]
            assert [len(part["interpolation"]) for part in parts] == [2, 3, 3]
            joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            assert same(joined, expected(dataset, 8 + 8 * step, 8))


def test_a_batch_stays_while_the_next_one_is_looked_at(dataset: PreparedDataset) -> None:
    with feeding(dataset, 1) as feed:
        batches = feed.batches(0)
        for step in range(1, 9):
            before = next(batches)
            next(batches)
            time.sleep(0.02)  # what is made ahead goes elsewhere
            assert same(before, expected(dataset, 16 * (step - 1), 8)), step


@pytest.mark.parametrize("num_processes", [0, 2])
def test_error_of_an_example_is_raised_where_its_batch_is_taken(tmp_path: Path, num_processes: int) -> None:
    uri = write_dataset(tmp_path / "broken", fingerprint="broken")
    spoiled = spoil(uri)
    dataset = PreparedDataset.open(uri)

    def is_good(position: int) -> bool:
        row = dataset.train_rows[training(dataset).order.at(position)[1]]
        return bool(dataset.key(row) != spoiled)

    good = len(list(itertools.takewhile(is_good, itertools.count())))
    with feeding(dataset, num_processes, batch_size=2) as feed:
        batches = feed.batches(0)
        for _ in range(good // 2):
            next(batches)
        with pytest.raises(DataError, match="is damaged here: this machine's copy of the dataset is deleted now"):
            next(batches)
        assert len(next(feed.batches(good + 1))["mask"]) == 2, "it can be asked for others"


def test_error_that_nobody_meant_is_shown_whole(dataset: PreparedDataset) -> None:
    with feeding(dataset, 1) as feed, pytest.raises(RuntimeError, match=r"(?s)failed: Traceback.*order.*TypeError"):
        next(feed.batches(0, reseeded_at=("no position",)))  # type: ignore[arg-type]


def test_dataset_without_training_images_is_refused(dataset: PreparedDataset) -> None:
    dataset.train_sizes = np.zeros(4, np.int64)
    with pytest.raises(DataError, match=r"has no training images; lower data\.test_fraction"), feeding(dataset, 1):
        pass


def test_process_killed_over_its_work_is_named(dataset: PreparedDataset) -> None:
    with feeding(dataset, 2) as feed:
        next(feed.batches(0))
        first, second = feed.process_ids
        os.kill(first, signal.SIGSTOP)  # it holds what it has taken, or takes nothing more
        killer = threading.Timer(0.5, os.kill, (first, signal.SIGKILL))
        killer.start()
        with pytest.raises(FeedError, match=rf"process {first}, which makes training images, was killed by SIGKILL; "):
            for batch in feed.batches(0):
                assert len(batch["mask"]) == 8
        assert is_running(second)
    assert not is_running(second)


@pytest.mark.parametrize("num_killed", [1, 2])
def test_process_killed_while_idle_is_named(dataset: PreparedDataset, num_killed: int) -> None:
    with feeding(dataset, 2) as feed:
        batches = feed.batches(0)
        next(batches)
        killed = feed.process_ids[:num_killed]
        kill(killed)
        for one in killed:
            os.waitid(os.P_PID, one, os.WEXITED | os.WNOWAIT)  # they may end in another order
        with pytest.raises(FeedError, match=f"process {feed.process_ids[0]}, .* lower train.loader_processes"):
            for _ in range(1000):
                next(batches)


@pytest.mark.parametrize("is_busy", [False, True])
def test_closing_ends_the_processes(dataset: PreparedDataset, is_busy: bool) -> None:
    with feeding(dataset, 2) as feed:
        batches = feed.batches(0)
        next(batches)
        if not is_busy:
            time.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 2.0
    assert not any(is_running(one) for one in feed.process_ids)


TRAINER = """
import contextlib, sys, time, torch
from scfegan_ray.config import MaskConfig
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed import Feed
from scfegan_ray.data.rows import PreparedDataset

settings = {"batch_size": 8, "rank": 0, "num_workers": 1, "num_processes": 2, "device": torch.device("cpu")}
made = TrainingExamples(PreparedDataset.open(sys.argv[1]), MaskConfig(), 0)
with contextlib.closing(Feed(made, **settings)) as feed:
    batches = feed.batches(0)
    next(batches)
    try:
        print(*feed.process_ids, flush=True)  # after which it may be interrupted
        while sys.argv[2] == "busy":
            next(batches)
        time.sleep(60)
    except KeyboardInterrupt:
        print(len(next(batches)["mask"]), flush=True)
"""


@contextlib.contextmanager
def trainer(uri: str, what: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start a process, in a group of its own, that uses a feed, with a temporary folder of its own."""
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, uri, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, [int(one) for one in process.stdout.readline().split()]
        finally:
            process.kill()


def places_of(process: int) -> set[str]:
    """Return what a process has open or mapped."""
    mapped = [line.split(maxsplit=5)[5:] for line in Path(f"/proc/{process}/maps").read_text().splitlines()]
    opened = [os.readlink(one) for one in Path(f"/proc/{process}/fd").iterdir()]
    return {*opened, *(name.strip() for [name] in filter(None, mapped))}


@pytest.mark.parametrize("what", ["idle", "busy"])
def test_killed_trainer_leaves_nothing(uri: str, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "temporary"
    with trainer(uri, what, folder) as (process, children):
        assert len(children) == 2 and all(is_running(one) for one in children)
        for one in (process.pid, *children):
            places = places_of(one)
            assert any("scfegan-feed" in place for place in places), "shared memory"
            assert not [place for place in places if place.startswith(("/dev/shm/", str(folder)))]
        process.kill()
        wait_until(lambda: not any(is_running(one) for one in children), END_SECONDS)
        assert process.communicate() == ("", ""), "no process has anything to say"
        assert list(folder.iterdir()) == []
    copies = list(Path(os.environ["SCFEGAN_CACHE"], "prepared").glob("*.arrow"))
    assert len(copies) == 2 and not any(cache.in_use(copy) for copy in copies)


def test_ctrl_c_is_the_trainers(uri: str, tmp_path: Path) -> None:
    with trainer(uri, "idle", tmp_path / "temporary") as (process, children):
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=END_SECONDS) == ("8\n", "")
        assert process.returncode == 0
        assert not any(is_running(one) for one in children)


def test_a_process_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = "import sys; from scfegan_ray.data import feed_process\n"
    code += "print(sorted({'torch', 'ray', 'mlflow', 'scipy', 'skimage'} & set(sys.modules)))"
    assert run_code(code, tmp_path) == "[]"


def test_memory_lives_as_long_as_a_batch_is_looked_at(dataset: PreparedDataset) -> None:
    with feeding(dataset, 1) as feed:
        batch = next(feed.batches(0))
    del feed
    gc.collect()
    assert same(batch, expected(dataset, 0, 8))
