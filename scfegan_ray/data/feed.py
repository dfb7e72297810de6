"""Feeds one rank with its share of each batch: processes decode and draw ahead of the trainer, into shared memory.

torch's DataLoader was tried first. Each of its spawned processes imports torch, in a Ray worker Ray, too (350 MB
instead of 120); batches need room in /dev/shm; processes outlive a killed trainer by 6 seconds, with a traceback, and a
killed process group leaves semaphores and sockets behind. Here memory and socket have no name, so nothing can be left;
a process ends with its socket; and a batch, whose images are spread over all processes, is not copied on its way.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed_pool import NUM_SLOTS, FeedPool
from scfegan_ray.data.feed_process import Layout

logger = logging.getLogger(__name__)


class Pool(Protocol):
    """Makes batches ahead, in a ring of slots; see `feed_pool.FeedPool`, which does so in processes of this machine."""

    @property
    def slots(self) -> Tensor:
        """Memory of all slots: (`NUM_SLOTS`, bytes of a batch) uint8."""

    @property
    def ids(self) -> list[int]:
        """Of the processes of this machine that do so."""

    def ask(self, slot: int, first: int, reseeded_at: tuple[int, ...]) -> None:
        """Have the batch whose first example is at a position made in a slot."""

    def is_made(self, slot: int) -> bool:
        """Tell whether `wait` would give a batch without waiting."""

    def wait(self, slot: int) -> Tensor:
        """Return the bytes of a batch once they are made; raise what went wrong instead."""

    def settle(self) -> None:
        """Wait until nothing is under way."""

    def close(self) -> None:
        """End what makes batches."""


class Feed:
    """Makes this rank's share of each global batch: in processes, in this one, or wherever a pool does.

    To be closed. Its processes inherit the cores that this one may use.

    Args:
        examples: what batches are made of.
        batch_size: images of a global batch; at least `num_workers`.
        rank: which share; concatenated in rank order the shares are the global batch.
        num_workers: number of shares, whose sizes differ by one at most.
        num_processes: that make examples; 0 makes them in this process, one batch when it is asked for.
        device: where the batches shall be.
        retry_seconds: how long processes try storage that fails again.
        make_pool: return who makes batches instead, given the size of this rank's share and the layout of a batch.
    """

    def __init__(
        self,
        examples: TrainingExamples,
        *,
        batch_size: int,
        rank: int,
        num_workers: int,
        num_processes: int,
        device: torch.device,
        retry_seconds: float = 0.0,
        make_pool: Callable[[int, Layout], Pool] | None = None,
    ) -> None:
        self._examples, self._device, self._batch_size = examples, device, batch_size
        self._skipped, end = (batch_size * one // num_workers for one in (rank, rank + 1))
        self._share = end - self._skipped
        self._layout = Layout(self._share, examples.dataset.info.size_px)
        self._turn = 0
        self._asked = deque[int]()
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Pool | None = None
        self._pinned_at = 0
        if make_pool is not None:
            self._pool = make_pool(self._share, self._layout)
        elif num_processes:
            self._pool = FeedPool(examples, retry_seconds, self._share, self._layout, num_processes)
        if self._pool is not None and self._stream is not None:
            self._pin(self._pool.slots)

    @property
    def process_ids(self) -> list[int]:
        """Of the processes that make examples."""
        return self._pool.ids if self._pool else []

    @property
    def num_ready(self) -> int:
        """Batches that are made and wait to be taken."""
        return sum(map(self._pool.is_made, self._asked)) if self._pool else 0

    def close(self) -> None:
        """End the processes; batches on a CPU remain readable."""
        if self._stream is not None:
            self._stream.synchronize()
        if self._pool is not None:
            self._pool.close()
        if self._pinned_at:
            torch.cuda.cudart().cudaHostUnregister(self._pinned_at)  # type: ignore[no-untyped-call]
            self._pinned_at = 0

    def _pin(self, memory: Tensor) -> None:
        """Let the GPU copy out of some memory by itself."""
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        found = runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
        if int(found):
            logger.warning("memory cannot be pinned (CUDA error %d): copies of batches hold the trainer up", found)
        else:
            self._pinned_at = memory.data_ptr()

    def batches(self, start: int, reseeded_at: tuple[int, ...] = ()) -> Iterator[dict[str, Tensor]]:
        """Begin to make one batch after another, without end.

        The last call counts: iterators of earlier ones, as before training went back, must not be used any more.

        Args:
            start: images seen before the first batch.
            reseeded_at: positions from which on order and randomness are others.

        Returns:
            Iterator over batches: image, mask, sketch, color, noise and interpolation, stacked as
            `examples.make_example` describes them, on the device. On a GPU they are copied from pinned memory beside
            the computation, one batch ahead where that is made in time; on a CPU they are views of shared memory, valid
            until the next batch but one is taken.

        Raises:
            ScFeganError: what making an example raised, of the same class.
            FeedError: a process died.
        """
        self._turn += 1
        positions = itertools.count(start + self._skipped, self._batch_size)
        if self._pool is None:
            return self._made_here(positions, reseeded_at)
        if self._stream is not None:
            self._stream.synchronize()  # what an earlier iterator still copies out of the slots
        self._pool.settle()
        for slot in range(NUM_SLOTS):
            self._pool.ask(slot, next(positions), reseeded_at)
        self._asked = deque(range(NUM_SLOTS))
        return self._made_ahead(self._turn, self._pool, positions, reseeded_at)

    def _made_here(self, positions: Iterator[int], reseeded_at: tuple[int, ...]) -> Iterator[dict[str, Tensor]]:
        for first in positions:
            block = torch.empty(self._layout.num_bytes, dtype=torch.uint8)
            self._examples.fill(self._layout.arrays(block.numpy()), range(self._share), first, reseeded_at)
            yield self._maps(block.to(self._device))

    def _made_ahead(
        self, turn: int, pool: Pool, positions: Iterator[int], reseeded_at: tuple[int, ...]
    ) -> Iterator[dict[str, Tensor]]:
        asked, held = self._asked, deque[_Sent]()
        ahead: _Sent | None = None
        while True:
            assert turn == self._turn, "a later call of batches goes on"
            while held and held[0].is_over(len(held)):
                slot = held.popleft().slot
                pool.ask(slot, next(positions), reseeded_at)
                asked.append(slot)
            sent, ahead = ahead or self._send(pool, asked.popleft(), held), None
            if self._stream is not None and asked and pool.is_made(asked[0]):
                ahead = self._send(pool, asked.popleft(), held)
            yield self._maps(sent.arrive())

    def _send(self, pool: Pool, slot: int, held: deque[_Sent]) -> _Sent:
        """Wait until a batch is made, and begin to bring it to the device."""
        block = pool.wait(slot)
        if self._stream is None:
            sent = _Sent(slot, block)
        else:
            with torch.cuda.stream(self._stream):
                sent = _Sent(slot, block.to(self._device, non_blocking=True), self._stream.record_event())
        held.append(sent)
        return sent

    def _maps(self, block: Tensor) -> dict[str, Tensor]:
        return {
            name: block[at : at + int(np.prod(shape)) * np.dtype(kind).itemsize].view(getattr(torch, kind)).view(shape)
            for name, (at, shape, kind) in self._layout.places.items()
        }


@dataclass(slots=True)
class _Sent:
    """A batch on its way to the device, or there."""

    slot: int
    block: Tensor
    event: torch.cuda.Event | None = None

    def arrive(self) -> Tensor:
        """Let the current stream, not this thread, wait for it."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.block.device)
            stream.wait_event(self.event)
            self.block.record_stream(stream)
        return self.block

    def is_over(self, num_held: int) -> bool:
        """Tell whether its slot can be used anew, where so many batches have one that was not given back."""
        if self.event is None:
            return num_held > 1
        if num_held == NUM_SLOTS:
            self.event.synchronize()  # nothing is made as long as no slot is free
        return bool(self.event.query())  # type: ignore[no-untyped-call]
