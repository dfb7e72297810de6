"""Ray Data makes what the pure functions make, in the same order, whoever dies meanwhile, and only so much ahead."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch
from prepared_set import same, spoil, write_dataset
from running import ROOT, descendants, folder_for_ray, kill, wait_until

from scfegan_ray.config import MaskConfig
from scfegan_ray.data import examples, ray_feed
from scfegan_ray.data.feed import Feed
from scfegan_ray.data.ray_feed import Budget, RayPool
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import DataError, FeedError

pytestmark = pytest.mark.ray

BUDGET = Budget(num_workers=2, cpus_per_worker=0.5)
"""Of two CPUs: one block at a time, for half of one."""
MASKS, SEED, WINDOW = MaskConfig(hair_probability=0.5), 3, 6
PATIENCE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two batches of eight images in a block."""
    monkeypatch.setattr(ray_feed, "BLOCK_ROWS", 16 * 32)


@pytest.fixture(scope="module")
def two_cpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run Ray in this process, with a cache for its workers."""
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    places = {"SCFEGAN_CACHE": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": os.pathsep.join(paths)}
    with folder_for_ray() as folder:
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=200_000_000,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
            runtime_env={"env_vars": places},
        )
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def feeding(made: examples.TrainingExamples, **changes: Any) -> Iterator[Feed]:
    settings = {"batch_size": 8, "rank": 0, "num_workers": 1} | changes

    def pool(share: int, layout: Any) -> RayPool:
        return RayPool(made.said(), share, layout, batch_size=settings["batch_size"], budget=BUDGET)

    with contextlib.closing(
        Feed(made, num_processes=0, device=torch.device("cpu"), make_pool=pool, **settings)
    ) as feed:
        yield feed


def expected(made: examples.TrainingExamples, first: int, count: int, reseeded_at: Any = ()) -> examples.Example:
    return examples.stack([made.at(first + at, reseeded_at) for at in range(count)])


@pytest.mark.parametrize("window", [0, WINDOW])
def test_batches_are_the_examples_of_their_positions(two_cpus: None, tmp_path: Path, window: int) -> None:
    """Over several terms, after going back, and in unequal shares."""
    made = examples.TrainingExamples(PreparedDataset.open(write_dataset(tmp_path / "set")), MASKS, SEED, window)
    wanted = examples.TrainingExamples(PreparedDataset.open(made.dataset.uri), MASKS, SEED, window)
    with feeding(made, rank=1, num_workers=3) as feed:
        batches = feed.batches(0)
        for step in range(12):
            assert same(next(batches), expected(wanted, 8 * step + 2, 3)), step
        batches = feed.batches(16, (16,))
        assert all(same(next(batches), expected(wanted, 16 + 8 * step + 2, 3, (16,))) for step in range(9)), (
            "as after going back"
        )


def test_terms_follow_each_other(two_cpus: None, tmp_path: Path) -> None:
    made = examples.TrainingExamples(PreparedDataset.open(write_dataset(tmp_path / "set")), MASKS, SEED)
    with ray_source(made, term_tasks=4) as source:
        firsts = []
        for _ in range(80):
            [block] = ray.get(source.next.remote())
            firsts += ray.get(block).column("first").to_pylist()
    assert firsts == list(range(40, 40 + 8 * 160, 8)), "two batches a block, four blocks a task, over five terms"


def test_it_makes_no_more_ahead_than_it_has_memory_for(two_cpus: None, tmp_path: Path) -> None:
    made = examples.TrainingExamples(PreparedDataset.open(write_dataset(tmp_path / "set")), MASKS, SEED)
    marks = tmp_path / "marks"
    marks.mkdir()
    with ray_source(made, marks=str(marks)) as source:
        ray.get(source.next.remote())
        counts = [0]
        while len(counts) < 3 or counts[-1] != counts[-2]:  # nobody takes a block, so at last nobody makes more
            time.sleep(5.0)
            counts.append(len(list(marks.iterdir())))
            assert 2 <= counts[-1] <= 8 + 4 + 2 + 3, "its memory's worth, what is brought, and what was begun"
        began, used = time.perf_counter(), ray.get(source.process_time.remote())
        time.sleep(5.0)
        used = ray.get(source.process_time.remote()) - used
        assert used < 0.6 * (time.perf_counter() - began), "Ray Data's loop rests"


def test_what_other_executions_take_of_the_cluster_does_not_hold_it_up(two_cpus: None, tmp_path: Path) -> None:
    """Ray Data would give each of three, the dead ones among them, two thirds of a CPU, cut down to none."""
    made = examples.TrainingExamples(PreparedDataset.open(write_dataset(tmp_path / "set")), MASKS, SEED)
    whole = Budget(num_workers=1, cpus_per_worker=0)
    for _ in range(2):
        with ray_source(made, budget=whole) as source:
            ray.get(source.next.remote())
    marks = tmp_path / "marks"
    marks.mkdir()
    with ray_source(made, marks=str(marks), together=2, budget=whole) as source:
        for _ in range(12):
            ray.get(source.next.remote())
    assert len({path.name.split()[1] for path in marks.iterdir()}) == 2


class _Marking(ray_feed._Source):
    """Notes blocks that are made, by files, and the process; and has short terms.

    No process gives its first block before so many have one.
    """

    def __init__(self, term_tasks: int, marks: str, together: int, *arguments: Any) -> None:
        ray_feed._TERM_TASKS = term_tasks
        if marks:
            make = ray_feed._make

            def marking(task: pa.Table, *work: Any) -> Iterator[pa.Table]:
                for block in make(task, *work):
                    Path(marks, f"{block.column('first')[0]} {os.getpid()}").touch()
                    wait_until(
                        lambda: len({path.name.split()[1] for path in Path(marks).iterdir()}) >= together,
                        PATIENCE_SECONDS,
                    )
                    yield block

            ray_feed._make = marking
        super().__init__(*arguments)

    def process_time(self) -> float:
        return time.process_time()


@contextlib.contextmanager
def ray_source(
    made: examples.TrainingExamples,
    *,
    term_tasks: int = 32,
    marks: str = "",
    together: int = 1,
    budget: Budget = BUDGET,
) -> Iterator[Any]:
    work = json.dumps(made.said()), 8
    num_bytes = ray_feed.Layout(8, made.dataset.info.size_px).num_bytes
    told = term_tasks, marks, together
    source = ray.remote(_Marking).options(num_cpus=0).remote(*told, work, 40, (), 8, budget, 2, num_bytes)
    try:
        yield source
    finally:
        ray.kill(source)


def test_error_of_an_example_is_raised_where_its_batch_is_taken(two_cpus: None, tmp_path: Path) -> None:
    uri = write_dataset(tmp_path / "broken", fingerprint="broken")
    spoiled = spoil(uri)
    made = examples.TrainingExamples(PreparedDataset.open(uri), MASKS, SEED)
    position = next(
        one for one in range(99) if made.dataset.key(int(made.dataset.train_rows[made.order.at(one)[1]])) == spoiled
    )
    with feeding(made, batch_size=2) as feed:
        batches = feed.batches(0)
        for _ in range(position // 2):
            next(batches)
        with pytest.raises(DataError, match=f"{spoiled} of .* is damaged here"):
            next(batches)
        assert len(next(feed.batches(position + 1))["mask"]) == 2, "it can be asked for others"


def test_killed_processes_change_nothing(two_cpus: None, tmp_path: Path) -> None:
    made = examples.TrainingExamples(PreparedDataset.open(write_dataset(tmp_path / "set")), MASKS, SEED)
    wanted = examples.TrainingExamples(PreparedDataset.open(made.dataset.uri), MASKS, SEED)
    killed = 0
    with feeding(made) as feed:
        batches = feed.batches(0)
        for step in range(40):
            assert same(next(batches), expected(wanted, 8 * step, 8)), step
            if step % 10 == 5:
                working = named("ray::MapBatches(_make)")
                killed += len(working)
                kill(working)
    assert killed > 0


def test_dead_source_is_said(two_cpus: None, tmp_path: Path) -> None:
    made = examples.TrainingExamples(PreparedDataset.open(write_dataset(tmp_path / "set")), MASKS, SEED)
    with feeding(made) as feed:
        batches = feed.batches(0)
        next(batches)
        kill(named("ray::_Source"))
        with pytest.raises(FeedError, match="Ray Data makes no more training images"):
            for _ in range(99):
                next(batches)


def test_closed_feed_leaves_no_actor(two_cpus: None, tmp_path: Path) -> None:
    made = examples.TrainingExamples(PreparedDataset.open(write_dataset(tmp_path / "set")), MASKS, SEED)
    with feeding(made) as feed:
        next(feed.batches(0))
        assert named("ray::_Source")
    wait_until(lambda: not named("ray::_Source") and not named("ray::MapBatches(_make)"), PATIENCE_SECONDS)


def named(title: str) -> list[int]:
    """Return the processes below this one that Ray gave a title."""
    found = []
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_text().startswith(title):
                found.append(process)
    return found
