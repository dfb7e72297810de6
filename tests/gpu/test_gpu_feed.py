"""Batches reach a GPU from pinned memory, beside the computation, with the values they have."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_set import write_dataset

from scfegan_ray.config import MaskConfig
from scfegan_ray.data import examples
from scfegan_ray.data.feed import Feed
from scfegan_ray.data.rows import PreparedDataset

pytestmark = pytest.mark.gpu

MASKS = MaskConfig(hair_probability=0.5)


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return PreparedDataset.open(write_dataset(tmp_path / "set"))


def feed_of(dataset: PreparedDataset, num_processes: int, device: torch.device) -> Feed:
    return Feed(
        examples.TrainingExamples(dataset, MASKS, 3),
        batch_size=8,
        rank=0,
        num_workers=1,
        num_processes=num_processes,
        device=device,
    )


@pytest.mark.parametrize("num_processes", [0, 2])
def test_values_are_those_of_the_examples(dataset: PreparedDataset, gpu: torch.device, num_processes: int) -> None:
    with contextlib.closing(feed_of(dataset, num_processes, gpu)) as feed:
        for start, reseeded_at in ((0, ()), (8, (8,))):
            # All are kept, and only read at the end: none may be overwritten meanwhile.
            batches = feed.batches(start, reseeded_at)
            found = [next(batches) for _ in range(12)]
            for step, batch in enumerate(found):
                first = start + 8 * step
                wanted = [examples.TrainingExamples(dataset, MASKS, 3).at(first + at, reseeded_at) for at in range(8)]
                for name, array in examples.stack(wanted).items():
                    assert batch[name].device == gpu
                    assert np.array_equal(batch[name].cpu().numpy(), array), (name, step)


def test_memory_is_pinned_until_the_feed_is_closed(dataset: PreparedDataset, gpu: torch.device) -> None:
    feed = feed_of(dataset, 1, gpu)
    with contextlib.closing(feed):
        next(feed.batches(0))
        assert feed._pool is not None
        slots = feed._pool.wait(0)
        assert slots.is_pinned()
    assert not slots.is_pinned()


def test_taking_a_batch_waits_for_no_computation(dataset: PreparedDataset, gpu: torch.device) -> None:
    with contextlib.closing(feed_of(dataset, 2, gpu)) as feed:
        batches = feed.batches(0)
        next(batches)
        busy = torch.cuda.Event()
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.cuda._sleep(2_000_000_000)  # about a second
            busy.record()
            taken = [next(batches) for _ in range(3)]
            assert not busy.query()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(int(batch["mask"].max()) == 1 for batch in taken)
